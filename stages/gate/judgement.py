"""Limits, and what a judgement says."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "FidelityFigures",
    "Gate",
    "Judgement",
    "Limits",
    "MetricFigures",
    "Verdict",
    "advice",
    "more_than",
    "verdict_on",
]

Verdict = Literal["pass", "fail", "inconclusive"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    """What a variant must keep. None: no such gate.

    `max_drop`: of the metric, relative to the baseline's (0.01 = 1 %); of perplexity, the rise. Without truth:
    `min_agreement` for classifiers, else `min_cosine`, and for models that answer with single numbers
    `max_relative_error`, each a mean over samples. Latency and `min_speedup` are those of `batch_size`. `confidence` is
    that of the one-sided bounds.
    """

    max_drop: float = Field(default=0.01, ge=0)
    min_cosine: float = Field(default=0.99, ge=-1, le=1)
    min_agreement: float = Field(default=0.99, ge=0, le=1)
    max_relative_error: float = Field(default=0.01, ge=0)
    max_p50_ms: float | None = Field(default=None, gt=0)
    max_p95_ms: float | None = Field(default=None, gt=0)
    max_p99_ms: float | None = Field(default=None, gt=0)
    min_speedup: float | None = Field(default=None, gt=0)
    max_size_bytes: int | None = Field(default=None, gt=0)
    max_peak_memory_bytes: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=1, ge=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=2000, ge=200)
    seed: int = 0


class Gate(_Frozen):
    """One condition. `bound` is the figure's one-sided bound that decided (on the bad side for `pass` and
    `inconclusive`, on the good side for `fail`); None where there is none, or where nothing was measured."""

    name: str
    verdict: Verdict
    value: float | None
    bound: float | None
    limit: float | None
    reason: str

    @classmethod
    def of(
        cls, name: str, verdict: Verdict, value: float | None, bound: float | None, limit: float | None, reason: str
    ) -> Gate:
        return cls(name=name, verdict=verdict, value=value, bound=bound, limit=limit, reason=reason)


class FidelityFigures(_Frozen):
    """The mean over the samples and its two-sided interval."""

    value: float
    low: float
    high: float


class MetricFigures(_Frozen):
    """The variant's metric with its two-sided interval, and its drop relative to the baseline's, as a fraction, with
    one-sided bounds. The drop of a metric that is better when lower is its rise."""

    name: str
    value: float
    low: float
    high: float
    drop: float
    drop_lower: float
    drop_upper: float


class Judgement(_Frozen):
    """The verdict over all gates: `fail` if one fails, else `inconclusive` if one is, else `pass`.

    `samples_needed`: about how many samples (or queries, pairs, windows) in all would decide an inconclusive accuracy
    gate.
    """

    verdict: Verdict
    reason: str
    gates: tuple[Gate, ...]
    metric: MetricFigures | None = None
    fidelity: dict[str, FidelityFigures] = {}
    samples_needed: int | None = None


def verdict_on(lower: float, upper: float, limit: float) -> Verdict:
    """For a figure that must not exceed `limit`. A NaN decides nothing."""
    return "pass" if upper <= limit else "fail" if lower > limit else "inconclusive"


def advice(needed: int | None, count: int, units: str) -> str:
    if needed is None:
        return ""
    total = max(needed, count + 1)
    return f"; about {total:,} {units} would decide ({total - count:,} more)"


def more_than(needed: int | None, count: int) -> int | None:
    return None if needed is None else max(needed, count + 1)
