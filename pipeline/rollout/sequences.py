"""Confidence sequences: intervals that hold at every moment at once, so that one may look after every request.

An ordinary 95 % interval that is looked at again and again excludes the truth sooner or later. These do so with a
probability of at most `alpha` over the whole, unlimited time, for independent observations. Both are built on one
process for a coin that shows heads with probability p: after n throws with s heads,

    M = B(a + s, b + n - s) / (B(a, b) · p^s · (1 - p)^(n - s))          (B: the beta function)

is a martingale with mean 1, whatever a and b, and by Ville's inequality ever reaches 1/alpha with a probability of at
most alpha. What M says of p gives an interval for a rate (Robbins, "Statistical methods related to the law of the
iterated logarithm", Annals of Mathematical Statistics 41, 1970; in this form Howard, Ramdas, McAuliffe and Sekhon,
"Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49, 2021, section 3.2, the
beta-binomial mixture). "An observation is at most the quantile" is such a coin, which gives an interval for a quantile
between order statistics, without any assumption on the distribution (Howard and Ramdas, "Sequential estimation of
quantiles with applications to A/B testing and best-arm identification", Bernoulli 28, 2022, theorem 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["quantile_sequence", "rate_sequence"]

_RATE_PRIOR = (0.5, 20.0)
"""Where rates are expected: near zero. Another choice widens the intervals of rates near zero and is as valid."""
_QUANTILE_PRIOR_OBSERVATIONS = 100.0
"""The intervals of quantiles are narrowest, beside what is possible, after about ten times as many observations."""


def rate_sequence(successes: int, observations: int, alpha: float) -> tuple[float, float]:
    """An interval for the probability of what happened `successes` times in `observations`: low and high, in [0, 1]."""
    if observations == 0:
        return 0.0, 1.0
    prior = _log_beta_ratio(successes, observations, *_RATE_PRIOR)
    limit = math.log(1 / alpha)

    def excluded(p: float) -> bool:
        return prior - _log_likelihood(successes, observations, p) >= limit

    best = successes / observations
    low = 0.0 if not excluded(0.0) else _bisected(excluded, 0.0, best)
    high = 1.0 if not excluded(1.0) else _bisected(excluded, 1.0, best)
    return low, high


def quantile_sequence(ordered: NDArray[np.float64], quantile: float, alpha: float) -> tuple[float, float]:
    """An interval for a quantile of what `ordered` (ascending, at least 0) was drawn from; high may be infinite."""
    low_rank, high_rank = _ranks(len(ordered), quantile, alpha)
    low = 0.0 if low_rank < 1 else float(ordered[low_rank - 1])
    high = math.inf if high_rank > len(ordered) else float(ordered[high_rank - 1])
    return low, high


@lru_cache(maxsize=4096)
def _ranks(observations: int, quantile: float, alpha: float) -> tuple[int, int]:
    """Which order statistics (from 1) bound the quantile; 0 and `observations` + 1 where none does.

    If at most `few` observations lie at or below x, x is too small to be the quantile: so that one is at least the next
    order statistic. If at least `many` lie below x, it is too large. The coin of an observation at the quantile may be
    biased to one side where values repeat; it then only makes the rarer event rarer.
    """
    prior = (_QUANTILE_PRIOR_OBSERVATIONS * quantile, _QUANTILE_PRIOR_OBSERVATIONS * (1 - quantile))
    limit = math.log(1 / alpha)

    def excluded(count: int) -> bool:
        log_m = _log_beta_ratio(count, observations, *prior) - _log_likelihood(count, observations, quantile)
        return log_m >= limit

    centre = round(observations * quantile)
    few = _last(excluded, 0, centre)
    many = _last(lambda count: excluded(observations - count), 0, observations - centre)
    return (0 if few is None else few + 1), (observations + 1 if many is None else observations - many)


def _last(excluded: Callable[[int], bool], start: int, end: int) -> int | None:
    """The last of `start` … `end` that is excluded, where those that are come first; None if none is."""
    if not excluded(start):
        return None
    while end - start > 1:
        middle = (start + end) // 2
        start, end = (middle, end) if excluded(middle) else (start, middle)
    return start


def _bisected(excluded: Callable[[float], bool], outside: float, inside: float) -> float:
    """The border between a rate that is excluded and one that is not, from the outside."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if excluded(middle) else (outside, middle)
    return outside


def _log_beta_ratio(successes: int, observations: int, a: float, b: float) -> float:
    return _log_beta(a + successes, b + observations - successes) - _log_beta(a, b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_likelihood(successes: int, observations: int, p: float) -> float:
    failures = observations - successes
    if (successes and p <= 0) or (failures and p >= 1):
        return -math.inf
    return (successes * math.log(p) if successes else 0.0) + (failures * math.log1p(-p) if failures else 0.0)
