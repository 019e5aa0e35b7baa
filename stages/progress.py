"""The small object through which a stage tells how far it is."""

from __future__ import annotations

from typing import Protocol

__all__ = ["SILENT", "Progress"]


class Progress(Protocol):
    """Receives reports of a stage's progress."""

    def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
        """Say what is being done (`note`) and, where it is known, that `done` of `total` is finished."""


class _Silent:
    def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
        pass


SILENT: Progress = _Silent()
