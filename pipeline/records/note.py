"""What a person reads first of a job and of a registered version: one sentence with its figures, and the verdicts.

Others read it on another machine, so it names no folder of this one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pipeline.figures import (
    VERDICT_WORDS,
    Accuracy,
    accuracy_name,
    accuracy_of,
    bytes_text,
    chosen_name,
    drop_word,
    in_order,
    number_text,
    percent_text,
    rate_name,
    times_text,
)
from pipeline.result import GenerationFigures, RunResult, VariantResult

__all__ = ["NOTE_LIMIT", "headline", "note_of", "without_folders"]

NOTE_LIMIT = 4900
"""Characters of a tag that every server takes."""

_QUOTED = re.compile(r"(['\"`])(?:~|file://|sqlite:///)?/[^'\"`\n]*/(?=[^/'\"`\n])")
_PLAIN = re.compile(r"(?<![\w:/.~-])(?:~|file://|sqlite:///)?/(?:[^\s/'\"`()\[\]<>,;:|]+/)+(?=[^\s/'\"`()\[\]<>,;:|])")
"""The folders of an absolute path: between quotation marks also with spaces in them. An address is none."""

_Column = tuple[str, Callable[[VariantResult], str | None]]


def headline(result: RunResult) -> str:
    """What came of a run in a sentence or two: the variant, what it gains and what it may lose, and who answered from
    it. `result.message` is for the person at the terminal, and names folders."""
    if result.status == "failed":
        return without_folders(result.message)
    chosen = next((variant for variant in result.variants if variant.name == chosen_name(result)), None)
    if result.status != "published" or chosen is None:
        return "No variant passed its gates: nothing was published."
    baseline = next((variant for variant in result.variants if variant.baseline), chosen)
    name = f"{chosen.name} (the baseline)" if chosen.baseline else chosen.name
    figures = [*_speed(chosen, baseline), *_quality(accuracy_of(result, chosen)), *_size(chosen, baseline)]
    sentence = f"{name} of {result.model}" + (f": {', '.join(figures)}." if figures else ".")
    release = result.release
    if release is not None:
        served = "Triton has served and whose answers were compared" if release.verified else "no server has loaded yet"
        sentence += f" Release {release.model}/{release.version}, which {served}."
    return sentence


def _speed(chosen: VariantResult, baseline: VariantResult) -> list[str]:
    words = []
    if chosen.speedup is not None and not chosen.baseline:
        words.append(f"{times_text(chosen.speedup)} the speed of {baseline.name}")
    if chosen.generation:
        if chosen.throughput_per_s is not None:
            words.append(f"{number_text(chosen.throughput_per_s)} tokens/s")
    elif chosen.latency_ms is not None:
        words.append(f"p95 {number_text(chosen.latency_ms.p95)} ms")
    return words


def _quality(accuracy: Accuracy | None) -> list[str]:
    if accuracy is None:
        return []
    value = f"{accuracy.name} {accuracy.value:.4f}"
    if accuracy.drop_upper is None:
        return [value]
    return [f"{value} (a {drop_word(accuracy.name)} of {percent_text(max(accuracy.drop_upper, 0), 2)} at most)"]


def _size(chosen: VariantResult, baseline: VariantResult) -> list[str]:
    if chosen.size_bytes is None:
        return []
    words = bytes_text(chosen.size_bytes)
    if not chosen.baseline and baseline.size_bytes is not None:
        words += f" instead of {bytes_text(baseline.size_bytes)}"
    return [words]


def note_of(result: RunResult, running: bool = False) -> str:
    """The headline and the verdicts as a Markdown table, for the run's page. A figure that no variant has is no column.

    `running`: what will come of it is not known yet.
    """
    said = "" if running else headline(result)
    lines = [f"**{_cell(said)}**" if said else "", ""]
    variants = in_order(result)
    columns = [
        (heading, cells) for heading, cells in ((name, [*map(cell, variants)]) for name, cell in _columns(result))
        if any(cells)
    ]  # fmt: skip
    names = [_name(result, variant) for variant in variants]
    verdicts = [VERDICT_WORDS[variant.verdict] for variant in variants]
    lines.append(_row("variant", "verdict", *(_cell(heading) for heading, _ in columns)))
    lines.append("|---|---" + "|--:" * len(columns) + "|")
    for place, (name, verdict) in enumerate(zip(names, verdicts, strict=True)):
        lines.append(_row(name, verdict, *(cells[place] or "" for _, cells in columns)))
    lines.append("")
    lines += [f"- {variant.name}: {_cell(variant.reason)}" for variant in variants if variant.reason]
    if accuracy_name(result) is not None:
        lines += ["", f"Accuracy was judged on {_cell(result.evidence)}."]
    note = "\n".join(lines)
    return note if len(note) <= NOTE_LIMIT else note[: NOTE_LIMIT - 1] + "…"


def _row(first: str, *others: str) -> str:
    # MLflow draws tables without any space between the columns: `22 464` and `1.00×` would be one number.
    return f"| {' | '.join([first, *(f'&nbsp;{cell}' for cell in others)])} |"


def _columns(result: RunResult) -> list[_Column]:
    """Headings, and what stands below them: of requests and tokens for language models, of samples for others."""
    generates = any(variant.generation for variant in result.variants)
    accuracy = accuracy_name(result) or "accuracy"

    def percentile(name: str) -> Callable[[VariantResult], str | None]:
        return lambda variant: None if variant.latency_ms is None else number_text(getattr(variant.latency_ms, name))

    def generated(figure: Callable[[GenerationFigures], float]) -> Callable[[VariantResult], str | None]:
        return lambda variant: number_text(figure(variant.generation[0])) if variant.generation else None

    def value(variant: VariantResult) -> str | None:
        found = accuracy_of(result, variant)
        return None if found is None else f"{found.value:.4f}"

    def drop(variant: VariantResult) -> str | None:
        found = accuracy_of(result, variant)
        return None if found is None or found.drop_upper is None else percent_text(max(found.drop_upper, 0), 2)

    columns: list[_Column] = [(f"{name} ms", percentile(name)) for name in ("p50", "p95", "p99")]
    if generates:
        columns += [
            ("first token ms", generated(lambda requests: requests.ttft_ms.p50)),
            ("per token ms", generated(lambda requests: requests.tpot_ms.p50)),
        ]
    columns += [
        (rate_name(result), lambda variant: _or_none(number_text, variant.throughput_per_s)),
        ("speed-up", lambda variant: _or_none(times_text, variant.speedup)),
        (accuracy, value),
        (f"{drop_word(accuracy)} ≤", drop),
        ("size", lambda variant: None if variant.size_bytes is None else bytes_text(variant.size_bytes)),
    ]
    return columns


def _or_none(words: Callable[[float], str], figure: float | None) -> str | None:
    return None if figure is None else words(figure)


def _name(result: RunResult, variant: VariantResult) -> str:
    name = f"**{variant.name}**" if variant.name == chosen_name(result) else variant.name
    return name + (" (baseline)" if variant.baseline else "")


def without_folders(text: str) -> str:
    """The text with absolute paths cut to their last name: `/home/me/x/model.onnx` is `…/model.onnx`."""
    return _PLAIN.sub("…/", _QUOTED.sub(r"\1…/", text))


def _cell(text: str) -> str:
    return without_folders(text).replace("|", "\\|").replace("\n", " ")
