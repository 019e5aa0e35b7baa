"""Who may write into a model's directory, and what writers that died have left there.

Both rest on `flock`, which the kernel gives back when its holder dies, however it dies; process ids say nothing across
containers that share a volume.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["LOCK", "Incoming", "locked", "reading", "sweep"]

LOCK = ".lock"
_PREFIX = ".incoming-"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a model's directory for writing; the directory is made if it is not there. Waits for other holders."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # a writer whose first publish failed has just taken the empty directory away
        except OSError:
            with suppress(OSError):  # an empty directory that this call has made is worth removing; others stay
                directory.rmdir()
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_file_at(descriptor, directory / LOCK):
                yield
                return
        finally:
            _release(descriptor)


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Hold a model's directory for reading, beside other readers. Where nobody has ever written there is no lock."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        _release(descriptor)


def _release(descriptor: int) -> None:
    # Unlocked by name, not only closed: a child forked meanwhile holds the same lock through its copy.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


class Incoming:
    """A hidden directory that a release is gathered in; removed at the end, whatever happened.

    Its writer holds a lock on it, so that others can tell it from what a dead writer left. Make and `sweep` such
    directories only while the model's directory is `locked`. Triton passes over names that are not numbers.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self.path.mkdir()
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            shutil.rmtree(self.path)
        finally:
            _release(self._descriptor)


def sweep(directory: Path) -> None:
    """Remove what dead writers have left. The directory must be `locked`."""
    for left in directory.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # a living writer has just removed its own
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            try:
                shutil.rmtree(left)
            finally:
                _release(descriptor)
