"""An artifact: a directory of files with an `artifact.json` that says what it is and what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.errors import InputError, StageError

__all__ = ["MANIFEST", "Artifact", "canonical_json", "file_digest", "link"]

MANIFEST = "artifact.json"
_FORMAT = 1


def canonical_json(value: object) -> str:
    """The one JSON text of a value: keys sorted, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def link(source: Path, target: Path) -> None:
    """Make `target` hold the bytes of `source`: by hard link where the file system can, else by copy.

    Files in an artifact are never changed once they are written, so two artifacts may share one inode.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class Artifact:
    """A directory whose files are known by their SHA-256.

    `digest` identifies the content (kind, files and metadata), not the way it was made: two steps that give the
    same bytes give the same digest, and what follows them is not done twice.
    """

    path: Path
    kind: str
    digest: str
    files: Mapping[str, str]
    metadata: Mapping[str, Any]
    made_from: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def write(
        cls,
        path: Path,
        kind: str,
        metadata: Mapping[str, Any],
        made_from: Mapping[str, Artifact] | None = None,
    ) -> Artifact:
        """Describe the files that lie in `path` and write the manifest.

        `metadata` is JSON; it must be the same when the same thing is made again (no dates, no durations), except
        in measurements.
        """
        artifact = cls.of_files(path, kind, metadata, made_from)
        document = {
            "format": _FORMAT,
            "kind": kind,
            "digest": artifact.digest,
            "files": dict(artifact.files),
            "metadata": dict(metadata),
            "made_from": dict(artifact.made_from),
        }
        (path / MANIFEST).write_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n")
        return artifact

    @classmethod
    def of_files(
        cls,
        path: Path,
        kind: str,
        metadata: Mapping[str, Any],
        made_from: Mapping[str, Artifact] | None = None,
        names: list[str] | None = None,
    ) -> Artifact:
        """An artifact over files where they lie (all, or those of `names`), with no manifest written."""
        if names is None:
            names = [
                file.relative_to(path).as_posix()
                for file in path.rglob("*")
                if file.is_file() and file.relative_to(path).as_posix() != MANIFEST
            ]
        files = {name: file_digest(path / name) for name in sorted(names)}
        content = {"kind": kind, "files": files, "metadata": dict(metadata)}
        digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()
        origins = {name: origin.digest for name, origin in (made_from or {}).items()}
        return cls(path, kind, digest, files, dict(metadata), origins)

    @classmethod
    def read(cls, path: Path) -> Artifact:
        """Read the manifest of a finished artifact.

        Raises `InputError` if there is none or it is not one of ours. The files are not hashed again; see `verify`.
        """
        try:
            document = json.loads((path / MANIFEST).read_text())
            return cls(
                path,
                document["kind"],
                document["digest"],
                document["files"],
                document["metadata"],
                document["made_from"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not an artifact: {MANIFEST} cannot be read ({error})") from error

    def verify(self) -> None:
        """Hash every file again. Raises `StageError` naming the first one that is missing or has changed."""
        for name, digest in self.files.items():
            file = self.path / name
            if not file.is_file():
                raise StageError(f"{file} is missing from its artifact")
            if file_digest(file) != digest:
                raise StageError(f"{file} has changed since it was written; remove its folder, and it is made again")

    @property
    def size_bytes(self) -> int:
        """The bytes of all files, without the manifest."""
        return sum((self.path / name).stat().st_size for name in self.files)
