"""What a finished run says on the terminal: the variants beside the baseline, their verdicts, what follows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.figures import (
    NOTHING,
    VERDICT_WORDS,
    accuracy_name,
    accuracy_of,
    bytes_text,
    chosen_name,
    drop_word,
    headline_batch,
    in_order,
    interval_text,
    number_text,
    percent_text,
    rate_name,
    seconds_text,
    several_runtimes,
    slower_here,
    spread_text,
    times_text,
)
from pipeline.records.address import comparison_page, table_page
from pipeline.result import RunResult, VariantResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["print_result"]

_STYLES = {
    "pass": "green",
    "fail": "red",
    "inconclusive": "yellow",
    "error": "bold red",
    "not_run": "dim",
}
_FIGURES_WIDTH = 59
"""What the columns beside the names take."""
_FIDELITY_HEADINGS = {"relative_error": "rel. error"}


def print_result(result: RunResult, console: Console | None = None) -> None:
    """Print the table and the lines below it, on stderr unless a console is given. No colours but on a terminal."""
    if console is None:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
    if result.variants:
        console.print()
        console.print(_table(result, console.width))
        for further in (_generation(result, console.width), _tasks(result, console.width)):
            if further is not None:
                console.print()
                console.print(further)
    for line in _lines(result):
        console.print(line, soft_wrap=not console.is_terminal)


def _table(result: RunResult, width: int) -> Table:
    from rich.box import Box
    from rich.table import Table

    names = max(14, min(30, width - _FIGURES_WIDTH))
    # One rule under the heading and nothing else: the figures are the picture.
    rule = Box("    \n    \n ── \n    \n    \n    \n    \n    \n", ascii=False)
    table = Table(box=rule, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", width=1)
    table.add_column("variant\nverdict", min_width=14, max_width=names, overflow="fold")
    for percentile in ("p50", "p95", "p99"):
        table.add_column(f"{percentile}\nms", justify="right", no_wrap=True)
    table.add_column(f"{rate_name(result)}\nspeed-up", justify="right", no_wrap=True)
    table.add_column(_accuracy_heading(result), no_wrap=True)
    table.add_column("size\nmemory", justify="right", no_wrap=True)
    for variant in in_order(result):
        chosen = variant.name == chosen_name(result)
        table.add_row("▸" if chosen else "", *_row(result, variant, chosen, names))
    return table


def _accuracy_heading(result: RunResult) -> str:
    name = accuracy_name(result)
    if name is None:
        return "accuracy\n"
    has_drop = any(variant.metric is not None for variant in result.variants)
    return f"{_FIDELITY_HEADINGS.get(name, name)}\n{f'interval, {drop_word(name)}' if has_drop else 'interval'}"


def _row(result: RunResult, variant: VariantResult, chosen: bool, width: int) -> list[Text]:
    from rich.text import Text

    name = Text(_broken(variant.name, width), style="bold" if chosen else "")
    if variant.baseline:
        name.append(" (baseline)", style="not bold dim")
    verdict = Text(VERDICT_WORDS[variant.verdict], style=_STYLES[variant.verdict])
    verdict.append("".join(f" · {word}" for word in _circumstances(result, variant)), style="not bold dim")
    cells = [Text("\n").join([name, verdict])]

    def pair(upper: str | None, lower: str | None) -> None:
        cells.append(Text("\n").join([Text(upper or NOTHING), Text(lower or "", style="dim")]))

    latency = variant.latency_ms
    if latency is None:
        for _ in range(3):
            pair(None, None)
    else:
        pair(number_text(latency.p50), spread_text(latency, "p50"))
        pair(number_text(latency.p95), spread_text(latency, "p95"))
        pair(number_text(latency.p99), spread_text(latency, "p99"))
    per_second, speedup = variant.throughput_per_s, variant.speedup
    pair(
        None if per_second is None else number_text(per_second),
        None if speedup is None else times_text(speedup),
    )
    accuracy = accuracy_of(result, variant)
    if accuracy is None:
        pair(None, None)
    elif accuracy.drop_upper is not None:
        pair(f"{accuracy.value:.4f}", f"{drop_word(accuracy.name)} ≤ {percent_text(max(accuracy.drop_upper, 0), 2)}")
    else:
        pair(f"{accuracy.value:.4f}", interval_text(accuracy.low, accuracy.high))
    size, memory = variant.size_bytes, variant.peak_memory_bytes
    pair(None if size is None else bytes_text(size), None if memory is None else bytes_text(memory))
    return cells


def _circumstances(result: RunResult, variant: VariantResult) -> list[str]:
    """What ran it, where that is not the same for all, and which graph it was made from."""
    words = [variant.runtime] if several_runtimes(result) else []
    if variant.fused or (variant.fused is not None and not words):
        words.append("fused" if variant.fused else "unfused")
    return words


def _broken(name: str, width: int) -> str:
    """A name that is too long for its column, broken behind hyphens."""
    lines = [""]
    for part in re.findall(r"[^-+]*[-+]?", name):
        if len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _lines(result: RunResult) -> list[Text]:
    from rich.text import Text

    lines = []
    reasons = [variant for variant in in_order(result) if variant.reason]
    if result.variants:
        lines.append(Text())
    if headline_batch(result) != 1:
        lines.append(Text(f"  latency is that of batches of {headline_batch(result)}", style="dim"))
    for variant in reasons:
        line = Text("  ")
        line.append(VERDICT_WORDS[variant.verdict], style=_STYLES[variant.verdict])
        line.append(f"  {variant.name}: {variant.reason}")
        lines.append(line)
    if reasons:
        lines.append(Text())
    lines.extend(_slower(result))
    lines.extend(_search(result))
    if result.release is not None:
        lines.append(_release_line(result))
    else:
        lines.append(Text(result.message, style="bold red"))
    lines.extend(_whereabouts(result))
    lines.extend(Text(f"warning: {warning}", style="yellow") for warning in result.warnings)
    return lines


def _tasks(result: RunResult, width: int) -> Table | None:
    """What each variant scores in the tasks of the suite; null where there was none."""
    from rich.table import Table

    if not any(variant.tasks for variant in result.variants):
        return None
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("variant", max_width=max(14, width - 62), overflow="fold")
    table.add_column("task", max_width=24, overflow="fold")
    for heading in ("metric", "score", "drop ≤"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for variant in in_order(result):
        for place, task in enumerate(variant.tasks):
            drop = NOTHING if variant.baseline else percent_text(max(task.drop_upper, 0), 2)
            verdict = "baseline" if variant.baseline else task.verdict
            score = f"{task.value:.4f}"
            table.add_row(variant.name if place == 0 else "", task.task, task.name, score, drop, verdict)
    return table


def _generation(result: RunResult, width: int) -> Table | None:
    """Prefill and decode apart, for language models; null where nothing generates."""
    from rich.table import Table

    if not any(variant.generation for variant in result.variants):
        return None
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("variant", max_width=max(14, width - 66), overflow="fold")
    for heading in ("batch", "prompt", "first token ms", "p99", "per token ms", "p99", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for variant in in_order(result):
        for place, requests in enumerate(variant.generation):
            table.add_row(
                variant.name if place == 0 else "",
                str(requests.batch_size),
                "mixed" if requests.prompt_tokens is None else str(requests.prompt_tokens),
                number_text(requests.ttft_ms.p50),
                number_text(requests.ttft_ms.p99),
                number_text(requests.tpot_ms.p50),
                number_text(requests.tpot_ms.p99),
                number_text(requests.decode_tokens_per_s),
            )
    return table


def _slower(result: RunResult) -> list[Text]:
    """What gains no speed here, whatever it is good for elsewhere."""
    from rich.text import Text

    slow = [variant for variant in in_order(result) if slower_here(variant)]
    if not slow:
        return []
    told = ", ".join(f"{variant.name} {times_text(variant.speedup)}" for variant in slow if variant.speedup is not None)
    return [Text(f"slower here than the baseline: {told}", style="yellow")]


def _search(result: RunResult) -> list[Text]:
    """Of how many candidates the variants are what was left, and which of them are worth having."""
    from rich.text import Text

    lines = []
    if result.candidates:
        late = [candidate.name for candidate in result.candidates if candidate.reached == "none"]
        full = sum(candidate.reached == "full" for candidate in result.candidates)
        words = f"searched  {len(result.candidates)} candidates, {full} measured in full"
        words += f"; not tried, the time was up: {', '.join(late)}" if late else ""
        lines.append(Text(words))
    if len(result.front) > 1:
        lines.append(Text(f"front     {', '.join(result.front)}"))
    return lines


def _release_line(result: RunResult) -> Text:
    from rich.text import Text

    release = result.release
    assert release is not None
    done = "published" if release.new else "already published:"
    checked = "served out by Triton and compared" if release.verified else "not verified"
    return Text(
        f"{done} {release.model} version {release.version} ({release.variant}) in {release.repository}, {checked}"
    )


def _whereabouts(result: RunResult) -> list[Text]:
    from rich.text import Text

    lines = []
    record = result.mlflow
    if record is not None and record.spooled is not None:
        text = f"mlflow    not recorded yet: {record.spooled}; `optimize records sync` delivers it later"
        lines.append(Text(text, style="yellow"))
    elif record is not None:
        seen = [f"optimize ui --tracking-uri {record.tracking_uri}  (experiment {record.experiment})"]
        if record.url is not None:
            seen = [comparison_page(record.url, result.job_id), f"{table_page(record.url)}  (as a table)"]
        lines += [Text(f"mlflow    {line}") for line in seen]
    if result.report is not None:
        lines.append(Text(f"report    {result.report}"))
    lines.append(Text(f"took      {seconds_text(result.seconds)}", style="dim"))
    return lines
