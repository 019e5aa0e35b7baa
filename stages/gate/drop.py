"""The metric of a variant beside the baseline's: the paired bootstrap of its relative drop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.check.metrics import FORMS, Form
from stages.check.per_sample import PerSample
from stages.errors import InputError
from stages.gate.judgement import Gate, Limits, MetricFigures, advice, more_than, verdict_on
from stages.gate.resampling import resampled_sums, samples_to_decide

__all__ = ["drop_gate", "metric_figures"]

Floats = NDArray[np.float64]


def metric_figures(variant: PerSample, baseline: PerSample | None, limits: Limits) -> MetricFigures:
    """The variant's metric and its drop from the baseline's; the baseline's own where there is none before it."""
    form, given, reference = _paired(variant, baseline or variant)
    value = float(form.value(given.sum(axis=0)))
    drop = float(_drop(form.value(reference.sum(axis=0)), value))
    worse_before, worse, better_before, better = _resampled(form, reference, given, limits)
    tail = (1 - limits.confidence) / 2
    lower = upper = 0.0
    if baseline is not None:
        # A resample in which the drop is not defined (a baseline of nothing) counts as the worst for either bound.
        lower = float(np.quantile(np.nan_to_num(_drop(better_before, better), nan=-_FAR), 1 - limits.confidence))
        upper = float(np.quantile(np.nan_to_num(_drop(worse_before, worse), nan=_FAR), limits.confidence))
    return MetricFigures(
        name=str(variant.metric),
        value=value,
        low=float(np.nanquantile(worse, tail)),
        high=float(np.nanquantile(better, 1 - tail)),
        drop=drop if np.isfinite(drop) else 0.0,
        drop_lower=lower,
        drop_upper=upper,
    )


_FAR = 1e9


def _resampled(form: Form, reference: Floats, given: Floats, limits: Limits) -> tuple[Floats, Floats, Floats, Floats]:
    """[resamples] each: the metric of baseline and variant with one more sample that the variant loses (and the
    baseline does not), and with one more that it wins."""
    right, wrong = form.extremes(reference)
    k = given.shape[1]
    sums, extreme = resampled_sums(np.hstack([reference, given]), limits.resamples, limits.seed)
    before, after, weight = sums[:, :k], sums[:, k:], extreme[:, None]
    return (
        form.value(before + weight * right),
        form.value(after + weight * wrong),
        form.value(before + weight * wrong),
        form.value(after + weight * right),
    )


def _paired(variant: PerSample, before: PerSample) -> tuple[Form, Floats, Floats]:
    if variant.statistics is None or before.statistics is None or variant.form is None:
        raise InputError("the metric's statistics are missing from the evaluation")
    if variant.statistics.shape != before.statistics.shape:
        raise InputError(
            f"the statistics of variant and baseline differ: {variant.statistics.shape}, {before.statistics.shape}"
        )
    return FORMS[variant.form], variant.statistics, before.statistics


def _drop(before: Any, after: Any) -> Floats:
    """Relative; NaN where the baseline's metric is not above 0."""
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    result = np.full(np.broadcast_shapes(before.shape, after.shape), np.nan)
    np.divide(before - after, before, out=result, where=before > 0)
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
    said = f"{name} {'gains' if metric.drop < 0 else 'drops by'} {abs(metric.drop):.2%}"
    sure = f"with {limits.confidence:.0%} confidence (limit {limit:.2%})"
    if verdict == "pass":
        reason = f"{said}; a drop of {metric.drop_upper:.2%} at most {sure}"
        return Gate.of("drop", verdict, metric.drop, metric.drop_upper, limit, reason), None
    if verdict == "fail":
        reason = f"{said}; a drop of {metric.drop_lower:.2%} at least {sure}"
        return Gate.of("drop", verdict, metric.drop, metric.drop_lower, limit, reason), None
    needed = _needed(form, metric.drop, reference, given, limits)
    above = "; the estimate itself is above the limit" if metric.drop > limit else ""
    reason = (
        f"{said}, but {count} {variant.units} leave a drop of {metric.drop_upper:.2%} possible (limit {limit:.2%})"
        f"{above}{advice(needed, count, variant.units)}"
    )
    return Gate.of("drop", verdict, metric.drop, metric.drop_upper, limit, reason), more_than(needed, count)


def _needed(form: Form, drop: float, reference: Floats, given: Floats, limits: Limits) -> int | None:
    """From the spread of the paired drop over the resamples, and from how far one lost sample moves it."""
    count, k = given.shape
    right, wrong = form.extremes(reference)
    moved = _drop(form.value(reference.sum(axis=0) + right), form.value(given.sum(axis=0) + wrong))
    sums, _ = resampled_sums(np.hstack([reference, given]), limits.resamples, limits.seed)
    spread = float(np.nanstd(_drop(form.value(sums[:, :k]), form.value(sums[:, k:]))))
    return samples_to_decide(
        abs(limits.max_drop - drop), spread * float(np.sqrt(count)), count * abs(float(moved) - drop), limits.confidence
    )
