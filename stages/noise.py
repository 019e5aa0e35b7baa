"""How much of a tensor is noise: what a quantised graph gives beside what the graph it was made from gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_DB", "Noise", "decibels"]

MOST_DB = 120.0
"""Ratios are told up to here: 32-bit floats hold no more."""


class Noise:
    """Sums over all pairs of arrays that were added: the power of the signal and of the difference from it.

    Values that are no floats have no power: each counts 1, and 1 as noise where it differs.
    """

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0

    def add(self, given: NDArray[Any], wanted: NDArray[Any]) -> None:
        """One array beside the one it should be, of the same shape. Infinity and NaN make the noise infinite."""
        if wanted.dtype.kind != "f":
            self.signal += wanted.size
            self.noise += float((given != wanted).sum())
            return
        with np.errstate(invalid="ignore", over="ignore"):
            difference = given.astype(np.float64) - wanted
        self.signal += float(np.square(wanted, dtype=np.float64).sum())
        power = float(np.square(difference).sum())
        self.noise += power if math.isfinite(power) else math.inf

    @property
    def ratio(self) -> float:
        """Power of the noise over power of the signal; 0 where there is no noise, infinite without a signal."""
        return 0.0 if self.noise == 0 else self.noise / self.signal if self.signal else math.inf


def decibels(ratio: float) -> float:
    """The signal-to-quantisation-noise ratio (SQNR) in dB of a noise-to-signal `ratio`, within ±`MOST_DB`."""
    if not 0 < ratio < math.inf:
        return MOST_DB if ratio == 0 else -MOST_DB
    return max(-MOST_DB, min(MOST_DB, -10 * math.log10(ratio)))
