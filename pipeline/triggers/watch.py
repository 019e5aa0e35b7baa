"""The watch: look at the registry, do what it asks for, a process for each piece of work, and look again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.triggers.backoff import Backoff
from pipeline.triggers.child import Order
from pipeline.triggers.inbox import Inbox
from pipeline.triggers.poll import Watched, look
from pipeline.triggers.queue import Queue, Row
from pipeline.triggers.registry import Registry, RegistryAwayError
from pipeline.triggers.rules import Rules
from pipeline.triggers.text import one_line
from pipeline.units import Bytes, Seconds
from stages.errors import InputError

__all__ = ["Round", "WatchOptions", "watch"]

_CHILD = "from pipeline.triggers.child import main; main()"
_TICK_S = 0.5
_PATIENCE_S = 20.0
"""How long work that is told to end may take before it is killed."""
_RETRY_S = 5.0


class WatchOptions(BaseModel):
    """How to watch. `folder` holds queue, cursor and inbox, `store` the finished steps. `repository` takes the place of
    what the recipes say. `interval` lies between two looks; while the registry is away the time between them grows to
    `longest_wait`. `max_download`: the files of one version. `local_files`: a server may name folders of this machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    store: Path
    rules: Rules = Rules()
    watched: Watched = Watched()
    tracking_uri: str | None = None
    repository: Path | None = None
    interval: Seconds = Field(60.0, gt=0)
    longest_wait: Seconds = Field(600.0, gt=0)
    jobs: int = Field(1, ge=1)
    max_download: Bytes = Field(50_000_000_000, ge=0)
    local_files: bool = False

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> WatchOptions:
        """Options from plain values. Raises `InputError`."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from error


@dataclass
class Round:
    """What came of one round: the work that ended in this process, and by model what was wrong with it."""

    rows: list[Row] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0: all was done, or there was nothing to do. Else the gravest: 1 a bug, 5 something is missing here, 4 a
        stage failed, 2 a model, a recipe or data are wrong, 3 no variant passed its gates."""
        codes = {row.exit_code or 0 for row in self.rows} | ({2} if self.problems else set())
        return next((code for code in (1, 5, 4, 2, 3) if code in codes), 0)


@dataclass
class _Running:
    row: Row
    process: subprocess.Popen[bytes]
    log: Path


def watch(options: WatchOptions, say: Callable[[str], None], *, once: bool = False) -> Round:
    """Watch until interrupted, or with `once` until there is nothing left to do. `say` gets every line for people.

    With `once` raises `RegistryAwayError` if the registry cannot be reached; else that is told once, and asked again
    later and later. Work that goes on when this ends is ended too and stays in the queue.
    """
    with Queue(options.folder) as queue:
        watcher = _Watcher(options, queue, say, once)
        try:
            return watcher.watch()
        finally:
            watcher.stop()


