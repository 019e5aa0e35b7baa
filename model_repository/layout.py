"""Names in a model repository, and what belongs to a release."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from model_repository.durable import file_digest
from model_repository.errors import RepositoryError

__all__ = [
    "CONFIG", "LABELS", "NAME", "PROVENANCE", "check_name", "check_version", "numbers", "tree_digest", "tree_files",
]  # fmt: skip

CONFIG = "config.pbtxt"
PROVENANCE = "provenance.json"
LABELS = "labels.txt"

NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}"
"""A model's name: also the name of its directory and a part of URLs."""

_DESCRIPTIONS = (PROVENANCE, "artifact.json")  # they say something about a tree and are no part of it
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")  # Triton reads 64 bits and passes over leading zeros


def check_name(model: str) -> str:
    """Return the name of a model. Raises `RepositoryError` if it cannot be one."""
    if not re.fullmatch(NAME, model):
        raise RepositoryError(
            f"{model!r} cannot be the name of a model: use letters, digits, '_', '-' and '.', "
            "not '.' first, and at most 200 of them"
        )
    return model


def check_version(version: int) -> int:
    """Return a version's number. Raises `RepositoryError` if it cannot be one."""
    if isinstance(version, bool) or not isinstance(version, int) or not _NUMBER.fullmatch(str(version)):
        raise RepositoryError(f"{version!r} cannot be a version: versions are whole numbers from 1")
    return version


def numbers(directory: Path) -> list[int]:
    """The version directories that lie in a model's directory, in order."""
    return sorted(int(entry.name) for entry in directory.iterdir() if _NUMBER.fullmatch(entry.name) and entry.is_dir())


def tree_files(tree: Path) -> dict[str, str]:
    """The files of a release by name (relative, with `/`) and SHA-256, in the order of their names.

    `provenance.json` and `artifact.json` at the top describe the tree and are left out. Raises `RepositoryError` for
    anything that is neither a file nor a folder: a link may lead out of the tree.
    """
    if not tree.is_dir():
        raise RepositoryError(f"{tree} is not a directory; a release is made from a directory that holds {CONFIG}")
    names = []
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise RepositoryError(f"{path} is a link or a device; put the file itself there")
        names += [Path(folder, name).relative_to(tree).as_posix() for name in files]
    return {name: file_digest(tree / name) for name in sorted(names) if name not in _DESCRIPTIONS}


def tree_digest(files: Mapping[str, str]) -> str:
    """The SHA-256 over the names and digests of a release's files."""
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True, separators=(",", ":")).encode()).hexdigest()
