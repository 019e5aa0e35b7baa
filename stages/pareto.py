"""Which variants are worth having: the Pareto front over speed, size and nearness to the baseline.

A variant is beaten by another that is not worse in any of the three and better in one. Speeds and answers are measured,
so both are said by their intervals: what may be the machine's mood or the choice of the samples beats nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.check.per_sample import PerSample
from stages.gate.resampling import mean_bounds

__all__ = ["ALIKE", "Beaten", "Race", "Standing", "answer_errors", "beaten"]

ALIKE = 1.02
"""Speeds and sizes whose ratio is nearer to 1 than this are the same."""

_AS_NEAR = 0.001
"""Mean errors whose difference is smaller are the same: a tenth of what the gate allows by default."""

_CONFIDENCE, _RESAMPLES = 0.95, 1000

Race = Callable[[str, str], tuple[float, float] | None]
"""The 95 % interval of how many times faster the first is than the second; None where it is not known."""


@dataclass(frozen=True)
class Beaten:
    """`by` is not worse in anything; in `ways` (`slower`, `larger`, `farther from the baseline`) it is better."""

    by: str
    ways: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """What is known of one variant. None: it was not measured, which beats nothing and is beaten by nothing.

    `errors` [samples] float64: how far each answer is from the baseline's (`answer_errors`), the same samples for all
    that are compared.
    """

    name: str
    size_bytes: int | None
    errors: NDArray[np.float64] | None


def answer_errors(results: PerSample) -> NDArray[np.float64] | None:
    """[samples] float64 from a variant's evaluation: 1 − cosine where there is one, else the relative error, else the
    share that disagrees. None where its outputs leave nothing to compare."""
    for name in ("cosine", "relative_error", "agreement"):
        if name in results.fidelity:
            column = results.fidelity[name]
            return column if name == "relative_error" else 1 - column
    return None


def beaten(standings: Sequence[Standing], race: Race) -> dict[str, Beaten]:
    """Those that another one beats, by name; the others are the front. The last is tried first: where several beat each
    other in turn, within what counts as the same, the first of them stays."""
    lost: dict[str, Beaten] = {}
    for one in reversed(standings):
        for other in standings:
            if other is one or other.name in lost:
                continue
            ways = _ways(one, other, race)
            if ways:
                lost[one.name] = Beaten(other.name, ways)
                break
    return lost


def _ways(one: Standing, other: Standing, race: Race) -> tuple[str, ...]:
    """In what `one` is worse than `other`; nothing if it is better in anything, or may be."""
    ratio = race(other.name, one.name)
    if ratio is None or one.size_bytes is None or other.size_bytes is None:
        return ()
    if one.errors is None or other.errors is None:
        return ()
    low = _least_mean(one.errors - other.errors)
    if ratio[0] < 1 / ALIKE or other.size_bytes > ALIKE * one.size_bytes or low < -_AS_NEAR:
        return ()
    worse = {
        "slower": ratio[0] > ALIKE,
        "larger": one.size_bytes > ALIKE * other.size_bytes,
        "farther from the baseline": low > _AS_NEAR,
    }
    return tuple(word for word, known in worse.items() if known)


def _least_mean(differences: NDArray[np.float64]) -> float:
    """The lower bound of the mean of [samples] paired differences, by the gate's own bootstrap."""
    unseen = 2 * min(float(differences.min()), 0.0)
    return mean_bounds(differences, unseen, 0.0, (1 - _CONFIDENCE, _CONFIDENCE), _RESAMPLES, 0)[0]
