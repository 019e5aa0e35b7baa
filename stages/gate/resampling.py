"""The bootstrap that the gate judges by: random weights on the samples, and one sample more that was not seen.

Each resample weighs the n samples, and one imagined *extreme* sample beside them, by a Dirichlet(1, …, 1) vector: the
Bayesian bootstrap (Rubin 1981, Annals of Statistics 9:130) of n + 1 samples. With the extreme sample the worst that can
be, the quantile of the weighted mean is Gaffke's bound (Gaffke 2005; Learned-Miller and Thomas 2019, arXiv 1905.06208).
For zero-one results that is exactly the Clopper-Pearson bound: no failure in n samples gives 1 - 0.05^(1/n), the "rule
of three", where the usual bootstrap gives an interval of no width. With many samples it is the usual bootstrap.
"""

from __future__ import annotations

import functools
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST_UNBOUNDED", "mean_bounds", "resampled_sums", "samples_to_decide"]

Floats = NDArray[np.float64]

FEWEST_UNBOUNDED = 50
"""Fewer samples of a figure without a worst (cosine, relative error, loss) say too little of its tail to bound it."""

_BLOCK_VALUES = 1 << 21
_MOST_SAMPLES = 10_000_000


def resampled_sums(statistics: Floats, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Weighted column sums of `statistics` [n, k]: ([resamples, k], [resamples] weights of the extreme sample).

    The weights of a resample have mean 1, not sum 1. Memory is bounded whatever n is.
    """
    sums = np.zeros((resamples, statistics.shape[1]))
    block = max(1, _BLOCK_VALUES // resamples)
    for number, start in enumerate(range(0, len(statistics), block)):
        rows = statistics[start : start + block]
        sums += _weights(resamples, len(rows), seed, number) @ rows
    return sums, _weights(resamples, 1, seed, -1)[:, 0]


@functools.lru_cache(maxsize=2)
def _weights(resamples: int, samples: int, seed: int, block: int) -> Floats:
    """[resamples, samples] exponential weights. A judgement asks for the same ones several times."""
    random = np.random.default_rng((seed, block + 1))
    return random.standard_exponential((resamples, samples))


def mean_bounds(
    values: Floats, least: float, greatest: float, quantiles: tuple[float, float], resamples: int, seed: int
) -> tuple[float, float]:
    """A lower and an upper bound of the mean of what `values` [n] are samples of.

    `least` and `greatest` are the extreme samples for the lower and the upper bound; `quantiles` those of the bounds,
    such as (0.05, 0.95) for two one-sided bounds of 95 %.
    """
    sums, extreme = resampled_sums(np.stack([values, np.ones_like(values)], axis=1), resamples, seed)
    total = sums[:, 1] + extreme
    low = np.quantile((sums[:, 0] + extreme * least) / total, quantiles[0])
    high = np.quantile((sums[:, 0] + extreme * greatest) / total, quantiles[1])
    return float(low), float(high)


def samples_to_decide(room: float, deviation: float, reach: float, confidence: float) -> int | None:
    """About how many samples bring a bound to within `room` of the estimate; None if no sensible number does.

    `deviation` is the standard deviation of one sample's contribution, `reach` how far the extreme sample lies from
    the estimate. Without deviation this is the rule of three.
    """
    if not (room > 0 and np.isfinite([room, deviation, reach]).all()):
        return None
    z = NormalDist().inv_cdf(confidence)

    def distance(n: int) -> float:
        usual = reach / n + z * float(np.hypot(deviation / np.sqrt(n), reach / n))
        return max(usual, -float(np.log(1 - confidence)) * reach / n)

    if distance(_MOST_SAMPLES) > room:
        return None
    low, high = 1, _MOST_SAMPLES
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if distance(middle) <= room else (middle + 1, high)
    return low
