"""What stands where in the trade-off between latency and accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.figures import Accuracy, accuracy_name, accuracy_of, drop_word, in_order
from pipeline.result import Latency, MetricFigures, RunResult, VariantResult
from pipeline.searched import CandidateResult

__all__ = ["Mark", "Point", "accuracy_limit", "dropped", "measured"]

_FIDELITY_LIMITS = {"cosine": "min_cosine", "agreement": "min_agreement"}


@dataclass(frozen=True)
class Point:
    """A variant. `low` and `high`: how far its accuracy may be from what it seems."""

    variant: VariantResult
    latency: Latency
    accuracy: Accuracy
    low: float
    high: float


@dataclass(frozen=True)
class Mark:
    """A candidate that was dropped: where it would stand by its speed beside the baseline and what it lost on few
    samples."""

    candidate: CandidateResult
    latency_ms: float
    accuracy: float


def accuracy_limit(result: RunResult) -> tuple[float, str] | None:
    """The worst accuracy that the gate lets pass, and what the recipe calls it; null where nothing is limited."""
    baseline = _baseline(result)
    if baseline is not None and baseline.metric is not None:
        drop = result.limits.get("max_drop")
        word = drop_word(baseline.metric.name)
        return None if drop is None else (_worse(baseline.metric, drop), f"allowed {word} {100 * drop:g} %")
    limit = result.limits.get(_FIDELITY_LIMITS.get(accuracy_name(result) or "", ""))
    return None if limit is None else (limit, f"at least {limit:g}")


def _baseline(result: RunResult) -> VariantResult | None:
    return next((variant for variant in result.variants if variant.baseline), None)


def measured(result: RunResult) -> list[Point]:
    """The variants of which both latency and accuracy are known."""
    points = []
    baseline = _baseline(result)
    for variant in in_order(result):
        accuracy = accuracy_of(result, variant)
        if variant.latency_ms is None or accuracy is None:
            continue
        low, high = accuracy.low, accuracy.high
        if variant.metric is not None and accuracy.name == variant.metric.name:
            # The gate looks at the paired drop, not at each metric's own, much wider interval; so does the bar.
            low = high = accuracy.value
            if baseline is not None and baseline.metric is not None and accuracy.drop_upper is not None:
                worst = _worse(baseline.metric, accuracy.drop_upper)
                low, high = min(low, worst), max(high, worst) if drop_word(accuracy.name) == "rise" else high
        points.append(Point(variant, _beside(baseline, variant, variant.latency_ms), accuracy, low, high))
    return points


def _worse(metric: MetricFigures, drop: float) -> float:
    """The metric after a relative drop, which for perplexity is a rise."""
    return metric.value * (1 + drop if drop_word(metric.name) == "rise" else 1 - drop)


def _beside(baseline: VariantResult | None, variant: VariantResult, latency: Latency) -> Latency:
    """The median that goes with the others: times of another measurement are scaled as its baseline's would be."""
    if baseline is None or baseline.latency_ms is None or variant.measurement == baseline.measurement:
        return latency
    if variant.speedup is None:
        return latency
    factor = baseline.latency_ms.p50 / variant.speedup / latency.p50
    scaled = {name: factor * getattr(latency, name) for name in ("p50", "p50_low", "p50_high")}
    return latency.model_copy(update=scaled)


def dropped(result: RunResult) -> list[Mark]:
    """The candidates of a search that raced and were dropped."""
    baseline = _baseline(result)
    if baseline is None or baseline.latency_ms is None:
        return []
    marks = []
    for candidate in result.candidates:
        if baseline.metric is not None:
            accuracy = None if candidate.drop is None else _worse(baseline.metric, candidate.drop)
        else:
            accuracy = candidate.fidelity.get(accuracy_name(result) or "")
        if candidate.reached != "full" and candidate.speedup is not None and accuracy is not None:
            marks.append(Mark(candidate, baseline.latency_ms.p50 / candidate.speedup, accuracy))
    return marks
