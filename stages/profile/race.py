"""Which of two is faster: the ratio of their times turn by turn, so that what slows the machine slows both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.errors import InputError
from stages.profile.latency import calls_to_bound, order_interval

__all__ = ["Race", "faster", "race"]

FILE = "latencies.npz"


@dataclass(frozen=True)
class Race:
    """`ratio` > 1: the candidate is faster. `low` and `high` are its 95 % interval, None with fewer than 6 rounds.

    `decided`: the interval lies wholly on one side of 1.
    """

    ratio: float
    low: float | None
    high: float | None
    decided: bool


def race(candidate: NDArray[np.float64], over: NDArray[np.float64]) -> Race:
    """Compare two variants: [rounds, calls] milliseconds each, row i of both from the same round and the same inputs.

    The ratio of a round is that of the turns' medians; the ratio of the race is the median over the rounds, and its
    interval that of a median by the ranks.
    """
    rounds = min(len(candidate), len(over))
    ratios = np.median(over[:rounds], axis=1) / np.median(candidate[:rounds], axis=1)
    ratio = float(np.median(ratios))
    if rounds < calls_to_bound(0.5):
        return Race(ratio, None, None, False)
    low, high = order_interval(ratios, 0.5)
    return Race(ratio, low, high, low > 1 or high < 1)


def faster(measurement: Artifact, candidate: str, over: str, batch: int) -> Race:
    """The race of two variants of a `measurement` at one batch size.

    Raises `InputError` if one of them was not measured at that batch size.
    """
    with np.load(measurement.path / FILE, allow_pickle=False) as arrays:
        turns = []
        for name in (candidate, over):
            if f"{name}/{batch}" not in arrays:
                error = measurement.metadata["variants"].get(name, {}).get("error")
                raise InputError(f"{name} was not measured at batch size {batch}" + (f": {error}" if error else ""))
            turns.append(arrays[f"{name}/{batch}"].reshape(-1, measurement.metadata["calls_per_turn"][str(batch)]))
    return race(*turns)
