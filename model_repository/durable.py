"""Files that are really on the disk when a function returns, and files shared instead of copied where that can be."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

__all__ = ["file_digest", "place", "sync_directory", "sync_tree", "write_file"]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Write a new file and flush it to the disk. The name itself is safe only after `sync_directory`."""
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def place(source: Path, target: Path) -> None:
    """Make `target` hold the bytes of `source`: by hard link where the file system can, else by copy; then flush it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, one without links, or a file that we may read but not link
        shutil.copyfile(source, target)
    _sync(target)


def sync_directory(path: Path) -> None:
    """Flush the names that a directory holds."""
    _sync(path)


def sync_tree(path: Path) -> None:
    """Flush the names in a directory and in every directory below it."""
    for folder, _, _ in os.walk(path):
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
