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
from stages.profile.measured import Job
from stages.runtime import RuntimeOptions

__all__ = ["MeasuredProcesses"]

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from stages.profile.measured import main; main(int(sys.argv[2]))"
)
_LAST_WORDS_S = 10.0
_START_S = 120.0


class MeasuredProcesses:
    """A process for every variant. Between its turns a process is stopped (SIGSTOP): the threads of ONNX Runtime spin
    for some 40 ms after a call, which would be another variant's time, and switching the spinning off would measure
    something that nobody serves.

    `errors[name]` says why a variant can no longer be asked: it raised, was killed, or did not answer in `timeout_s`.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        data: Path,
        batches: Mapping[int, Sequence[Sequence[int]]],
        runtime: RuntimeOptions,
        timeout_s: float,
    ) -> None:
        self.errors: dict[str, str] = {}
        self._timeout_s = timeout_s
        self._ended: dict[str, int] = {}
        pairs = {name: socket.socketpair() for name in models}
        ours, theirs = socket.socketpair()
        descriptors = [theirs.fileno(), *(pair[1].fileno() for pair in pairs.values())]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(theirs.fileno())],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self._control = Connection(ours.detach())
        self._connections = {name: Connection(pair[0].detach()) for name, pair in pairs.items()}
        variants = [(name, path, pairs[name][1].fileno()) for name, path in models.items()]
        try:
            self._control.send(Job(data, batches, variants, runtime))
            theirs.close()
            for _, other in pairs.values():
                other.close()
            self._pids = self._pids_when_ready()
        except BaseException:
            self.close()
            raise

    def _pids_when_ready(self) -> dict[str, int]:
        try:
            if self._control.poll(_START_S):
                pids: dict[str, int] = self._control.recv()
                return pids
        except (EOFError, ConnectionError):
            self._process.wait()
            raise StageError(
                f"the measuring process ended with {_exit_in_words(self._process.returncode)} before it began"
            ) from None
        raise StageError(f"the measuring process was not ready within {_START_S:g} s")

    @property
    def alive(self) -> list[str]:
        """The variants that can still be asked, in the order they were given."""
        return [name for name in self._connections if name not in self.errors]

    def ask(self, name: str, *request: Any) -> Any:
        """Let one variant work on a request. Returns its answer, or None if it failed: see `errors`."""
        connection = self._connections[name]
        try:
            os.kill(self._pids[name], signal.SIGCONT)
            connection.send(request)
            if not connection.poll(self._timeout_s):
                self._fail(name, f"no answer within {self._timeout_s:g} s")
                return None
            kind, answer = connection.recv()
        except (EOFError, ConnectionError, ProcessLookupError):
            self._fail(name, _exit_in_words(self._exit_code(name)))
            return None
        if kind == "error":
            self._fail(name, answer)
            return None
        self._signal(name, signal.SIGSTOP)
        return answer

    def _fail(self, name: str, error: str) -> None:
        self.errors[name] = error
        if name not in self._ended:
            self._signal(name, signal.SIGKILL)
            self._exit_code(name)

    def _signal(self, name: str, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile, which the next question will find
            os.kill(self._pids[name], number)

    def _exit_code(self, name: str) -> int | None:
        """What the parent of the variants tells of the end of one; None if it says nothing."""
        until = time.monotonic() + _LAST_WORDS_S
        try:
            while name not in self._ended and self._control.poll(max(0.0, until - time.monotonic())):
                ended, code = self._control.recv()
                self._ended[ended] = code
        except (EOFError, ConnectionError):
            return None
        return self._ended.get(name)

    def close(self) -> None:
        """End all processes."""
        for connection in (self._control, *self._connections.values()):
            connection.close()
        try:
            self._process.wait(timeout=_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _exit_in_words(code: int | None) -> str:
    if code is None:
        return "an end that nobody saw"
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exit code {code}"
