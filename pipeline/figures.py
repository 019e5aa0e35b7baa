"""How figures are written for people, in the terminal's table, the report and the records alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.result import Latency, RunResult, VariantResult

__all__ = [
    "NOTHING",
    "VERDICT_WORDS",
    "Accuracy",
    "accuracy_name",
    "accuracy_of",
    "bytes_text",
    "chosen_name",
    "drop_word",
    "headline_batch",
    "in_order",
    "interval_text",
    "number_text",
    "percent_text",
    "rate_name",
    "seconds_text",
    "several_runtimes",
    "slower_here",
    "spread_text",
    "times_text",
]

VERDICT_WORDS = {
    "pass": "pass",
    "fail": "fail",
    "inconclusive": "inconclusive",
    "error": "error",
    "not_run": "not run",
}

NOTHING = "\N{EN DASH}"
"""Stands where a figure was not measured."""

_FIDELITIES = ("agreement", "cosine", "relative_error")
"""Which fidelity stands for all of them where no metric was measured: the one nearest to the user's question first."""


def number_text(value: float) -> str:
    """Three significant digits without an exponent: `0.0432`, `4.31`, `43.1`, `431`, `12 345`."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    for limit, digits in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3)):
        if size >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def bytes_text(value: int) -> str:
    """Decimal units: `22.1 MB`."""
    size, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{value} B" if unit == "B" else f"{number_text(size)} {unit}"


def seconds_text(value: float) -> str:
    """`43 ms`, `4.31 s`, `12 min 5 s`."""
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 90:
        return f"{number_text(value)} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s"


def percent_text(fraction: float, digits: int = 1) -> str:
    """`0.9 %`; never `-0.0 %`."""
    text = f"{100 * fraction:.{digits}f}"
    return f"{text.removeprefix('-') if float(text) == 0 else text} %"


def spread_text(latency: Latency, percentile: Literal["p50", "p95", "p99"]) -> str:
    """Half the 95 % interval of a percentile, relative to it: `±2 %`. The wider half where it is lopsided."""
    value, low, high = (getattr(latency, f"{percentile}{end}") for end in ("", "_low", "_high"))
    if value <= 0:
        return ""
    half = max(high - value, value - low) / value
    return f"±{100 * half:.0f} %" if half >= 0.0095 else f"±{100 * half:.1f} %"


def times_text(value: float) -> str:
    """`2.85×`."""
    return f"{value:.2f}\N{MULTIPLICATION SIGN}"


def interval_text(low: float, high: float, digits: int = 4) -> str:
    """`0.8430–0.9010`."""
    return f"{low:.{digits}f}\N{EN DASH}{high:.{digits}f}"


def drop_word(metric: str) -> str:
    """What a metric does when it gets worse: perplexity rises, the others drop."""
    return "rise" if metric == "perplexity" else "drop"


@dataclass(frozen=True)
class Accuracy:
    """What a variant is judged by: a task's metric, or the fidelity to the baseline's outputs where there is none."""

    name: str
    value: float
    low: float
    high: float
    drop: float | None = None
    drop_upper: float | None = None


def accuracy_name(result: RunResult) -> str | None:
    """What the variants of this run are compared by; null where nothing was measured."""
    for variant in result.variants:
        if variant.metric is not None:
            return variant.metric.name
    measured = {name for variant in result.variants for name in variant.fidelity}
    return next((name for name in (*_FIDELITIES, *sorted(measured)) if name in measured), None)


def rate_name(result: RunResult) -> str:
    """What throughput counts: generated tokens of language models, samples of all others."""
    return "tokens/s" if any(variant.generation for variant in result.variants) else "per s"


def accuracy_of(result: RunResult, variant: VariantResult) -> Accuracy | None:
    """The figure named by `accuracy_name` for one variant; null where it was not measured."""
    name = accuracy_name(result)
    metric = variant.metric
    if metric is not None and metric.name == name:
        drop, upper = (None, None) if variant.baseline else (metric.drop, metric.drop_upper)
        return Accuracy(name, metric.value, metric.low, metric.high, drop, upper)
    if name is not None and name in variant.fidelity:
        interval = variant.fidelity[name]
        return Accuracy(name, interval.value, interval.low, interval.high)
    return None


def in_order(result: RunResult) -> list[VariantResult]:
    """The variants, the baseline first, the others as the run had them."""
    return sorted(result.variants, key=lambda variant: not variant.baseline)


def headline_batch(result: RunResult) -> int:
    """The batch size that the variants' `latency_ms` is of; 1 where nothing was measured."""
    for variant in result.variants:
        for batch in variant.batches:
            if batch.latency_ms == variant.latency_ms:
                return batch.batch_size
    return 1


def chosen_name(result: RunResult) -> str | None:
    """The variant that was selected, published or about to be."""
    return result.release.variant if result.release is not None else result.chosen


def several_runtimes(result: RunResult) -> bool:
    """Whether the variants of this run have different runtimes."""
    return len({variant.runtime for variant in result.variants}) > 1


def slower_here(variant: VariantResult) -> bool:
    """Whether a variant is known to be slower than the baseline at the first batch size."""
    narrow = next((batch for batch in variant.batches if batch.latency_ms == variant.latency_ms), None)
    speedup = narrow.speedup if narrow is not None else None
    return speedup is not None and speedup.high is not None and speedup.high < 1
