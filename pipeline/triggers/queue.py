"""The queue of work. Each piece is there once; what a dead process had taken is taken again.

A process that works holds a file lock, which the kernel lets go when it dies, however it dies. A piece that is marked
as running but whose lock is free has no owner any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.triggers.database import connect, transaction
from pipeline.triggers.work import State, Work

__all__ = ["Claim", "Queue", "Row"]

ATTEMPTS = 3
"""How often a piece of work may take its process down before it counts as failed."""


@dataclass(frozen=True)
class Row:
    """A piece of work and what has become of it. Times are Unix seconds; `registered` is `model/version`."""

    work: Work
    state: State
    attempts: int
    asked_at: float
    changed_at: float
    seconds: float | None
    exit_code: int | None
    message: str
    variant: str | None
    release: str | None
    registered: str | None


@dataclass(frozen=True)
class Claim:
    """Work that was taken. `lock` is the descriptor that holds it: whoever has it open owns the work."""

    work: Work
    attempt: int
    lock: int


class Queue:
    """The queue in `folder`. Use one object in one thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connection = connect(folder)
        (folder / "locks").mkdir(exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """What is done inside is done whole or not at all."""
        return transaction(self.connection)

    def put(self, work: Work, *, again: bool = False, state: State = "queued", registered: str | None = None) -> bool:
        """Keep work that is to be done. Returns whether there is something new to do.

        Work that is there already stays as it is, unless `again`: then it is done once more if it was done. With the
        state `done` it is only noted: somebody else has done it (`registered` says what came of it).
        """
        now = time.time()
        with self.transaction():
            added = self.connection.execute(
                "insert into work (key, registry, model, version, why, recipe_name, recipe, state, asked_at,"
                " changed_at, registered) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (key) do nothing",
                (work.key, work.registry, work.model, work.version, work.why, work.recipe_name,
                 json.dumps(work.recipe), state, now, now, registered),
            )  # fmt: skip
            if added.rowcount:
                return state == "queued"
            if not again:
                return False
            reopened = self.connection.execute(
                "update work set state = 'queued', attempts = 0, not_before = 0, why = ?, asked_at = ?, changed_at = ?"
                " where key = ? and state = 'done'",
                (work.why, now, now, work.key),
            )
            return reopened.rowcount > 0

    def retry(self, registry: str) -> int:
        """Queue what has failed once more; returns how many."""
        with self.transaction():
            return self.connection.execute(
                "update work set state = 'queued', attempts = 0, not_before = 0, changed_at = ?"
                " where state = 'failed' and registry = ?",
                (time.time(), registry),
            ).rowcount

    def claim(self, registry: str, models: frozenset[str] | None = None) -> Claim | None:
        """Take the oldest work of a registry that is due (of these models only); null if there is none."""
        with self.transaction():
            self._recover(registry)
            due = self.connection.execute(
                "select * from work where state = 'queued' and registry = ? and not_before <= ? order by seq",
                (registry, time.time()),
            ).fetchall()
            for row in due:
                if models is not None and row["model"] not in models:
                    continue
                lock = self._try_lock(row["key"])
                if lock is None:
                    continue
                self.connection.execute(
                    "update work set state = 'running', attempts = attempts + 1, changed_at = ? where key = ?",
                    (time.time(), row["key"]),
                )
                return Claim(_work(row), row["attempts"] + 1, lock)
        return None

    def finish(
        self,
        key: str,
        state: State,
        message: str,
        *,
        exit_code: int = 0,
        seconds: float | None = None,
        variant: str | None = None,
        release: str | None = None,
        registered: str | None = None,
    ) -> None:
        """Note how work has ended."""
        with self.transaction():
            self.connection.execute(
                "update work set state = ?, message = ?, exit_code = ?, seconds = ?, changed_at = ?,"
                " variant = coalesce(?, variant), release = coalesce(?, release),"
                " registered = coalesce(?, registered) where key = ?",
                (state, message, exit_code, seconds, time.time(), variant, release, registered, key),
            )

    def give_back(self, key: str, reason: str, *, delay_s: float = 0.0, counts: bool = True) -> None:
        """Put running work back in its place, for the time after `delay_s`; without `counts` the attempt never was.

        What has taken its process down too often has failed.
        """
        with self.transaction():
            self.connection.execute(
                "update work set state = 'queued', message = ?, not_before = ?, changed_at = ?, attempts = attempts - ?"
                " where key = ? and state = 'running'",
                (reason, time.time() + delay_s, time.time(), 0 if counts else 1, key),
            )
            self._give_up()

    def find(self, key: str) -> Row | None:
        """The row of a key."""
        row = self.connection.execute("select * from work where key = ?", (key,)).fetchone()
        return None if row is None else _row(row)

    def rows(self) -> list[Row]:
        """Everything, in the order it was asked for."""
        return [_row(row) for row in self.connection.execute("select * from work order by seq")]

    def waiting(self, registry: str, models: frozenset[str] | None = None) -> bool:
        """Whether any work of these models is still to be done, now or later, and nobody is at it."""
        with self.transaction():
            self._recover(registry)
        found = self.connection.execute(
            "select distinct model from work where state = 'queued' and registry = ?", (registry,)
        ).fetchall()
        return any(models is None or row["model"] in models for row in found)

    def _recover(self, registry: str) -> None:
        """Queue the work of owners that are dead."""
        running = self.connection.execute("select key from work where state = 'running' and registry = ?", (registry,))
        for row in running.fetchall():
            lock = self._try_lock(row["key"])
            if lock is not None:
                os.close(lock)
                self.give_back(row["key"], "the process that worked on it died")

    def _give_up(self) -> None:
        self.connection.execute(
            "update work set state = 'failed', exit_code = 1, changed_at = ?,"
            " message = 'given up after ' || attempts || ' attempts: ' || message"
            " where state = 'queued' and attempts >= ?",
            (time.time(), ATTEMPTS),
        )

    def _try_lock(self, key: str) -> int | None:
        descriptor = os.open(self.folder / "locks" / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _work(row: sqlite3.Row) -> Work:
    return Work(
        key=row["key"],
        registry=row["registry"],
        model=row["model"],
        version=row["version"],
        why=row["why"],
        recipe_name=row["recipe_name"],
        recipe=json.loads(row["recipe"]),
    )


def _row(row: sqlite3.Row) -> Row:
    told = ("state", "attempts", "asked_at", "changed_at", "seconds", "exit_code", "message")
    results = ("variant", "release", "registered")
    return Row(work=_work(row), **{name: row[name] for name in (*told, *results)})
