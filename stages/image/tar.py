"""A tar that is the same for the same files: sorted, one time, one owner, fixed modes.

Headers are POSIX ustar; a PAX record comes before one only where a name, a link or a size does not fit in it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from stages.errors import InputError, StageError

__all__ = ["Entry", "file", "folder", "folders_above", "safe_name", "symlink", "text", "write_tar"]

_BUFFER_BYTES = 1 << 20
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_WHITEOUT = ".wh."


@dataclass(frozen=True)
class Entry:
    """One member of a tar. `content` is a file to read, or the bytes themselves; `target` is where a link leads.

    `sha256` is that of the content, in hexadecimal, where it is known.
    """

    name: str
    mode: int
    content: Path | bytes | None = None
    size: int = 0
    target: str | None = None
    sha256: str | None = None


def folder(name: str, mode: int = 0o755) -> Entry:
    """A folder."""
    return Entry(safe_name(name), mode)


def file(name: str, content: Path, sha256: str | None = None, *, executable: bool = False) -> Entry:
    """A file with the content of another one, which must not change until it has been read."""
    mode = 0o755 if executable else 0o644
    return Entry(safe_name(name), mode, content, content.stat().st_size, sha256=sha256)


def text(name: str, content: bytes) -> Entry:
    """A file with this content."""
    return Entry(safe_name(name), 0o644, content, len(content))


def symlink(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(safe_name(name), 0o777, target=target)


def safe_name(name: str) -> str:
    """Return a name that stays inside the image. Raises `InputError` for one that would not.

    A name that begins with `.wh.` would delete a file of a lower layer (OCI image-layer specification, whiteouts).
    """
    parts = name.split("/")
    if not _is_text(name) or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"{name!r} cannot be the name of a file in an image: it would lead out of it; rename the file")
    if any(part.startswith(_WHITEOUT) for part in parts):
        raise InputError(
            f"{name!r} cannot be the name of a file in an image: names that begin with {_WHITEOUT!r} delete what lies "
            "below; rename the file"
        )
    return name


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(ord(letter) < 32 or letter in "\x7f\\" for letter in name)


def folders_above(names: Iterable[str]) -> list[Entry]:
    """The folders that the files of these names lie in."""
    found = {"/".join(parts[:end]) for parts in (name.split("/") for name in names) for end in range(1, len(parts))}
    return [folder(name) for name in sorted(found)]


def write_tar(entries: Iterable[Entry], write: Callable[[bytes | memoryview], object], mtime_s: int) -> None:
    """Hand the tar of these entries to `write`, piece by piece. Memory does not grow with the files.

    Raises `StageError` if a file's size changes meanwhile.
    """
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    for entry in sorted(entries, key=lambda entry: entry.name):
        write(_header(entry, mtime_s))
        if isinstance(entry.content, bytes):
            write(entry.content)
        elif entry.content is not None:
            _copy(entry.content, entry.size, buffer, write)
        if entry.size % _BLOCK:
            write(bytes(_BLOCK - entry.size % _BLOCK))
    write(_END)


def _header(entry: Entry, mtime_s: int) -> bytes:
    header = tarfile.TarInfo(entry.name)
    header.mode, header.mtime, header.size = entry.mode, mtime_s, entry.size
    if entry.target is not None:
        header.type, header.linkname = tarfile.SYMTYPE, entry.target
    elif entry.content is None:
        header.type, header.name = tarfile.DIRTYPE, entry.name
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _copy(source: Path, size: int, buffer: memoryview, write: Callable[[memoryview], object]) -> None:
    left = size
    with source.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            left -= count
            if left < 0:
                break
            write(buffer[:count])
    if left:
        raise StageError(f"{source} changed while it was read; leave it alone until the image is made")
