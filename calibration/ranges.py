"""Observers: from the statistics of an activation to the range that its quantised form shall cover.

All read one pass's statistics. `min-max` and `moving-average` know every value; the others look for a narrower range in
the vectors that were kept, because rare large values cost all others their resolution.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calibration.statistics import ActivationStatistics

__all__ = ["Observer", "activation_range", "quantise_linear"]

Observer = Literal["min-max", "moving-average", "percentile", "entropy", "mse"]

_LEVELS = 256
_BINS = 2048
_MOST_VALUES = 2**16
_SHARES = tuple(np.linspace(1.0, 0.2, 41).tolist())


def activation_range(
    statistics: ActivationStatistics,
    observer: Observer = "min-max",
    *,
    divisor: NDArray[np.float32] | None = None,
    percentile: float = 99.99,
) -> tuple[float, float]:
    """(low, high) of one tensor for asymmetric 8-bit quantisation; 0 lies within, as padding and ReLU need it.

    `divisor` [C]: what each channel is divided by before it is quantised (smoothing).

    - `min-max`: the smallest and the largest value
    - `moving-average`: moving averages of the batches' smallest and largest values (arXiv:1712.05877)
    - `percentile`: so many percent of the values lie below the high end, and as many above the low end
    - `entropy`: least Kullback-Leibler divergence of the quantised from the original distribution (Migacz, "8-bit
      Inference with TensorRT", GTC 2017)
    - `mse`: least mean squared error of the quantised values
    """
    scale = np.float32(1) if divisor is None else divisor
    averaged = observer == "moving-average"
    low = float(np.min((statistics.average_low if averaged else statistics.low) / scale))
    high = float(np.max((statistics.average_high if averaged else statistics.high) / scale))
    if observer in ("percentile", "entropy", "mse"):
        values = _some((statistics.rows / scale).ravel())
        if observer == "percentile":
            low, high = (float(end) for end in np.percentile(values, [100 - percentile, percentile]))
        else:
            cost = _divergence if observer == "entropy" else _squared_error
            low, high = min(
                ((low * share, high * share) for share in _SHARES), key=lambda ends: cost(values, *_around_zero(*ends))
            )
    return _around_zero(low, high)


def quantise_linear(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """`values` rounded to the 256 levels between `low` and `high`, as floats. 0 is one of the levels."""
    scale = (high - low) / (_LEVELS - 1)
    if scale == 0:
        return np.zeros_like(values)
    zero = np.rint(-low / scale)
    levels = np.clip(np.rint(values / scale) + zero, 0, _LEVELS - 1)
    return np.asarray((levels - zero) * scale, np.float32)


def _around_zero(low: float, high: float) -> tuple[float, float]:
    return min(low, 0.0), max(high, 0.0)


def _some(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Evenly spaced ones, where there are too many."""
    return values[:: max(1, len(values) // _MOST_VALUES)]


def _squared_error(values: NDArray[np.float32], low: float, high: float) -> float:
    return float(np.mean((quantise_linear(values, low, high) - values) ** 2))


def _divergence(values: NDArray[np.float32], low: float, high: float) -> float:
    """Of the distribution clipped to the range, in fine bins, from the same in 256 levels."""
    if high <= low:
        return float("inf")
    counts, _ = np.histogram(np.clip(values, low, high), bins=_BINS, range=(low, high))
    # What was clipped counts for the original, not for its quantised form, which has not seen it.
    inside, _ = np.histogram(values[(values >= low) & (values <= high)], bins=_BINS, range=(low, high))
    level = np.arange(_BINS) * _LEVELS // _BINS
    occupied = inside > 0
    sums = np.bincount(level, weights=inside, minlength=_LEVELS)
    shares = np.bincount(level, weights=occupied, minlength=_LEVELS)
    spread = np.where(occupied, (sums / np.maximum(shares, 1))[level], 0.0)
    original, quantised = counts / counts.sum(), spread / max(spread.sum(), 1e-12)
    seen = original > 0
    return float(np.sum(original[seen] * np.log(original[seen] / np.maximum(quantised[seen], 1e-12))))
