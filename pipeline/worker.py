"""Workers: each step runs in a process of its own, so that its crash, hang or hunger for memory ends only that step.

Workers are forked from a server process that has imported the heavy libraries once (multiprocessing's forkserver).
They die with the run, also when the run is killed, and what they print goes to a log file.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from calibration.errors import DataError
from model_repository.errors import RepositoryError, ServerError
from pipeline.store import Made
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.progress import Progress

__all__ = ["MEANT", "WorkerError", "preload", "run_in_worker"]

MEANT = (StageError, InputError, RequirementError, DataError, RepositoryError, ServerError)
"""What a stage raises on purpose. Anything else is a bug."""

_CONTEXT = multiprocessing.get_context("forkserver")


class WorkerError(Exception):
    """A stage raised something that is none of the errors a stage is meant to raise: a bug. Its traceback is a note."""


@dataclass(frozen=True)
class _Raised:
    error: Exception
    trace: str


def preload(modules: Sequence[str]) -> None:
    """Name the modules that are imported once, before the first worker is forked. Later calls change nothing."""
    _CONTEXT.set_forkserver_preload(list(modules))


def run_in_worker(
    function: Callable[..., Artifact],
    inputs: Mapping[str, Artifact],
    options: BaseModel,
    out: Path,
    progress: Progress,
    *,
    log: Path,
    timeout_s: float,
) -> Made:
    """Call `function(**inputs, options=…, out=…, progress=…)` in a worker and wait for it.

    Raises what the stage raises; `StageError` if the worker was killed, crashed or took longer than `timeout_s`
    seconds; `WorkerError` for any other exception.
    """
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(theirs, function, dict(inputs), options, out, log), daemon=False)
    started = time.monotonic()
    process.start()
    theirs.close()
    try:
        outcome = _listen(ours, process.sentinel, progress, started + timeout_s)
        if outcome is None and time.monotonic() >= started + timeout_s:
            raise StageError(f"no result after {timeout_s:.0f} s: the worker was stopped")
        process.join(10)
    finally:
        _end(process)
        ours.close()
    if isinstance(outcome, _Raised):
        outcome.error.add_note(outcome.trace)
        raise outcome.error
    if outcome is None:
        raise StageError(_why_it_died(process.exitcode, log))
    return outcome


def _listen(connection: Connection, sentinel: int, progress: Progress, deadline: float) -> Made | _Raised | None:
    """Pass progress on until the worker gives its outcome, dies or runs out of time (None)."""
    while True:
        ready = wait([connection, sentinel], max(0.0, deadline - time.monotonic()))
        if connection in ready:
            try:
                message = connection.recv()
            except EOFError:
                return None
            if isinstance(message, (Made, _Raised)):
                return message
            progress.update(*message)
        else:  # dead, or out of time
            return None


def _end(process: Any) -> None:
    """Make sure that the worker and what it started are gone, also what outlived it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nobody of its group is left, or it has not made its group yet
        if process.is_alive():
            process.kill()
    process.join()


def _why_it_died(exit_code: int | None, log: Path) -> str:
    if exit_code is None or exit_code >= 0:
        why = f"the worker ended with code {exit_code} and gave no result"
    else:
        name = signal.Signals(-exit_code).name
        hint = "; most likely the system was out of memory" if name == "SIGKILL" else ""
        why = f"the worker was killed by {name}{hint}"
    return f"{why}; what it printed is in {log}"


class _Sender:
    """Progress that is sent to the parent, at most every 50 ms."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = 0.0

    def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
        now = time.monotonic()
        if now - self._last >= 0.05:
            self._last = now
            self._connection.send((note, done, total))


def _work(
    connection: Connection,
    function: Callable[..., Artifact],
    inputs: dict[str, Artifact],
    options: BaseModel,
    out: Path,
    log: Path,
) -> None:
    """The worker's life."""
    os.setpgrp()  # Ctrl-C reaches the run, which ends its workers; a stage's own children end with the group
    threading.Thread(target=_die_with_the_run, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    started = time.monotonic()
    try:
        function(**inputs, options=options, out=out, progress=_Sender(connection))
    except MEANT as error:
        connection.send(_Raised(type(error)(str(error)), traceback.format_exc()))
    except MemoryError:
        connection.send(_Raised(StageError("out of memory"), traceback.format_exc()))
    except OSError as error:
        # A full disk is the user's matter, and `Store.make` says what to do; anything else is told as it is.
        told = OSError(error.errno, error.strerror, error.filename)
        connection.send(_Raised(told, traceback.format_exc()))
    except Exception as error:  # noqa: BLE001 - the parent raises it again as a WorkerError
        bug = WorkerError(f"{type(error).__name__} in the stage {function.__name__}: {error}")
        connection.send(_Raised(bug, traceback.format_exc()))
    else:
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
        peak = max(_peak_memory_bytes(), children.ru_maxrss * 1024)
        connection.send(Made(time.monotonic() - started, cpu, peak))
    finally:
        connection.close()
        sys.stdout.flush()
        sys.stderr.flush()


def _die_with_the_run() -> None:
    """End this worker and all that it has started as soon as the run is gone, however it went.

    The kernel's parent-death signal would not do: a worker's parent is the fork server, which lives as long as any of
    its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _peak_memory_bytes() -> int:
    """The largest resident set that this process has had (`VmHWM`), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
