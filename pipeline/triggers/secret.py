"""Secrets: from the environment or from a file, never from the command line, and never told."""

from __future__ import annotations

import os
from pathlib import Path

from stages.errors import InputError

__all__ = ["read_secrets"]


def read_secrets(variable: str, file: Path | None, option: str) -> tuple[str, ...]:
    """The secrets in `file`, a line each, or else the one in the environment's `variable`.

    The first one is used where one is sent; any is right where one is checked, so that they can be changed without a
    gap. Raises `InputError` if there is none; no message holds one. `option` is what the file is called on the command
    line.
    """
    if file is not None:
        try:
            text = file.read_text()
        except OSError as error:
            raise InputError(f"the secret {file} ({option}) cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"the secret {file} ({option}) is not text") from error
        where = f"{file} ({option})"
    else:
        text, where = os.environ.get(variable, ""), f"{variable} in the environment, or {option} FILE,"
    secrets = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not secrets:
        raise InputError(f"a secret is missing: {where} must hold it")
    return secrets
