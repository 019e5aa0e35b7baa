"""The report's tables: variants, stages, data, host and libraries."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pipeline.figures import (
    NOTHING,
    VERDICT_WORDS,
    accuracy_name,
    accuracy_of,
    bytes_text,
    chosen_name,
    drop_word,
    in_order,
    interval_text,
    number_text,
    percent_text,
    rate_name,
    seconds_text,
    slower_here,
    spread_text,
    times_text,
)
from pipeline.report.markup import Html, element, joined
from pipeline.result import RunResult, StageFigures, VariantResult

__all__ = ["data_table", "facts", "fidelity_table", "generation_table", "moment", "stage_table", "variant_table"]

_HOST_WORDS = {"cpu": "processor", "memory_bytes": "memory"}


def variant_table(result: RunResult, colours: Mapping[str, str]) -> Html:
    """Every variant with its figures; below a variant, the reason for its verdict."""
    headings = ["variant", "verdict", "p50 ms", "p95 ms", "p99 ms", rate_name(result), "speed-up"]
    headings += [accuracy_name(result) or "accuracy", "size", "memory", "cold start"]
    head = element(
        "tr", *(element("th", text, class_=None if place < 2 else "figure") for place, text in enumerate(headings))
    )
    rows = joined(_variant_rows(result, variant, headings, colours[variant.name]) for variant in in_order(result))
    return element("table", element("thead", head), element("tbody", rows), class_="cards")


def _variant_rows(result: RunResult, variant: VariantResult, headings: list[str], colour: str) -> Html:
    name = element("strong", variant.name)
    about = [variant.precision, variant.runtime]
    if variant.fused is not None:
        about.append("fused" if variant.fused else "not fused")
    if variant.fused_speedup is not None:
        about.append(f"the fused graph {times_text(variant.fused_speedup)} as fast")
    if variant.kept:
        kept = sum(len(group.operators) for group in variant.kept)
        about.append(f"{kept} of {variant.operators} operators kept in higher precision")
    swatch = element("span", class_=f"swatch {colour}")
    verdict = element("span", VERDICT_WORDS[variant.verdict], class_=f"verdict {variant.verdict}")
    cells = [
        element("td", swatch, name, element("small", ", ".join(about))),
        element("td", verdict, *(element("small", word) for word in _places(result, variant)), class_="short"),
    ]
    figures = _figures(result, variant)
    for heading, (value, note) in zip(headings[2:], figures, strict=True):
        small = element("small", note) if note else None
        cells.append(
            element(
                "td",
                element("span", value or NOTHING),
                small,
                data_label=heading,
                class_="figure" if value else "figure empty",
            )
        )
    chosen = "chosen" if variant.name == chosen_name(result) else ""
    row = element("tr", *cells, class_=f"{chosen}{' reasoned' if variant.reason else ''}".strip() or None)
    if not variant.reason:
        return row
    reason = element("td", variant.reason, colspan=str(len(headings)))
    return joined([row, element("tr", reason, class_=f"reason {chosen}".strip())])


def _places(result: RunResult, variant: VariantResult) -> list[str]:
    """What a variant is among the others, its verdict aside."""
    words = ["baseline"] if variant.baseline else []
    return [*words, "on the front"] if len(result.front) > 1 and variant.name in result.front else words


def _figures(result: RunResult, variant: VariantResult) -> list[tuple[str | None, str | None]]:
    figures: list[tuple[str | None, str | None]]
    latency = variant.latency_ms
    if latency is None:
        figures = [(None, None)] * 3
    else:
        figures = [
            (number_text(latency.p50), spread_text(latency, "p50")),
            (number_text(latency.p95), spread_text(latency, "p95")),
            (number_text(latency.p99), spread_text(latency, "p99")),
        ]
    figures.append((None if variant.throughput_per_s is None else number_text(variant.throughput_per_s), None))
    slower = "slower here" if slower_here(variant) else None
    figures.append((None if variant.speedup is None else times_text(variant.speedup), slower))
    accuracy = accuracy_of(result, variant)
    if accuracy is None:
        figures.append((None, None))
    elif accuracy.drop_upper is not None:
        figures.append(
            (f"{accuracy.value:.4f}", f"{drop_word(accuracy.name)} ≤ {percent_text(max(accuracy.drop_upper, 0), 2)}")
        )
    else:
        figures.append((f"{accuracy.value:.4f}", interval_text(accuracy.low, accuracy.high)))
    size, memory, cold = variant.size_bytes, variant.peak_memory_bytes, variant.cold_start_ms
    figures.append((None if size is None else bytes_text(size), None))
    figures.append((None if memory is None else bytes_text(memory), None))
    figures.append((None if cold is None else seconds_text(cold / 1000), None))
    return figures


def fidelity_table(result: RunResult) -> Html | None:
    """Fidelity to the baseline's outputs, all measures of it; null where none was measured."""
    measured = [variant for variant in in_order(result) if variant.fidelity and not variant.baseline]
    names = sorted({name for variant in measured for name in variant.fidelity})
    if not names:
        return None
    head = element(
        "tr", element("th", "variant"), *(element("th", name.replace("_", " "), class_="figure") for name in names)
    )
    rows = []
    for variant in measured:
        cells = [element("td", variant.name)]
        for name in names:
            interval = variant.fidelity.get(name)
            value = NOTHING if interval is None else f"{interval.value:.5f}"
            note = None if interval is None else element("small", interval_text(interval.low, interval.high, 5))
            cells.append(element("td", element("span", value), note, class_="figure", data_label=name))
        rows.append(element("tr", *cells))
    return element("table", element("thead", head), element("tbody", *rows), class_="cards snug")