class _Watcher:
    def __init__(self, options: WatchOptions, queue: Queue, say: Callable[[str], None], once: bool) -> None:
        self._options, self._queue, self._once = options, queue, once
        # What the registry says of itself may hold what a terminal would obey.
        self._say: Callable[[str], None] = lambda text: say(one_line(text))
        self._registry = Registry(options.tracking_uri)
        self._inbox = Inbox(queue.connection)
        self._backoff = Backoff(min(options.interval, _RETRY_S), options.longest_wait)
        self._running: list[_Running] = []
        self._round = Round()
        self._told: set[str] = set()
        self._next_look = 0.0
        self._away = False

    def watch(self) -> Round:
        """Go on until nothing is left to do (`once`) or for ever."""
        looked = False
        while True:
            self._reap()
            hints = self._inbox.open_hints()
            if time.monotonic() >= self._next_look and not (self._once and looked):
                self._look(None)
                looked = True
            elif hints and not self._away and not self._once:
                self._look(set(hints.values()))
            self._start()
            if self._once and not self._running and not self._queue.waiting(self._registry.name, self._models()):
                return self._round
            time.sleep(_TICK_S)

    def stop(self) -> None:
        """End what runs, and put it back in its place."""
        for running in self._running:
            running.process.terminate()
        deadline = time.monotonic() + _PATIENCE_S
        for running in self._running:
            try:
                running.process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
            self._queue.give_back(running.row.work.key, "the watch was ended", counts=False)
        self._running = []

    def _models(self) -> frozenset[str] | None:
        models = self._options.watched.models
        return None if models is None else frozenset(models)

    def _look(self, only: set[str] | None) -> None:
        """Look at all that is watched, or at those that hints name. A hint is done with when that was looked at."""
        options = self._options
        hints = self._inbox.open_hints()
        try:
            found = look(self._registry, self._queue, options.rules, options.watched, options.repository, only)
        except RegistryAwayError as error:
            if self._once:
                raise
            delay = self._backoff.failed()
            self._next_look = time.monotonic() + delay
            if not self._away:
                self._say(f"{error}; asking again, less and less often")
            self._away = True
            return
        if self._away:
            self._say(f"MLflow at {self._registry.name} is back")
        self._away = False
        self._backoff.succeeded()
        if only is None:
            self._next_look = time.monotonic() + options.interval
            self._round.problems = found.problems
        self._inbox.close_hints(key for key, model in hints.items() if only is None or model in only)
        for problem in found.problems.values():
            if problem not in self._told:
                self._told.add(problem)
                self._say(problem)
        for key in found.new:
            row = self._queue.find(key)
            assert row is not None
            self._say(
                f"{row.work.model} {row.work.version}: {row.work.why}, queued with the recipe {row.work.recipe_name}"
            )

    def _start(self) -> None:
        while not self._away and len(self._running) < self._options.jobs:
            claim = self._queue.claim(self._registry.name, self._models())
            if claim is None:
                return
            row = self._queue.find(claim.work.key)
            assert row is not None
            log = self._options.folder / "logs" / f"{claim.work.key}.log"
            try:
                with log.open("ab") as stream:
                    process = subprocess.Popen(
                        [sys.executable, "-P", "-c", _CHILD, str(os.getpid()), str(claim.lock)],
                        stdin=subprocess.PIPE, stdout=stream, stderr=stream, start_new_session=True,
                        pass_fds=(claim.lock,),
                    )  # fmt: skip
            finally:
                os.close(claim.lock)  # the child holds it now
            self._running.append(_Running(row, process, log))
            self._say(f"{row.work.model} {row.work.version}: started (attempt {claim.attempt}; log: {log})")
            _send(process, self._order(claim.work.key))

    def _order(self, key: str) -> Order:
        options = self._options
        return Order(
            key=key,
            folder=options.folder.absolute(),
            store=options.store.absolute(),
            tracking_uri=self._registry.tracking_uri,
            champion=options.watched.champion,
            max_download_bytes=options.max_download,
            local_files=options.local_files,
        )

    def _reap(self) -> None:
        """Tell of what has ended. Work whose process left it as running was killed, and is tried again."""
        for running in [running for running in self._running if running.process.poll() is not None]:
            self._running.remove(running)
            key, code = running.row.work.key, running.process.returncode
            row = self._queue.find(key)
            assert row is not None
            if row.state == "running":
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                delay = 0.0 if self._once else _RETRY_S * 2.0 ** (row.attempts - 1)
                self._queue.give_back(key, f"its process ended with {how} (log: {running.log})", delay_s=delay)
                row = self._queue.find(key)
                assert row is not None
            name = f"{row.work.model} {row.work.version}"
            self._say(f"{name}: {row.state}: {row.message}" if row.message else f"{name}: {row.state}")
            if row.state != "queued":
                if self._once:  # for ever would be too long a list
                    self._round.rows.append(row)
            elif row.attempts < running.row.attempts:
                # The attempt did not count, for the registry was away: look at it again before the work is taken up.
                if self._once:
                    raise RegistryAwayError(row.message)
                self._look(None)


def _send(process: subprocess.Popen[bytes], order: Order) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(order.model_dump_json().encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it died at once, which is told when it is reaped
