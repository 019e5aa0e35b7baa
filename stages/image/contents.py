"""What of a release goes into which layer, so that versions share what they have in common.

::

    models/<model>/.blobs/<sha256>           the content of every file but the small texts
    models/<model>/<version>/<file>          a link to its content: ../.blobs/<sha256>
    models/<model>/<version>/config.pbtxt    and other small texts: files
    models/<model>/config.pbtxt              what Triton reads

The path of a content has no version in it, so the layer of a weight file has the same digest in every version that has
the file. Triton passes over folders whose names are no numbers.

ONNX Runtime opens external data only below the folder of the graph as it is named, or below the folder that the graph
really lies in (pull request 27374 of microsoft/onnxruntime, made for the Hugging Face hub's cache, which is laid out
like this; 1.24.0 and 1.24.1 refuse links, earlier ones ask nothing). Therefore a graph is a link too, however small.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_repository import Repository
from model_repository.layout import CONFIG, PROVENANCE
from stages.errors import InputError
from stages.image.layer import Compression
from stages.image.tar import Entry, file, folder, folders_above, safe_name, symlink, text

__all__ = ["MODELS", "Part", "Release", "parts", "read_release"]

MODELS = "models"
"""The folder of an image that holds its model repository, without the first slash."""

_DESCRIPTIONS = (PROVENANCE, "artifact.json")  # they say something about a release and name places of other machines
_TEXTS = (".pbtxt", ".json", ".txt", ".py", ".sh", ".yaml", ".yml", ".md")
_SMALL_BYTES = 4096
_WEIGHT_LAYERS = 64
"""Overlay file systems take some hundred layers, and the base has some."""


@dataclass(frozen=True)
class Release:
    """A version in a model repository. `files`: name (relative, with `/`) and SHA-256; `digest`: the release's."""

    model: str
    version: int
    path: Path
    files: Mapping[str, str]
    digest: str
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """The content of one layer. `name` says in words what it is."""

    name: str
    entries: tuple[Entry, ...]
    compression: Compression
    weights: bool = False


def read_release(repository: Path, model: str, version: int | None = None) -> Release:
    """A release, with its files hashed again and found as they were published.

    Raises `RepositoryError` if there is no such release or a file has changed, and `InputError` for a file that cannot
    go into an image: a link, a device, a name that leads out of the folder.
    """
    opened = Repository(repository)
    path = opened.directory(model, version)
    version = int(path.name)
    names = _walk(path)
    _ensure_inside(opened, model, version)
    info = opened.verify(model, version)
    recorded: dict[str, str] = dict(info.provenance["release"]["files"])
    strangers = sorted(set(names) - set(recorded) - set(_DESCRIPTIONS))
    if strangers:
        raise InputError(f"{path / strangers[0]} is no part of the release that was published; remove it")
    assert info.digest is not None
    return Release(model, version, path, recorded, info.digest, info.provenance)


def parts(release: Release, weights_from_bytes: int) -> list[Part]:
    """The layers of a release: one for each file of at least `weights_from_bytes`, one for all other content, and one
    that holds the version with its configuration, its small texts and its links.
    """
    home = f"{MODELS}/{release.model}"
    own = f"{home}/{release.version}"
    contents: dict[str, Entry] = {}
    last: list[Entry] = [text(f"{home}/{CONFIG}", (release.path / CONFIG).read_bytes())]
    for name, digest in release.files.items():
        source = release.path / name
        if _is_small_text(source):
            last.append(file(f"{own}/{name}", source, digest))
        else:
            last.append(symlink(f"{own}/{name}", "../" * (name.count("/") + 1) + f".blobs/{digest}"))
            contents[digest] = file(f"{home}/.blobs/{digest}", source, digest)
    heavy = sorted((one for one in contents.values() if one.size >= weights_from_bytes), key=lambda one: -one.size)
    single, rest = heavy[: _WEIGHT_LAYERS - 1], heavy[_WEIGHT_LAYERS - 1 :]
    found = [_part(f"weights {_label(release, one)}", [one], "none", weights=True) for one in single]
    if rest:
        found.append(_part(f"{len(rest)} files of weights", rest, "none", weights=True))
    if light := [one for one in contents.values() if one.size < weights_from_bytes]:
        found.append(_part("other files", light, "zstd"))
    return [*found, _part(f"version {release.version}", [*last, folder(own)], "zstd")]


def _part(name: str, entries: list[Entry], compression: Compression, *, weights: bool = False) -> Part:
    above = {entry.name: entry for entry in folders_above(entry.name for entry in entries)}
    return Part(name, tuple({**above, **{entry.name: entry for entry in entries}}.values()), compression, weights)


def _is_small_text(path: Path) -> bool:
    return path.suffix == ".py" or (path.suffix in _TEXTS and path.stat().st_size < _SMALL_BYTES)


def _label(release: Release, entry: Entry) -> str:
    return min(name for name, digest in release.files.items() if digest == entry.sha256)


def _walk(path: Path) -> list[str]:
    """The names of the files below `path`. Nothing but plain files and folders may lie there."""
    found = []
    for where, folders, files in os.walk(path):
        for name in (*folders, *files):
            one = Path(where, name)
            safe_name(one.relative_to(path).as_posix())
            if one.is_symlink() or not (one.is_dir() or one.is_file()):
                raise InputError(
                    f"{one} is a link or a device, which an image could not hold safely; put the file there"
                )
        found += [Path(where, name).relative_to(path).as_posix() for name in files]
    return found


def _ensure_inside(repository: Repository, model: str, version: int) -> None:
    """The names in a release's own list are read by everyone who verifies it."""
    for info in repository.versions(model):
        if info.version == version:
            files = (info.provenance.get("release") or {}).get("files") or {}
            for name in files:
                safe_name(name)
