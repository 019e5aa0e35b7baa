"""Percentiles of latency and their intervals, from order statistics: no distribution is assumed."""

from __future__ import annotations

from math import ceil, floor, lgamma, log, log1p

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "calls_to_bound", "median_interval", "order_interval", "percentile_figures"]

Floats = NDArray[np.float64]
Interval = tuple[float, float]

CONFIDENCE = 0.95
_Z = 1.959964


def order_interval(values: Floats, quantile: float) -> Interval:
    """The two-sided 95 % interval of a quantile, from the binomial distribution of the ranks.

    `values` [n], in any order. (David and Nagaraja, Order Statistics, 3rd edition, section 7.1.) Where n is too small
    for a bound (see `calls_to_bound`), that end is the extreme of what was seen.
    """
    n = len(values)
    below = _binomial_cdf(n, quantile)
    tail = (1 - CONFIDENCE) / 2
    # P(at most k of n lie below the quantile) <= tail: the (k + 1)-th smallest is a lower bound.
    low = int(np.searchsorted(below, tail, side="right")) - 1
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    ordered = np.sort(values)
    return float(ordered[max(low, 0)]), float(ordered[min(high, n) - 1])


def calls_to_bound(quantile: float) -> int:
    """How many calls it takes before the largest of them bounds the quantile from above (368 for the 99th)."""
    return ceil(log((1 - CONFIDENCE) / 2) / log(quantile))


def median_interval(values: Floats, kinds: NDArray[np.int64]) -> Interval:
    """The two-sided 95 % interval of the median of a mix of different inputs, each measured again and again.

    `values` [n], `kinds` [n] says which input each call had. How often a long input came is not chance here, so only
    the spread within each kind counts: Woodruff's interval for stratified samples (1952, JASA 47:635), which for one
    kind is the usual interval of the ranks.
    """
    n, middle = len(values), np.median(values)
    variance = 0.0
    for kind in np.unique(kinds):
        own = values[kinds == kind]
        part = (np.mean(own < middle) + np.mean(own <= middle)) / 2
        variance += len(own) * part * (1 - part)
    reach = _Z * max(variance, 0.25) ** 0.5
    ordered = np.sort(values)
    low, high = floor(n / 2 - reach), ceil(n / 2 + reach)
    return float(ordered[max(low, 1) - 1]), float(ordered[min(high + 1, n) - 1])


def percentile_figures(values: Floats, kinds: NDArray[np.int64]) -> dict[str, float]:
    """p50, p95 and p99 of `values` (milliseconds), each with `_low` and `_high`.

    Of p95 and p99 the interval takes no account of kinds, which makes it rather too wide than too narrow.
    """
    figures: dict[str, float] = {}
    for name, quantile in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        low, high = median_interval(values, kinds) if name == "p50" else order_interval(values, quantile)
        value = float(np.quantile(values, quantile))
        figures |= {name: value, f"{name}_low": min(low, value), f"{name}_high": max(high, value)}
    return figures


def _binomial_cdf(n: int, p: float) -> Floats:
    """[n + 1]: the probability of at most k successes in n trials."""
    logs = np.array([lgamma(k + 1) for k in range(n + 1)])
    successes = np.arange(n + 1)
    mass = np.exp(logs[n] - logs - logs[::-1] + successes * log(p) + (n - successes) * log1p(-p))
    cumulated: Floats = np.minimum(np.cumsum(mass), 1.0)
    return cumulated
