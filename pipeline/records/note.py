"""The verdicts of a job as a Markdown table: the description of its run."""

from __future__ import annotations

from pipeline.figures import (
    VERDICT_WORDS,
    accuracy_name,
    accuracy_of,
    bytes_text,
    chosen_name,
    in_order,
    number_text,
    percent_text,
    times_text,
)
from pipeline.result import RunResult, VariantResult

__all__ = ["NOTE_LIMIT", "note_of"]

NOTE_LIMIT = 4900
"""Characters of a tag that every server takes."""


def note_of(result: RunResult) -> str:
    """The verdicts as a Markdown table, for the run's page."""
    lines = [f"**{_cell(result.message)}**" if result.message else "", ""]
    accuracy = accuracy_name(result) or "accuracy"
    lines.append(f"| variant | verdict | p50 ms | p95 ms | p99 ms | per s | speed-up | {accuracy} | drop ≤ | size |")
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    lines += [_note_row(result, variant) for variant in in_order(result)]
    lines.append("")
    lines += [f"- {variant.name}: {_cell(variant.reason)}" for variant in in_order(result) if variant.reason]
    lines += ["", f"Accuracy was judged on {_cell(result.evidence)}."]
    note = "\n".join(lines)
    return note if len(note) <= NOTE_LIMIT else note[: NOTE_LIMIT - 1] + "…"


def _note_row(result: RunResult, variant: VariantResult) -> str:
    latency, accuracy = variant.latency_ms, accuracy_of(result, variant)
    name = f"**{variant.name}**" if variant.name == chosen_name(result) else variant.name
    drop = accuracy.drop_upper if accuracy is not None else None
    cells = [
        name + (" (baseline)" if variant.baseline else ""),
        VERDICT_WORDS[variant.verdict],
        *(("", "", "") if latency is None else map(number_text, (latency.p50, latency.p95, latency.p99))),
        number_text(variant.throughput_per_s) if variant.throughput_per_s is not None else "",
        times_text(variant.speedup) if variant.speedup is not None else "",
        f"{accuracy.value:.4f}" if accuracy is not None else "",
        percent_text(max(drop, 0), 2) if drop is not None else "",
        bytes_text(variant.size_bytes) if variant.size_bytes is not None else "",
    ]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
