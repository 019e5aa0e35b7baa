"""An explanation on the terminal: the layers in the graph's order, the sensitivity of the groups, the worst samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.explain import Explanation, LayerNoise
from pipeline.figures import NOTHING, VERDICT_WORDS
from pipeline.result import FallbackResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_explanation"]

_WORST = 3
_FALL_DB = 3.0
"""A fall under the lowest ratio so far that is worth telling: the noise has doubled."""
_BAR, _BAR_DB = 12, 48.0
_TEXT = 64


def print_explanation(told: Explanation, console: Console | None = None) -> None:
    """Print it on stdout unless a console is given, 80 to 100 columns wide."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False, soft_wrap=False)

    def say(text: str = "", style: str = "") -> None:
        console.print(Text(text, style=style))

    say(f"{told.variant} of {told.model}, run {told.job_id}: {VERDICT_WORDS[told.verdict]}", "bold")
    if told.reason:
        say(told.reason)
    if told.layers:
        say()
        say(f"Signal to quantisation noise of every layer, cumulative, on {told.samples} of {told.evidence}")
        console.print(_layers(told))
        for name, ratio in told.outputs.items():
            say(f"  {'output ' + name:<50} {_decibels(ratio)} dB", "bold")
        say(f"  ▼ the {_WORST} lowest; falls: how far under the lowest before it", "dim")
    if told.fallback is not None:
        say()
        _print_fallback(told.fallback, console)
    if told.worst:
        say()
        say("The samples that are farthest from the baseline, worst first")
        console.print(_samples(told))
    for missing in told.missing:
        say()
        say(missing, "yellow")


def _table(*columns: tuple[str, bool]) -> Table:
    """Columns by heading, right-aligned or not."""
    from rich.table import Table

    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading, right in columns:
        table.add_column(heading, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def _layers(told: Explanation) -> Table:
    table = _table((" ", False), ("layer", False), ("weights", False), ("dB", True), ("", False), ("falls", True))
    ratios = sorted(layer.sqnr_db for layer in told.layers if layer.sqnr_db is not None)
    worst = ratios[_WORST - 1] if len(ratios) > _WORST else -float("inf")
    lowest: float | None = None
    for layer in told.layers:
        ratio = layer.sqnr_db
        fall = 0.0 if ratio is None or lowest is None else lowest - ratio
        marked = ratio is not None and ratio <= worst
        table.add_row(
            "▼" if marked else " ",
            layer.name,
            _weights(layer),
            _decibels(ratio),
            _bar(ratio),
            f"{fall:.1f}" if fall >= _FALL_DB else "",
            style="red" if marked else "",
        )
        lowest = ratio if lowest is None or fall > 0 else lowest
    return table


def _weights(layer: LayerNoise) -> str:
    return "quantised" if layer.quantised else "returned" if layer.kept else "float"


def _decibels(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{ratio:.1f}"


def _bar(ratio: float | None) -> str:
    share = 0.0 if ratio is None else max(0.0, min(1.0, ratio / _BAR_DB))
    return "█" * round(share * _BAR)


def _print_fallback(search: FallbackResult, console: Console) -> None:
    from rich.text import Text

    if search.sensitivity:
        console.print(
            Text(f"Each group of {search.variant} quantised alone, and the outputs' noise, on {search.samples} samples")
        )
        table = _table((" ", False), ("group", False), ("operators", True), ("dB", True), ("1 - cosine", True))
        for group in search.sensitivity:
            cosine = NOTHING if group.cosine_error is None else f"{group.cosine_error:.2g}"
            mark = "▸" if group.kept else " "
            table.add_row(mark, group.name, str(len(group.operators)), _decibels(group.sqnr_db), cosine)
        console.print(table)
    if search.found:
        console.print(Text(f"  ▸ returned to higher precision in {search.found}", style="dim"))
    tried = ", ".join(f"{trial.groups} {VERDICT_WORDS[trial.verdict]}" for trial in search.trials)
    if tried:
        console.print(Text(f"Groups returned and what the gate said, in the order tried: {tried}"))
    console.print(Text(f"{search.found or 'No variant was found'}: {search.reason}"))


def _samples(told: Explanation) -> Table:
    names = [name for name in ("agreement", "cosine", "relative_error") if name in told.worst[0].figures]
    with_row = any(sample.row is not None for sample in told.worst)
    with_text = any(sample.text for sample in told.worst)
    columns = [
        ("sample", True),
        *([("row", True)] if with_row else []),
        *((name.replace("_", " "), True) for name in names),
    ]
    table = _table((" ", False), *columns, *([("text", False)] if with_text else []))
    for sample in told.worst:
        cells = [str(sample.sample), *([str(sample.row or NOTHING)] if with_row else [])]
        cells += [f"{sample.figures[name]:.4f}" for name in names]
        table.add_row(" ", *cells, *([_shortened(sample.text or NOTHING)] if with_text else []))
    return table


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
