"""The report's page: what was published and why, then the evidence, from the verdicts down to the library versions."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.figures import (
    bytes_text,
    headline_batch,
    in_order,
    percent_text,
    seconds_text,
)
from pipeline.report.batches import latency_by_batch, throughput_by_batch
from pipeline.report.distributions import distributions
from pipeline.report.headline import headline
from pipeline.report.markup import Html, element, joined
from pipeline.report.scatter import scatter
from pipeline.report.search import search_table
from pipeline.report.sensitivity import kept_table, sensitivity_chart, trials_text
from pipeline.report.style import AGAIN, COLOURS, STYLE
from pipeline.report.tables import (
    data_table,
    facts,
    fidelity_table,
    generation_table,
    stage_table,
    tasks_table,
    variant_table,
)
from pipeline.result import FallbackResult, RunResult, VariantResult
from stages.errors import InputError

__all__ = ["report_page", "write_report"]

_WIDE, _NARROW, _HALF = 960, 358, 468


def write_report(result: RunResult, path: Path, latencies: Path | None = None) -> None:
    """Write the report to `path`.

    `latencies` is an `.npz` with an array of milliseconds for every `<form>/<batch size>`; without it there is no
    chart of distributions. Raises `InputError` if it cannot be read.
    """
    times: dict[str, NDArray[Any]] = {}
    if latencies is not None:
        try:
            with np.load(latencies, allow_pickle=False) as arrays:
                times = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{latencies} holds no latencies ({error})") from error
    # A new file takes the old one's place: a record may hold a hard link to the old one.
    written = path.with_name(f".{path.name}.{os.getpid()}")
    written.write_text(report_page(result, times), encoding="utf-8")
    written.replace(path)


def report_page(result: RunResult, latencies: Mapping[str, NDArray[Any]] | None = None) -> str:
    """The whole HTML document. `latencies`: milliseconds by `<form>/<batch size>`."""
    variants = in_order(result)
    colours = _colours(variants)
    title = f"{result.model}: {result.message}"
    body = element(
        "main",
        headline(result),
        *(element("p", warning, class_="warning") for warning in result.warnings),
        _verdicts(result, colours),
        _trade_off(result, colours),
        _search(result),
        *(_sensitivity(told) for told in result.fallbacks),
        _distributions(result, colours, latencies or {}),
        _batches(variants, colours),
        _generation(result),
        _tasks(result),
        _evidence(result),
        _steps(result),
        _surroundings(result),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE),
    )
    return f"<!doctype html>\n{element('html', head, element('body', body), lang='en')}\n"


def _colours(variants: list[VariantResult]) -> dict[str, str]:
    """Classes by variant: grey for the baseline, and for the others each colour once, then each again with dashes."""
    colours = {variant.name: COLOURS[0] for variant in variants if variant.baseline}
    for place, variant in enumerate(variant for variant in variants if not variant.baseline):
        turn, own = divmod(place, len(COLOURS) - 1)
        colours[variant.name] = COLOURS[1 + own] + (f" {AGAIN}" if turn else "")
    return colours


def _both(draw: Callable[[int], Html | None], wide: int = _WIDE) -> Html | None:
    """A chart drawn twice, for wide and for narrow windows, so that its letters are never scaled down."""
    broad, slim = draw(wide), draw(_NARROW)
    if broad is None or slim is None:
        return None
    return element("figure", element("div", broad, class_="wide"), element("div", slim, class_="narrow"))


def _section(title: str, *content: Html | None, note: str | None = None) -> Html | None:
    if all(part is None for part in content):
        return None
    return element("section", element("h2", title), element("p", note, class_="note") if note else None, *content)


def _verdicts(result: RunResult, colours: Mapping[str, str]) -> Html | None:
    if not result.variants:
        return None
    return _section(
        "Variants",
        variant_table(result, colours),
        note=f"Batch size {headline_batch(result)}. ± is half the 95 % interval. "
        "Only a variant that passes can be published.",
    )


def _trade_off(result: RunResult, colours: Mapping[str, str]) -> Html | None:
    chart = _both(lambda width: scatter(result, colours, width))
    metric = any(variant.metric is not None for variant in result.variants)
    bars = "the vertical bar reaches down to the 95 % bound of the paired drop" if metric else "bars: 95 % intervals"
    note = f"A disc's area is the size of the model; {bars}; discs with a broken outline did not pass."
    if len(result.front) > 1:
        note += (
            " The line is the Pareto front: names in grey did not pass, or are beaten in speed, size and nearness to "
        )
        note += "the baseline together."
    if any(candidate.reached == "race" for candidate in result.candidates):
        note += " Crosses are candidates that were dropped, by what little was measured of them."
    return _section("Latency against accuracy", chart, note=note)


def _search(result: RunResult) -> Html | None:
    full = sum(candidate.reached == "full" for candidate in result.candidates)
    note = f"{len(result.candidates)} candidates, {full} of them measured in full: the variants above. "
    note += "Few samples and a short race beside the baseline decided over the others."
    return _section("Search", search_table(result), note=note)


def _sensitivity(told: FallbackResult) -> Html | None:
    chart = _both(lambda width: sensitivity_chart(told, width))
    note = f"Each group of operators quantised alone, on {told.samples} samples. {trials_text(told)}"
    return _section(f"What {told.variant} loses where", chart, kept_table(told), note=note)


def _distributions(result: RunResult, colours: Mapping[str, str], latencies: Mapping[str, NDArray[Any]]) -> Html | None:
    batch = headline_batch(result)
    rows = [
        (variant.name, latencies[key])
        for variant in in_order(result)
        if (key := f"{variant.form or variant.name}/{batch}") in latencies
    ]
    chart = _both(lambda width: distributions(rows, colours, batch, width))
    note = "Density of the times of single calls, each scaled to its own height; the marks are p50, p95 and p99."
    return _section("Latency distributions", chart, note=note)


def _batches(variants: list[VariantResult], colours: Mapping[str, str]) -> Html | None:
    latency = _both(lambda width: latency_by_batch(variants, colours, width), _HALF)
    throughput = _both(lambda width: throughput_by_batch(variants, colours, width), _HALF)
    if latency is None or throughput is None:
        return None
    legend = element(
        "ul",
        *(
            element("li", element("span", class_=f"swatch {colours[variant.name]}"), variant.name)
            for variant in variants
            if len(variant.batches) > 1
        ),
        class_="legend",
    )
    restless = [
        f"{variant.name} at batch {batch.batch_size} (±{percent_text(batch.relative_interval / 2, 1)})"
        for variant in variants
        for batch in variant.batches
        if not batch.settled
    ]
    note = f"Not settled when the time was up: {', '.join(restless)}." if restless else None
    return _section("By batch size", legend, element("div", latency, throughput, class_="pair"), note=note)


def _generation(result: RunResult) -> Html | None:
    tokens = next((variant.generation[0].new_tokens for variant in result.variants if variant.generation), 0)
    runtimes = sorted({variant.runtime for variant in result.variants if variant.generation})
    note = f"Requests of {tokens} new tokens, measured in this process ({', '.join(runtimes)}), not in a server."
    return _section("Prefill and decode", generation_table(result), note=note)


def _evidence(result: RunResult) -> Html | None:
    limits = {name.replace("_", " "): f"{value:g}" for name, value in result.limits.items()}
    judged = element("p", f"Accuracy was judged on {result.evidence}.") if result.evidence else None
    return _section("Evidence", judged, facts(limits) if limits else None, data_table(result), fidelity_table(result))


def _tasks(result: RunResult) -> Html | None:
    note = "Each task has a gate of its own, and a variant must pass them all."
    return _section("Tasks", tasks_table(result), note=note)


def _steps(result: RunResult) -> Html | None:
    if not result.stages:
        return None
    peak = f", highest memory {bytes_text(result.peak_memory_bytes)}" if result.peak_memory_bytes else ""
    note = f"This run took {seconds_text(result.seconds)}{peak}. Steps from the store show what they took when made."
    return _section("Steps", stage_table(result), note=note)


def _surroundings(result: RunResult) -> Html | None:
    record = result.mlflow
    origin: dict[str, object] = {
        "model": result.source,
        "its digest": result.source_digest,
        "job": result.job_id,
        "release digest": result.release.digest if result.release else None,
        "MLflow": record.tracking_uri if record else None,
        "experiment": record.experiment if record else None,
        "run": record.run_id if record else None,
    }
    columns = [
        element("div", element("h3", "Host"), facts(result.host)) if result.host else None,
        element("div", element("h3", "Libraries"), facts(result.libraries)) if result.libraries else None,
    ]
    return _section("Where it comes from", facts(origin), element("div", joined(columns), class_="columns"))
