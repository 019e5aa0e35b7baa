"""API keys as the front door knows them: by their digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from stages.errors import InputError

__all__ = ["key_digests"]

_SHORTEST = 16


def key_digests(file: Path) -> tuple[str, ...]:
    """The SHA-256 of the keys in a file, one key a line; empty lines and lines with `#` are passed over.

    Raises `InputError` if the file cannot be read, or for a key that could be guessed. No message quotes a key.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    digests = []
    for number, line in enumerate(lines, 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if len(key) < _SHORTEST or not key.isascii() or any(character.isspace() for character in key):
            raise InputError(
                f"{file}, line {number}: a key has {_SHORTEST} ASCII characters or more, and no spaces "
                "(`openssl rand -hex 32` makes one)"
            )
        digests.append(hashlib.sha256(key.encode()).hexdigest())
    return tuple(dict.fromkeys(digests))
