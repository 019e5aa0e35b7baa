"""A comparison on the terminal: the figures with their intervals, then each difference and whether it is real."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.compare.comparison import Compared, Comparison
from pipeline.compare.difference import Difference
from pipeline.figures import NOTHING, VERDICT_WORDS, bytes_text, number_text, percent_text, times_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["print_comparison"]

_DASH = "\N{EN DASH}"
_STYLES = {True: "bold", False: "dim", None: "dim"}


def print_comparison(told: Comparison, console: Console | None = None) -> None:
    """Print on stdout unless a console is given: it is what was asked for. No colours but on a terminal."""
    if console is None:
        from rich.console import Console

        console = Console(highlight=False)
    from rich.text import Text

    letters = _letters(told)
    for letter, one in letters.items():
        line = Text(f"{letter}  {one.name}")
        line.append(f"  {one.reference}, {VERDICT_WORDS[one.verdict]}", style="dim")
        console.print(line, soft_wrap=True)
    console.print()
    console.print(_figures(told))
    console.print(Text(f"batch size {told.batch_size}; intervals of 95 %", style="dim"))
    notes = list(dict.fromkeys(one.note for one in told.differences))
    for letter, one in list(letters.items())[1:]:
        found = [difference for difference in told.differences if difference.of == one.reference]
        console.print()
        console.print(Text(f"{letter} beside {next(iter(letters))}", style="bold"))
        console.print(_differences(found, notes))
    console.print()
    for number, note in enumerate(notes, 1):
        console.print(Text(f"{number}  {note}", style="dim"), soft_wrap=not console.is_terminal)


def _letters(told: Comparison) -> dict[str, Compared]:
    return {_letter(place): one for place, one in enumerate(told.compared)}


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"Z{place - 25}"


def _figures(told: Comparison) -> Table:
    """What was measured, each with its interval below it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    metric = next((one.metric.name for one in told.compared if one.metric is not None), None)
    for heading in ("p50 ms", "p95 ms", "speed-up", metric or "", "size"):
        if heading:
            table.add_column(heading, justify="right", no_wrap=True)
    for letter, one in _letters(told).items():
        cells = [_latency(one, "p50"), _latency(one, "p95"), _speedup(one)]
        if metric is not None:
            cells.append(_metric(one))
        cells.append(Text(NOTHING if one.size_bytes is None else bytes_text(one.size_bytes)))
        table.add_row(letter, *cells)
    return table


def _pair(value: str, low: str | None, high: str | None) -> Text:
    from rich.text import Text

    text = Text(value)
    if low is not None and high is not None:
        text.append(f"\n{low}{_DASH}{high}", style="dim")
    return text


def _latency(one: Compared, name: str) -> Text:
    if one.latency_ms is None:
        return _pair(NOTHING, None, None)
    value, low, high = (getattr(one.latency_ms, f"{name}{end}") for end in ("", "_low", "_high"))
    return _pair(number_text(value), number_text(low), number_text(high))


def _speedup(one: Compared) -> Text:
    if one.baseline:
        return _pair("baseline", None, None)
    if one.speedup is None:
        return _pair(NOTHING, None, None)
    ends = [None if end is None else f"{end:.2f}" for end in (one.speedup.low, one.speedup.high)]
    return _pair(times_text(one.speedup.value), *ends)


def _metric(one: Compared) -> Text:
    if one.metric is None:
        return _pair(NOTHING, None, None)
    return _pair(f"{one.metric.value:.4f}", f"{one.metric.low:.4f}", f"{one.metric.high:.4f}")


def _differences(found: list[Difference], notes: list[str]) -> Table:
    """`notes` are told once, by their numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_edge=False, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in found:
        style = _STYLES[one.real]
        table.add_row(
            one.figure,
            _pair_in_line(one),
            Text(_word(one), style=style),
            Text(str(notes.index(one.note) + 1), style="dim"),
        )
    return table


def _pair_in_line(one: Difference) -> str:
    if one.value is None:
        return NOTHING
    write = times_text if one.kind == "ratio" else lambda value: percent_text(value, 2)
    if one.low is None or one.high is None:
        return write(one.value)
    return f"{write(one.value)} ({write(one.low)} to {write(one.high)})"


def _word(one: Difference) -> str:
    if one.real is None:
        return "cannot be told" if one.value is None else "no interval"
    if not one.real:
        return "no difference shown"
    if one.kind == "drop":
        return "real" if one.value is None else ("really worse" if one.value > 0 else "really better")
    assert one.value is not None
    if one.figure == "speed":
        return "really faster" if one.value > 1 else "really slower"
    return "really less" if one.value < 1 else "really more"
