"""What runs in the measured processes: one that imports an engine and loads the inputs, and a fork of it a variant.

A fork costs nothing, so that each variant has a process of its own (its cold start, its memory, its crash) for the
price of one start of the interpreter. An engine is imported and not used before the fork: neither ONNX Runtime nor
OpenVINO nor PyTorch has started threads of its own by then, which would be missing in the fork.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from stages.artifact import Artifact

__all__ = ["Job", "Served", "Turn", "Work", "main"]

_PR_SET_PDEATHSIG = 1

Turn = list[tuple[float, ...]]
"""For each call its milliseconds, and behind them what else of it was timed."""

Served = Callable[[Any, Sequence[int], bool], Turn]
"""Takes a turn with an opened model: which size, which of its inputs in which order, and whether a call that is not
counted goes before them."""


class Work(Protocol):
    """What the processes of one engine do with their models. It is sent to them, so it can be pickled."""

    @property
    def engine(self) -> str:
        """What the engine is called."""

    def prepare(self) -> None:
        """Import what all variants need, in the process that is then forked for each."""

    def load(self) -> Any:
        """The inputs, read there too."""

    def open(self, model: Artifact, inputs: Any) -> Served:
        """Open a model and let it answer once."""


@dataclass(frozen=True)
class Job:
    """The variants of one engine: name, artifact and file descriptor of each."""

    work: Work
    variants: Sequence[tuple[str, Path, int]]


def main(descriptor: int) -> None:
    """Serve the job that comes over the socket `descriptor`; tell there of every variant's process that ends."""
    # Ctrl-C reaches the whole process group; the coordinator ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = Connection(descriptor)
    job: Job = control.recv()
    job.work.prepare()
    empty = memory_bytes("VmRSS")
    inputs = job.work.load()

    processes: dict[int, tuple[str, int]] = {}
    for name, path, own in job.variants:
        pid = os.fork()
        if pid == 0:
            control.close()
            for _, _, other in job.variants:
                if other != own:
                    os.close(other)
            _die_with_parent()
            _serve(Connection(own), name, path, job.work, inputs, empty)
        processes[os.pidfd_open(pid)] = (name, pid)
    for _, _, own in job.variants:
        os.close(own)
    control.send(dict(processes.values()))
    _watch(control, processes)


def _watch(control: Connection, processes: dict[int, tuple[str, int]]) -> None:
    """Report each process that ends; end them all when the coordinator hangs up."""
    while True:
        ready = wait([control, *processes])
        for descriptor in [one for one in ready if isinstance(one, int)]:
            name, pid = processes.pop(descriptor)
            os.close(descriptor)
            _, status = os.waitpid(pid, 0)
            if control not in ready:
                control.send((name, os.waitstatus_to_exitcode(status)))
        if control in ready:
            for _, pid in processes.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return


def _serve(connection: Connection, name: str, path: Path, work: Work, inputs: Any, empty: int) -> None:
    """Answer requests until the coordinator hangs up. Never returns."""
    Path("/proc/self/comm").write_text(name[:15])  # so that `top` shows which variant it is
    before = memory_bytes("VmRSS")
    try:
        served = _open(connection, path, work, inputs)
        while True:
            request, *arguments = connection.recv()
            if request == "run":
                connection.send(("answer", served(*arguments)))
            elif request == "memory":
                # What is shared with the parent was there before: the interpreter counts, the inputs do not.
                connection.send(("answer", empty + memory_bytes("VmHWM") - before))
    except EOFError:
        pass
    except Exception as error:  # noqa: BLE001 - it is told to the coordinator, which records it
        connection.send(("error", str(error) or type(error).__name__))
    finally:
        os._exit(0)


def _open(connection: Connection, path: Path, work: Work, inputs: Any) -> Served:
    """Wait for the word, open the model and let it answer once; tell the milliseconds of both together."""
    connection.recv()
    artifact = Artifact.read(path)
    started = time.perf_counter_ns()
    served = work.open(artifact, inputs)
    connection.send(("answer", (time.perf_counter_ns() - started) / 1e6))
    return served


def memory_bytes(field: str) -> int:
    """`VmRSS` (resident now) or `VmHWM` (most ever) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _die_with_parent() -> None:
    # A stopped process would outlive a killed parent for ever.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