def tasks_table(result: RunResult) -> Html | None:
    """What each variant scores in the tasks of the suite; null where there was none."""
    measured = [variant for variant in in_order(result) if variant.tasks]
    if not measured:
        return None
    titles = [f"{task.task}, {task.name}" for task in measured[0].tasks]
    head = element("tr", element("th", "variant"), *(element("th", title, class_="figure") for title in titles))
    rows = []
    for variant in measured:
        cells = [element("td", variant.name)]
        for title, task in zip(titles, variant.tasks, strict=True):
            if variant.baseline:
                note = f"{interval_text(task.low, task.high)} on {task.samples:,}"
            else:
                note = f"drop ≤ {percent_text(max(task.drop_upper, 0), 2)}: {task.verdict}"
            value = element("span", f"{task.value:.4f}")
            cells.append(element("td", value, element("small", note), class_="figure", data_label=title))
        rows.append(element("tr", *cells))
    return element("table", element("thead", head), element("tbody", *rows), class_="cards snug")


def generation_table(result: RunResult) -> Html | None:
    """Prefill and decode apart, by batch size and length of the prompt; null where nothing generates."""
    measured = [variant for variant in in_order(result) if variant.generation]
    if not measured:
        return None
    headings = ["batch", "prompt", "first token ms", "per token ms", "prefill tokens/s", "decode tokens/s"]
    head = element("tr", element("th", "variant"), *(element("th", text, class_="figure") for text in headings))
    rows = []
    for variant in measured:
        for requests in variant.generation:
            figures: list[tuple[str, str | None]] = [
                (str(requests.batch_size), None),
                ("mixed" if requests.prompt_tokens is None else str(requests.prompt_tokens), None),
                (number_text(requests.ttft_ms.p50), f"p99 {number_text(requests.ttft_ms.p99)}"),
                (number_text(requests.tpot_ms.p50), f"p99 {number_text(requests.tpot_ms.p99)}"),
                (number_text(requests.prefill_tokens_per_s), None),
                (number_text(requests.decode_tokens_per_s), None),
            ]
            cells = [
                element(
                    "td",
                    element("span", value),
                    element("small", note) if note else None,
                    class_="figure",
                    data_label=heading,
                )
                for heading, (value, note) in zip(headings, figures, strict=True)
            ]
            rows.append(element("tr", element("td", variant.name), *cells))
    return element("table", element("thead", head), element("tbody", *rows), class_="cards snug")


def stage_table(result: RunResult) -> Html:
    """Every step with its time as a bar; where it was not made now, that is said; of measurements when and where."""
    longest = max((stage.seconds for stage in result.stages), default=1.0) or 1.0
    head = element(
        "tr",
        element("th", "step"),
        element("th", ""),
        element("th", "time", class_="figure"),
        element("th", "peak memory", class_="figure"),
        element("th", ""),
    )
    rows = []
    for stage in result.stages:
        width = f"width: {100 * stage.seconds / longest:.1f}%"
        memory = stage.peak_memory_bytes
        rows.append(
            element(
                "tr",
                element("td", stage.name),
                element(
                    "td",
                    element("span", class_=f"meter{' reused' if stage.cached else ''}", style=width),
                    class_="track",
                ),
                element("td", element("span", seconds_text(stage.seconds)), class_="figure", data_label="time"),
                element(
                    "td",
                    element("span", NOTHING if memory is None else bytes_text(memory)),
                    data_label="peak memory",
                    class_="figure" if memory is not None else "figure empty",
                ),
                element("td", _provenance(stage), class_="note"),
            )
        )
    return element("table", element("thead", head), element("tbody", *rows), class_="cards")


def _provenance(stage: StageFigures) -> str:
    words = ["from the store"] if stage.cached else []
    if stage.measured_at is not None:
        words.append(f"measured {moment(stage.measured_at)}")
    if stage.measured_on is not None:
        words.append(f"on {stage.measured_on}")
    if stage.cached and stage.measured_at is not None:
        return "reused: " + " ".join(words[1:])
    return " ".join(words)


def data_table(result: RunResult) -> Html | None:
    """The data sets with their digests; null where there were none."""
    if not result.data:
        return None
    head = element("tr", *(element("th", text) for text in ("data", "used for", "samples", "SHA-256 of the samples")))
    rows = [
        element(
            "tr",
            element("td", data.name, element("small", data.source) if data.source != data.name else None),
            element("td", data.role),
            element(
                "td", element("span", f"{data.samples:,}".replace(",", " ")), class_="figure", data_label="samples"
            ),
            element("td", element("code", data.digest)),
        )
        for data in result.data
    ]
    return element("table", element("thead", head), element("tbody", *rows), class_="cards")


def facts(values: Mapping[str, object]) -> Html:
    """Names and values beside each other."""
    return element(
        "dl",
        *(
            joined([element("dt", _HOST_WORDS.get(name, name.replace("_", " "))), element("dd", _value(name, value))])
            for name, value in values.items()
            if value is not None
        ),
        class_="facts",
    )


def _value(name: str, value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, int) and name.endswith("_bytes"):
        return bytes_text(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def moment(text: str) -> str:
    """`2026-11-22 10:01 UTC` of an ISO 8601 date; the text itself if it is none."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text
