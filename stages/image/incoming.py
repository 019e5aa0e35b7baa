"""A file that is being received: it gets its name when it is whole, and is gone if it never is."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.errors import StageError

__all__ = ["Incoming", "incoming"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Incoming:
    """A file in the making, which lies at `path` until it is kept."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path
        self.size = 0

    def write(self, piece: bytes | memoryview) -> None:
        """Append a piece, all of it: near the end of a disk the system may write less than it was given."""
        self.size += len(piece)
        left = memoryview(piece)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def restart(self) -> None:
        """Throw away what was written."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.size = 0

    def keep(self, target: Path) -> None:
        """Give it its name. What had that name is replaced."""
        self.path.rename(target)


@contextmanager
def incoming(folder: Path) -> Iterator[Incoming]:
    """A new file in `folder`. Raises `StageError` if there is no space for it; nothing is left behind then."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".incoming-", dir=folder)
        try:
            os.fchmod(descriptor, 0o644)
            yield Incoming(descriptor, Path(name))
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):  # it has its name
                Path(name).unlink()
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise StageError(
            f"no space is left in {folder} ({error.strerror}). Nothing was tagged; free some space and try again"
        ) from error
