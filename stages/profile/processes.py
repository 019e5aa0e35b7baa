"""The measured processes, seen from the one that coordinates: one is asked at a time, the others stand still."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stages.errors import StageError
from stages.profile.calls import Calls
from stages.profile.measured import Job, Work
from stages.runtime import RuntimeOptions

__all__ = ["MeasuredProcesses", "Processes"]

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from stages.profile.measured import main; main(int(sys.argv[2]))"
)
_LAST_WORDS_S = 10.0
_START_S = 120.0


class _Parent:
    """A process that has imported one engine, and a fork of it for every variant of that engine."""

    def __init__(self, work: Work, models: Mapping[str, Path]) -> None:
        self.pids: dict[str, int] = {}
        self._models = models
        self._work = work
        self._ended: dict[str, int] = {}
        pairs = {name: socket.socketpair() for name in models}
        ours, theirs = socket.socketpair()
        self._descriptors = {name: pair[1].fileno() for name, pair in pairs.items()}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(theirs.fileno())],
            pass_fds=[theirs.fileno(), *self._descriptors.values()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self._control = Connection(ours.detach())
        self.connections = {name: Connection(pair[0].detach()) for name, pair in pairs.items()}
        for other in (theirs, *(pair[1] for pair in pairs.values())):
            other.close()

    def start(self) -> None:
        """Say what is to be measured."""
        variants = [(name, path, self._descriptors[name]) for name, path in self._models.items()]
        try:
            self._control.send(Job(self._work, variants))
        except ConnectionError:
            raise self._failure() from None

    def wait_until_ready(self) -> None:
        """Wait until the variants' processes exist. Raises `StageError` if they do not come."""
        try:
            if not self._control.poll(_START_S):
                raise StageError(f"the measuring process of {self._work.engine} was not ready within {_START_S:g} s")
            self.pids = self._control.recv()
        except (EOFError, ConnectionError):
            raise self._failure() from None

    def _failure(self) -> StageError:
        code = _exit_in_words(self._process.wait())
        return StageError(f"the measuring process of {self._work.engine} ended with {code} before it began")

    def exit_code(self, name: str) -> int | None:
        """What is told of the end of a variant's process; None if nothing is."""
        until = time.monotonic() + _LAST_WORDS_S
        try:
            while name not in self._ended and self._control.poll(max(0.0, until - time.monotonic())):
                ended, code = self._control.recv()
                self._ended[ended] = code
        except (EOFError, ConnectionError):
            return None
        return self._ended.get(name)

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a variant's process, unless it has ended."""
        if name not in self._ended:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile, which the next question will find
                os.kill(self.pids[name], number)

    def close(self) -> None:
        """Hang up, which ends all processes."""
        for connection in (self._control, *self.connections.values()):
            connection.close()

    def wait(self) -> None:
        """Wait for the end."""
        try:
            self._process.wait(timeout=_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Processes:
    """A process for every variant, forked from one that has imported its engine and no other. Between its turns a
    process is stopped (SIGSTOP): the threads of ONNX Runtime spin for some 40 ms after a call, which would be another
    variant's time, and switching the spinning off would measure something that nobody serves.

    `groups`: for each engine what is done there, and the artifacts of its variants by name.

    `errors[name]` says why a variant can no longer be asked: it raised, was killed, or did not answer in `timeout_s`.
    """

    def __init__(self, groups: Sequence[tuple[Work, Mapping[str, Path]]], timeout_s: float) -> None:
        self.errors: dict[str, str] = {}
        self._timeout_s = timeout_s
        self._parents: list[_Parent] = []
        self._parent_of: dict[str, _Parent] = {}
        try:
            for work, models in groups:
                parent = _Parent(work, models)
                self._parents.append(parent)
                self._parent_of |= dict.fromkeys(models, parent)
                parent.start()
            for parent in self._parents:
                parent.wait_until_ready()
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> list[str]:
        """The variants that can still be asked, engine by engine."""
        return [name for name in self._parent_of if name not in self.errors]

    def ask(self, name: str, *request: Any) -> Any:
        """Let one variant work on a request. Returns its answer, or None if it failed: see `errors`."""
        parent = self._parent_of[name]
        connection = parent.connections[name]
        try:
            os.kill(parent.pids[name], signal.SIGCONT)
            connection.send(request)
            if not connection.poll(self._timeout_s):
                self._fail(name, f"no answer within {self._timeout_s:g} s")
                return None
            kind, answer = connection.recv()
        except (EOFError, ConnectionError, ProcessLookupError):
            self._fail(name, _exit_in_words(parent.exit_code(name)))
            return None
        if kind == "error":
            self._fail(name, answer)
            return None
        parent.send_signal(name, signal.SIGSTOP)
        return answer

    def _fail(self, name: str, error: str) -> None:
        self.errors[name] = error
        self._parent_of[name].send_signal(name, signal.SIGKILL)
        self._parent_of[name].exit_code(name)

    def close(self) -> None:
        """End all processes."""
        for parent in self._parents:
            parent.close()
        for parent in self._parents:
            parent.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MeasuredProcesses(Processes):
    """The processes of graphs. `runtimes` says how each of `models` is opened, each with the name of its runtime."""

    def __init__(
        self,
        models: Mapping[str, Path],
        data: Path,
        batches: Mapping[int, Sequence[Sequence[int]]],
        runtimes: Mapping[str, RuntimeOptions],
        timeout_s: float,
    ) -> None:
        groups = [
            (Calls(data, batches, runtime), {name: path for name, path in models.items() if runtimes[name] == runtime})
            for runtime in dict.fromkeys(runtimes.values())
        ]
        super().__init__(groups, timeout_s)


def _exit_in_words(code: int | None) -> str:
    if code is None:
        return "an end that nobody saw"
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exit code {code}"
