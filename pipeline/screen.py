"""What a person sees while a run goes on: a live line on a terminal, plain lines otherwise, all on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from stages.progress import SILENT, Progress

__all__ = ["QUIET", "Screen", "TerminalScreen"]


class Screen(Protocol):
    """Receives what the runner does."""

    def step(self, name: str) -> contextlib.AbstractContextManager[Progress]:
        """A step is being made, for as long as the context is open."""

    def done(self, name: str, seconds: float, cached: bool, note: str = "") -> None:
        """A step is there."""

    def failed(self, name: str, reason: str) -> None:
        """A step has failed."""

    def say(self, text: str) -> None:
        """Anything else worth a line."""


class _Quiet:
    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Progress]:
        yield SILENT

    def done(self, name: str, seconds: float, cached: bool, note: str = "") -> None:
        pass

    def failed(self, name: str, reason: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass


QUIET: Screen = _Quiet()


class TerminalScreen:
    """Writes to stderr through rich; the live line is shown only on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Progress]:
        from rich.markup import escape

        if not self._console.is_terminal:
            yield SILENT
            return
        with self._console.status(escape(name), spinner="dots") as status:

            class Live:
                def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
                    share = f" {100 * done / total:.0f} %" if done is not None and total else ""
                    status.update(escape(f"{name}: {note}{share}"))

            yield Live()

    def done(self, name: str, seconds: float, cached: bool, note: str = "") -> None:
        from rich.markup import escape

        time = "[dim]   cached[/]" if cached else f"{seconds:7.1f} s"
        self._console.print(f"  [green]✓[/] {escape(name):<26} {time}  [dim]{escape(note)}[/]".rstrip())

    def failed(self, name: str, reason: str) -> None:
        from rich.markup import escape

        self._console.print(f"  [red]✗[/] {escape(name):<26} {escape(reason)}")

    def say(self, text: str) -> None:
        from rich.markup import escape

        self._console.print(escape(text))
