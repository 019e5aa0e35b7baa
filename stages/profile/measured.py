"""What runs in the measured processes: one that imports a runtime and loads the inputs, and a fork of it a variant.

A fork costs nothing, so that each variant has a process of its own (its cold start, its memory, its crash) for the
price of one start of the interpreter. A runtime is imported and not used before the fork: neither ONNX Runtime nor
OpenVINO has started threads by then, which would be missing in the fork.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.runtime import RUNTIMES, Arrays, RuntimeName, RuntimeOptions, Session, open_session
from stages.runtime.openvino import import_openvino

__all__ = ["Job", "main"]

_ENGINES: Mapping[RuntimeName, Callable[[], object]] = {
    "onnxruntime": partial(importlib.import_module, "onnxruntime"),
    "openvino": import_openvino,
}

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """The variants of one runtime, which `runtime.name` names. `batches[size]` lists the samples of each batch;
    `variants` holds name, artifact and file descriptor of each."""

    data: Path
    batches: Mapping[int, Sequence[Sequence[int]]]
    variants: Sequence[tuple[str, Path, int]]
    runtime: RuntimeOptions


def main(descriptor: int) -> None:
    """Serve the job that comes over the socket `descriptor`; tell there of every variant's process that ends."""
    # Ctrl-C reaches the whole process group; the coordinator ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = Connection(descriptor)
    job: Job = control.recv()
    assert job.runtime.name is not None
    importlib.import_module(RUNTIMES[job.runtime.name])
    _ENGINES[job.runtime.name]()
    empty = memory_bytes("VmRSS")
    samples = Samples.load(job.data)
    batches = {size: [samples.batch(batch) for batch in listed] for size, listed in job.batches.items()}
    del samples

    processes: dict[int, tuple[str, int]] = {}
    for name, path, own in job.variants:
        pid = os.fork()
        if pid == 0:
            control.close()
            for _, _, other in job.variants:
                if other != own:
                    os.close(other)
            _die_with_parent()
            _serve(Connection(own), name, path, job.runtime, batches, empty)
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


def _serve(
    connection: Connection,
    name: str,
    path: Path,
    runtime: RuntimeOptions,
    batches: Mapping[int, Sequence[Arrays]],
    empty: int,
) -> None:
    """Answer requests until the coordinator hangs up. Never returns."""
    Path("/proc/self/comm").write_text(name[:15])  # so that `top` shows which variant it is
    before = memory_bytes("VmRSS")
    try:
        session = _open(connection, path, runtime, batches)
        while True:
            request, *arguments = connection.recv()
            if request == "run":
                connection.send(("answer", _run(session, batches[arguments[0]], *arguments[1:])))
            elif request == "memory":
                # What is shared with the parent was there before: the interpreter counts, the inputs do not.
                connection.send(("answer", empty + memory_bytes("VmHWM") - before))
    except EOFError:
        pass
    except Exception as error:  # noqa: BLE001 - it is told to the coordinator, which records it
        connection.send(("error", str(error) or type(error).__name__))
    finally:
        os._exit(0)


def _open(connection: Connection, path: Path, runtime: RuntimeOptions, batches: Mapping[int, Any]) -> Session:
    """Wait for the word, open the session and run one batch; answer with the milliseconds of both together."""
    connection.recv()
    artifact = Artifact.read(path)
    first = batches[min(batches)][0]
    started = time.perf_counter_ns()
    session = open_session(artifact, runtime)
    session(first)
    connection.send(("answer", (time.perf_counter_ns() - started) / 1e6))
    return session


def _run(session: Session, batches: Sequence[Arrays], order: Sequence[int], lead_in: bool) -> list[float]:
    """Milliseconds of one call for each batch in `order`. With `lead_in`, a call before them is not counted: it brings
    back to the caches what another variant has driven out."""
    if lead_in:
        session(batches[order[0]])
    taken = []
    for index in order:
        batch = batches[index]
        started = time.perf_counter_ns()
        session(batch)
        taken.append((time.perf_counter_ns() - started) / 1e6)
    return taken


def memory_bytes(field: str) -> int:
    """`VmRSS` (resident now) or `VmHWM` (most ever) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _die_with_parent() -> None:
    # A stopped process would outlive a killed parent for ever.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
