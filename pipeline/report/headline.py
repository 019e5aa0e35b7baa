"""The head of the report: what came of the run, and the figures of the chosen variant."""

from __future__ import annotations

from pipeline.figures import (
    accuracy_name,
    accuracy_of,
    bytes_text,
    chosen_name,
    drop_word,
    interval_text,
    number_text,
    percent_text,
    times_text,
)
from pipeline.report.markup import Html, element
from pipeline.report.tables import moment
from pipeline.result import RunResult

__all__ = ["headline"]


def headline(result: RunResult) -> Html:
    """The heading, with what was published and where."""
    release = result.release
    if release is not None:
        title = f"{release.model} version {release.version}: {release.variant}"
        place = f"{'Published' if release.new else 'Already published'} in {release.repository}. "
        place += (
            "A Triton server has loaded it and its answers were compared."
            if release.verified
            else "It was not verified with a server."
        )
    else:
        title = f"{result.model}: nothing was published"
        place = None
    when = f"{moment(result.started_at)}, " if result.started_at else ""
    kicker = f"{when}{result.task}, target {result.target}, objective {result.objective}"
    return element(
        "header",
        element("p", kicker, class_="kicker"),
        element("h1", title),
        element("p", result.message, class_="lead"),
        element("p", place, class_="note") if place else None,
        _key_figures(result),
    )


def _key_figures(result: RunResult) -> Html | None:
    chosen = next((variant for variant in result.variants if variant.name == chosen_name(result)), None)
    if chosen is None:
        return None
    baseline = next((variant for variant in result.variants if variant.baseline), None)
    entries: list[tuple[str, str, str]] = []
    if chosen.latency_ms is not None:
        before = ""
        if baseline is not None and baseline.latency_ms is not None and baseline is not chosen:
            before = f"{number_text(baseline.latency_ms.p50)} ms in {baseline.name}"
        entries.append(("latency p50", f"{number_text(chosen.latency_ms.p50)} ms", before))
    if chosen.speedup is not None and not chosen.baseline:
        entries.append(("speed-up", times_text(chosen.speedup), f"over {baseline.name}" if baseline else ""))
    accuracy = accuracy_of(result, chosen)
    if accuracy is not None:
        note = interval_text(accuracy.low, accuracy.high)
        if accuracy.drop_upper is not None:
            note = f"{drop_word(accuracy.name)} at most {percent_text(max(accuracy.drop_upper, 0), 2)}"
            if "max_drop" in result.limits:
                note += f", {percent_text(result.limits['max_drop'], 2)} allowed"
        entries.append((accuracy_name(result) or "", f"{accuracy.value:.4f}", note))
    if chosen.size_bytes is not None:
        share = ""
        if baseline is not None and baseline.size_bytes and baseline is not chosen:
            share = f"{percent_text(chosen.size_bytes / baseline.size_bytes, 0)} of {baseline.name}"
        entries.append(("size", bytes_text(chosen.size_bytes), share))
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", note) if note else None))
            for name, value, note in entries
        ),
        class_="key",
    )
