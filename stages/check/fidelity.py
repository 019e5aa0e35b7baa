"""How near a variant's answers are to the baseline's, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.check.outputs import Answer, ReferenceReader, thinned
from stages.errors import StageError

__all__ = ["Nearness", "nearness"]

# A sample whose own norm is below this part of the usual one is measured against the usual one: the relative error of
# something that is nearly nothing says nothing.
_NEARLY_NOTHING = 1e-3


@dataclass(frozen=True)
class Nearness:
    """One sample's answer beside the baseline's. With several outputs each figure is that of the worst of them.

    `cosine`: of the two answers as vectors; with positions, the mean over them; NaN for single numbers, whose cosine is
    but a sign. `relative_error`: ‖a − b‖ / ‖b‖; for single numbers |a − b| over the root mean square of all samples.
    `equal`: the part of equal values in integer, boolean and text outputs; NaN where there are none.
    """

    cosine: float = np.nan
    relative_error: float = np.nan
    equal: float = np.nan


def nearness(sample: int, answer: Answer, reference: ReferenceReader, per_position: Mapping[str, bool]) -> Nearness:
    """Compare one sample. Raises `StageError` if the outputs are not those of the baseline, by name and by shape."""
    wanted = reference.answer(sample)
    if wanted.keys() != answer.keys():
        raise StageError(f"the outputs are {', '.join(answer)}; the baseline's are {', '.join(wanted)}")
    cosines, errors, equals = [], [], []
    for name, kept in wanted.items():
        whole = answer[name]
        given = thinned(whole, per_position[name], reference.most)
        if given.size != kept.size:
            raise StageError(
                f"output {name} has {given.size} values for sample {sample}, the baseline's has {kept.size}"
            )
        if kept.dtype.kind != "f":
            equals.append(float((given.ravel() == kept).mean()) if kept.size else 1.0)
            continue
        width = given[0].size if per_position[name] and given.ndim > 1 and len(given) else given.size
        a, b = given.astype(np.float64).reshape(-1, max(width, 1)), kept.astype(np.float64).reshape(-1, max(width, 1))
        if width > 1:
            cosines.append(_mean_cosine(a, b))
        errors.append(_relative_error(a, b, reference.scales[name]))
    return Nearness(min(cosines, default=np.nan), max(errors, default=np.nan), min(equals, default=np.nan))


def _mean_cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Of rows [rows, width]. Two zero rows agree; one zero row agrees with nothing else."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~(a.any(axis=1) | b.any(axis=1))
    cosines = np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1), both_zero)
    return float(np.clip(cosines, -1, 1).mean())


def _relative_error(a: NDArray[Any], b: NDArray[Any], scale: float) -> float:
    own = float(np.linalg.norm(b))
    norm = scale if b.size == 1 else max(own, _NEARLY_NOTHING * scale)
    difference = float(np.linalg.norm(a - b))
    if norm == 0:
        return 0.0 if difference == 0 else 1.0
    return difference / norm
