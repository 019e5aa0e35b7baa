"""The metric of a variant beside the baseline's: the paired bootstrap of its relative drop.

Where lower is better (perplexity), the drop is the relative rise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.check.metrics import FORMS, Form
from stages.check.per_sample import PerSample
from stages.errors import InputError
from stages.gate.judgement import Gate, Limits, MetricFigures, Verdict, advice, more_than, verdict_on
from stages.gate.resampling import FEWEST_UNBOUNDED, resampled_sums, samples_to_decide

__all__ = ["drop_gate", "metric_figures"]

Floats = NDArray[np.float64]


def metric_figures(variant: PerSample, baseline: PerSample | None, limits: Limits) -> MetricFigures:
    """The variant's metric and its drop from the baseline's; the baseline's own where there is none before it."""
    form, given, reference = _paired(variant, baseline or variant)
    value = float(form.value(given.sum(axis=0)))
    drop = float(_drop(form, form.value(reference.sum(axis=0)), value))
    worse_before, worse, better_before, better = _resampled(form, reference, given, limits)
    low, high = (better, worse) if form.lower_is_better else (worse, better)
    tail = (1 - limits.confidence) / 2
    lower = upper = 0.0
    if baseline is not None:
        # A resample in which the drop is not defined (a baseline of nothing) counts as the worst for either bound.
        least = np.nan_to_num(_drop(form, better_before, better), nan=-_FAR)
        most = np.nan_to_num(_drop(form, worse_before, worse), nan=_FAR)
        lower = float(np.quantile(least, 1 - limits.confidence))
        upper = float(np.quantile(most, limits.confidence))
    return MetricFigures(
        name=str(variant.metric),
        value=value,
        low=float(np.nanquantile(low, tail)),
        high=float(np.nanquantile(high, 1 - tail)),
        drop=drop if np.isfinite(drop) else 0.0,
        drop_lower=lower,
        drop_upper=upper,
    )


_FAR = 1e9


def _resampled(form: Form, reference: Floats, given: Floats, limits: Limits) -> tuple[Floats, Floats, Floats, Floats]:
    """[resamples] each: the metric of baseline and variant with one more sample that the variant loses (and the
    baseline does not), and with one more that it wins."""
    unseen = form.unseen(reference, given)
    k = given.shape[1]
    sums, extreme = resampled_sums(np.hstack([reference, given]), limits.resamples, limits.seed)
    before, after, weight = sums[:, :k], sums[:, k:], extreme[:, None]
    return (
        form.value(before + weight * unseen.lost[0]),
        form.value(after + weight * unseen.lost[1]),
        form.value(before + weight * unseen.won[0]),
        form.value(after + weight * unseen.won[1]),
    )


def _paired(variant: PerSample, before: PerSample) -> tuple[Form, Floats, Floats]:
    if variant.statistics is None or before.statistics is None or variant.form is None:
        raise InputError("the metric's statistics are missing from the evaluation")
    if variant.statistics.shape != before.statistics.shape:
        raise InputError(
            f"the statistics of variant and baseline differ: {variant.statistics.shape}, {before.statistics.shape}"
        )
    return FORMS[variant.form], variant.statistics, before.statistics


def _drop(form: Form, before: Any, after: Any) -> Floats:
    """By how much the metric got worse, relative; NaN where the baseline's is not above 0."""
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    worse = after - before if form.lower_is_better else before - after
    result = np.full(worse.shape, np.nan)
    np.divide(worse, before, out=result, where=before > 0)
    return result


def drop_gate(metric: MetricFigures, variant: PerSample, before: PerSample, limits: Limits) -> tuple[Gate, int | None]:
    """The drop against its limit, and about how many samples would decide it where it is open."""
    form, given, reference = _paired(variant, before)
    name, limit, count = metric.name, limits.max_drop, len(given)
    whole = float(form.value(reference.sum(axis=0)))
    if not whole > 0:
        reason = f"the baseline's own {name} is {whole:.3g}: no drop can be measured"
        return Gate.of("drop", "inconclusive", None, None, limit, reason), None
    verdict = verdict_on(metric.drop_lower, metric.drop_upper, limit)
    words = _RISING if form.lower_is_better else _DROPPING
    said = f"{name} {words.gains if metric.drop < 0 else words.loses} {_percent(abs(metric.drop))}"
    sure = f"with {limits.confidence:.0%} confidence (limit {limit:.2%})"

    def told(verdict: Verdict, bound: float, reason: str) -> Gate:
        return Gate.of("drop", verdict, metric.drop, bound, limit, reason)

    if verdict == "fail":
        reason = f"{said}; a {words.loss} of {_percent(metric.drop_lower)} at least {sure}"
        return told("fail", metric.drop_lower, reason), None
    if not form.bounded and count < FEWEST_UNBOUNDED:
        reason = f"{said} on {count} {variant.units}; it takes {FEWEST_UNBOUNDED} to say how far others may stray"
        return told("inconclusive", metric.drop_upper, reason), FEWEST_UNBOUNDED
    if verdict == "pass":
        upper = metric.drop_upper
        bound = f"{words.loss} of {_percent(upper)} at most" if upper >= 0 else f"{words.gain} of {-upper:.2%} at least"
        reason = f"{said}; a {bound} {sure}"
        return told("pass", metric.drop_upper, reason), None
    needed = _needed(form, metric.drop, reference, given, limits)
    above = "; the estimate itself is above the limit" if metric.drop > limit else ""
    reason = (
        f"{said}, but {count} {variant.units} leave a {words.loss} of {_percent(metric.drop_upper)} possible "
        f"(limit {limit:.2%}){above}{advice(needed, count, variant.units)}"
    )
    return told("inconclusive", metric.drop_upper, reason), more_than(needed, count)


class _Words(NamedTuple):
    """What a metric does when it gets worse or better, and what that is called."""

    loses: str
    loss: str
    gains: str
    gain: str


_DROPPING = _Words("drops by", "drop", "gains", "gain")
_RISING = _Words("rises by", "rise", "falls by", "fall")


def _percent(share: float) -> str:
    """A rise has no end: that of a broken model has more digits than anybody reads."""
    return f"{share:.2%}" if share < 100 else f"{100 * share:.1e}%"


def _needed(form: Form, drop: float, reference: Floats, given: Floats, limits: Limits) -> int | None:
    """From the spread of the paired drop over the resamples, and from how far one lost sample moves it."""
    count, k = given.shape
    before, after = form.unseen(reference, given).lost
    moved = _drop(form, form.value(reference.sum(axis=0) + before), form.value(given.sum(axis=0) + after))
    sums, _ = resampled_sums(np.hstack([reference, given]), limits.resamples, limits.seed)
    spread = float(np.nanstd(_drop(form, form.value(sums[:, :k]), form.value(sums[:, k:]))))
    return samples_to_decide(
        abs(limits.max_drop - drop), spread * float(np.sqrt(count)), count * abs(float(moved) - drop), limits.confidence
    )
