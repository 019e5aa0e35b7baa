"""Holding a server's answers against those that are expected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import StageError
from stages.runtime import Arrays

__all__ = ["Comparison", "difference"]


@dataclass
class Comparison:
    """Compares the answers of one kind of request; `largest` is the largest difference met, by output.

    `tolerance` is the largest `difference` allowed.
    """

    requests: str
    tolerance: float
    largest: dict[str, float] = field(default_factory=dict)

    def hold(self, samples: list[int], expected: Sequence[Arrays], answer: Arrays) -> None:
        """Compare the answer to a request that held `samples` with the nearest of those `expected`.

        Raises `StageError` if an output of that one is too far off.
        """
        nearest = min(expected, key=lambda wanted: _furthest(wanted, answer))
        of = f"sample {samples[0]}" if len(samples) == 1 else f"samples {', '.join(map(str, samples))}"
        if nearest.keys() != answer.keys():
            raise StageError(f"the server answers with {', '.join(answer)} instead of {', '.join(nearest)}")
        for name, wanted in nearest.items():
            off = difference(wanted, answer[name])
            if not off <= self.tolerance:
                raise StageError(
                    f"wrong answer {self.requests}: output {name!r} of {of} differs by {off:.3g} "
                    f"(allowed {self.tolerance:.3g}): {_shown(answer[name])} instead of {_shown(wanted)}"
                )
            self.largest[name] = max(off, self.largest.get(name, 0.0))


def difference(expected: NDArray[Any], answer: NDArray[Any]) -> float:
    """How far `answer` is from `expected`.

    For floats the largest absolute difference over the largest magnitude in `expected` (absolute where that is 0); for
    other dtypes the fraction of elements that differ. Infinite if dtype, shape or the places of NaN and infinity do.
    """
    if expected.dtype != answer.dtype or expected.shape != answer.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    if expected.dtype.kind != "f":
        return float(np.mean(expected != answer))
    wanted, got = expected.astype(np.float64), answer.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(got)) or not np.array_equal(
        wanted[~finite], got[~finite], equal_nan=True
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(wanted[finite]).max()) or 1.0
    return float(np.abs(wanted[finite] - got[finite]).max()) / scale


def _furthest(expected: Arrays, answer: Arrays) -> float:
    if expected.keys() != answer.keys():
        return float("inf")
    return max((difference(wanted, answer[name]) for name, wanted in expected.items()), default=0.0)


def _shown(array: NDArray[Any]) -> str:
    """Dtype, shape and the first values, for a message."""
    first = np.array2string(array.ravel()[:4], precision=5, separator=", ")
    return f"{array.dtype}{list(array.shape)} {first[:-1]}{', …' if array.size > 4 else ''}]"
