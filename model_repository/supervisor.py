"""The small process between us and `tritonserver`: it sees to it that nothing of the server outlives us.

A server is a tree of processes with shared memory in `/dev/shm`, and the one who started it may be killed at any
moment. So the server is the child of this program, which holds no state worth losing. It ends the server when it is
told to, when its own standard input is closed, and when the process that started it is gone. If this program itself is
killed, the kernel kills the server (`PR_SET_PDEATHSIG`, prctl(2)), and the next start sweeps the shared memory.

Run as `python -I -S supervisor.py OWNER GRACE_S COMMAND…`; needs the standard library only. It first prints one line,
`SERVER_PID PREFIX`, and ends with the server's own exit status (128 + the signal's number), or 0 if it was told to.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import select
import signal
import sys
import time
from pathlib import Path

__all__ = ["remove_regions", "sweep_dead_regions"]

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not a scratch file of ours: where Linux keeps POSIX shared memory
_PREFIX = re.compile(r"optimize-(\d+)-(\d+)-(\d+)-[0-9a-f]{8}-")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_LOOK_S = 0.5


def remove_regions(prefix: str) -> None:
    """Remove the shared-memory regions whose names begin with `prefix`."""
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # gone already, or another user's
            region.unlink()


def sweep_dead_regions() -> None:
    """Remove the regions of supervisors that no longer run: those that were killed themselves."""
    for region in _SHARED_MEMORY.glob("optimize-*"):
        match = _PREFIX.match(region.name)
        # Only process numbers of our own namespace say anything to us: containers may share /dev/shm.
        if match and int(match[1]) == _namespace() and _started(int(match[2])) != int(match[3]):
            remove_regions(match[0])


def _own_prefix() -> str:
    """The name of this process in the names of its regions: namespace, number, and when it started."""
    return f"optimize-{_namespace()}-{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(4)}-"


def _namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _started(process: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22); None if there is no such process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[19])


def _prctl(option: int, value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def _start(command: list[str]) -> int:
    """Start the server in a process group of its own, with its output on our standard error."""
    supervisor = os.getpid()
    child = os.fork()
    if child:
        with contextlib.suppress(PermissionError, ProcessLookupError):  # it has done it itself and gone on
            os.setpgid(child, child)
        return child
    try:
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(128 + signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"error: {command[0]} cannot be started: {error}\n".encode())
    finally:
        os._exit(127)


def _reap(server: int) -> int | None:
    """Collect every child that has ended; the server's exit status if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            child, code = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                break
            if child == server:
                code = os.waitstatus_to_exitcode(code)
                status = code if code >= 0 else 128 - code
    return status


def _supervise(owner: int, grace_s: float, server: int, signals: int) -> int:
    """Wait until the server ends, or end it. `signals` gives one byte for each signal that this process received."""
    watched = select.poll()
    watched.register(signals, select.POLLIN)
    watched.register(0, select.POLLIN)
    deadline = None
    while True:
        left = _LOOK_S if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return 0
        told = any(descriptor == 0 for descriptor, _ in watched.poll(left * 1000))
        received = _drain(signals)
        status = _reap(server)
        if status is not None:
            return status if deadline is None else 0
        # Our owner's end closes our standard input, unless another of its children holds a copy: hence the second look.
        if deadline is None and (told or received & _STOP or os.getppid() != owner):
            watched.unregister(0)
            os.kill(server, signal.SIGTERM)
            deadline = time.monotonic() + grace_s


def _drain(signals: int) -> set[int]:
    try:
        return set(os.read(signals, 1024))
    except BlockingIOError:
        return set()


def main(arguments: list[str]) -> int:
    """Run the server until it ends or is to be ended; then kill what is left of it and remove its regions."""
    owner, grace_s, *command = arguments
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (*_STOP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    sweep_dead_regions()
    prefix = _own_prefix()
    server = _start([*command, f"--backend-config=python,shm-region-prefix-name={prefix}"])
    os.write(1, f"{server} {prefix}\n".encode())
    os.close(1)
    try:
        return _supervise(int(owner), float(grace_s), server, readable)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        remove_regions(prefix)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
