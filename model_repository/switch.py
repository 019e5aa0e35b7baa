"""Making another version current, so that a crash at any point leaves the old state or the new one.

A writer notes in the history what it begins, moves a new release into place, replaces `config.pbtxt`, and notes that it
is done. All that takes space is written before the first of these steps. The model's directory must be `locked`.
"""

from __future__ import annotations

from pathlib import Path

from model_repository.durable import sync_directory, write_file
from model_repository.history import HISTORY, Event, History
from model_repository.layout import CONFIG
from model_repository.lock import Incoming, sweep

__all__ = ["RELEASE", "recover", "switch"]

RELEASE = "release"
"""Within an `Incoming`: what becomes the version directory."""


def switch(home: Path, incoming: Incoming, event: Event, text: bytes) -> None:
    """Make the version of `event` current with the configuration `text`; a published one comes out of `incoming`."""
    history = History.read(home).begin(event)
    for name, content in (("begun", history.encode()), (CONFIG, text), ("done", history.finish().encode())):
        write_file(incoming.path / name, content)
    sync_directory(incoming.path)
    (incoming.path / "begun").replace(home / HISTORY)
    sync_directory(home)
    if event.action == "publish":
        (incoming.path / RELEASE).rename(home / str(event.version))
        sync_directory(home)
    (incoming.path / CONFIG).replace(home / CONFIG)
    sync_directory(home)
    (incoming.path / "done").replace(home / HISTORY)
    sync_directory(home)


def recover(home: Path) -> None:
    """Finish or take back what a writer had begun when it died, and remove what it left."""
    sweep(home)
    history = History.read(home)
    begun = history.pending
    if begun is None:
        return
    own = home / str(begun.version)
    with Incoming(home) as incoming:
        if _same_bytes(own / CONFIG, home / CONFIG):
            history = history.finish()
        else:
            if begun.action == "publish" and own.exists():
                own.rename(incoming.path / RELEASE)  # and is removed with it
                sync_directory(home)
            history = history.abandon()
        write_file(incoming.path / HISTORY, history.encode())
        (incoming.path / HISTORY).replace(home / HISTORY)
        sync_directory(home)


def _same_bytes(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()
