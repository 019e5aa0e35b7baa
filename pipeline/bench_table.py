"""A measured server on the terminal: a line for every number of requests under way at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.figures import NOTHING, number_text
from stages.language.bench import Bench, Level

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_bench"]

_PERCENTILES = ("p50", "p95", "p99")


def print_bench(measured: Bench, console: Console | None = None) -> None:
    """Print it on stdout unless a console is given, 80 columns wide or more."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False)

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    say(f"{measured.model} at {measured.url}", "bold")
    console.print(_table(measured))
    say(_asked(measured), "dim")
    for level in measured.levels:
        if level.errors:
            say(f"{level.errors} of {level.errors + level.requests} failed at concurrency {level.concurrency}, the "
                f"first: {level.first_error}", "red")  # fmt: skip
    for warning in measured.warnings:
        say(f"warning: {warning}", "yellow")


def _table(measured: Bench) -> Table:
    from rich.table import Table

    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    headings = (
        "at\nonce",
        "first token\np50 ms",
        *(f"\n{name}" for name in _PERCENTILES[1:]),
        "per token\np50 ms",
        *(f"\n{name}" for name in _PERCENTILES[1:]),
        "tokens\n/s",
        "requests\n/s",
        "errors\n",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for level in measured.levels:
        table.add_row(*_row(level), style="" if level.requests else "red")
    return table


def _row(level: Level) -> list[str]:
    return [
        str(level.concurrency),
        *_percentiles(level.ttft_ms),
        *_percentiles(level.tpot_ms),
        number_text(level.tokens_per_s),
        number_text(level.requests_per_s),
        str(level.errors),
    ]


def _percentiles(figures: Mapping[str, float] | None) -> list[str]:
    return [NOTHING if figures is None else number_text(figures[name]) for name in _PERCENTILES]


def _asked(measured: Bench) -> str:
    told = [level.prompt_tokens for level in measured.levels if level.prompt_tokens is not None]
    length = f" of {number_text(sum(told) / len(told))} tokens on average" if told else ""
    requests = sum(level.requests for level in measured.levels)
    return (
        f"{requests} requests: prompts{length} from {measured.text}, sent as {measured.prompts}, and "
        f"{measured.asked_tokens} new tokens each; seed {measured.seed}"
    )
