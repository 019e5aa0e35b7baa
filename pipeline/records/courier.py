"""The run's end of the process that talks to MLflow: starting it, giving it records, doing without it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.records.address import public

__all__ = ["Answer", "Courier"]

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that is away is noticed in seconds, not in the minutes of MLflow's own five attempts.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Unless the user's environment says otherwise."""


@dataclass(frozen=True)
class Answer:
    """What came of a delivery: the ids, or the reason why there are none. `silent`: the time ran out."""

    experiment_id: str | None = None
    run_id: str | None = None
    reason: str | None = None
    silent: bool = False


class Courier:
    """One child process. A new one takes the place of one that has died."""

    def __init__(self, tracking_uri: str, spool: Path) -> None:
        self.tracking_uri = tracking_uri
        self._spool = spool
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        """Start the process, which imports MLflow while others work. Call it from a thread that lives on.

        (On Linux the child is killed when the thread that started it ends.)
        """
        if self._process is not None:
            return
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "pipeline.records.child",
                str(os.getpid()),
                self.tracking_uri,
                str(self._spool),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            env=_ENVIRONMENT | os.environ,
        )

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return None if self._process is None else self._process.pid

    def deliver(self, path: Path, timeout_s: float) -> Answer:
        """Give the record at `path` to MLflow and wait for what comes of it. Raises nothing: the reason is told."""
        self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(str(path)).encode() + b"\n")
            process.stdin.flush()
            line = self._line(time.monotonic() + timeout_s)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self.close()
            return Answer(reason=f"{public(self.tracking_uri)} gave no answer in {timeout_s:g} s", silent=True)
        if not line.endswith(b"\n"):
            return Answer(reason=self._ended())
        return Answer(**json.loads(line))

    def close(self) -> None:
        """End the process at once: a delivery that is under way is found again by the next one."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                _close(stream)
        self._process = None

    def _line(self, deadline: float) -> bytes:
        """One line of the child's; what there is of it if the child ends. Raises `TimeoutError` at the deadline."""
        assert self._process is not None
        stream = self._process.stdout
        assert stream is not None
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise TimeoutError
                part = os.read(stream.fileno(), 65536)
                if not part:
                    break
                line += part
        return line

    def _ended(self) -> str:
        """Why the child is no more: its exit and the last line it printed."""
        assert self._process is not None
        assert self._log is not None
        code = self._process.wait()
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        self._log.seek(0)
        printed = self._log.read().decode(errors="replace").strip().splitlines()
        self.close()
        return f"the process that talks to MLflow {how}" + (f": {printed[-1].strip()}" if printed else "")


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # what was still to be written has no reader any more
        stream.close()
