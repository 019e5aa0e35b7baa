"""A model that lies on this machine, taken where it lies."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from stages.artifact import Artifact
from stages.errors import InputError
from stages.model import Task
from stages.source import exported, huggingface, onnx_file
from stages.source.pickles import PICKLE_SUFFIXES, refuse_pickle

__all__ = ["Kind", "kind_of", "locate"]

Kind = Literal["huggingface", "onnx", "exported", "pickle", "mlflow", "python", "hub"]

_SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".pt2": "exported", **dict.fromkeys(PICKLE_SUFFIXES, "pickle")}
_FORMS = "a Hugging Face directory, an .onnx file, a .pt2 file, module:function, models:/…, runs:/… or a hub id"


def locate(reference: str, *, task: Task | None = None, allow_pickle: bool = False) -> Artifact | None:
    """The source artifact over the files that `reference` names, or None if the model must be fetched or made.

    Nothing is copied and no heavy library is imported; the files that matter are hashed where they lie. The metadata
    says what they are (`type`, `task`, `architecture`, `file` or `files`) and not where.
    Raises `InputError` for a path that is not there (with a near match), damaged files, and pickles that were not
    allowed.
    """
    kind = kind_of(reference)
    path = Path(reference).expanduser()
    if kind == "huggingface":
        return _artifact(path, *huggingface.describe(path, task, allow_pickle))
    if kind == "onnx":
        return _artifact(path.parent, *onnx_file.describe(path, task))
    if kind == "exported":
        return _artifact(path.parent, *exported.describe(path, task, allow_pickle))
    if kind == "pickle" and not allow_pickle:
        raise refuse_pickle(reference, "give a Python function that makes the model (module:function)")
    return None


def kind_of(reference: str) -> Kind:
    """What sort of source a reference is. Raises `InputError` if it is none, or a path that is not there."""
    if reference.startswith(("models:/", "runs:/")):
        return "mlflow"
    path = Path(reference).expanduser()
    if path.is_dir():
        if (path / "MLmodel").is_file():
            return "mlflow"
        if not any((path / name).is_file() for name in ("config.json", "modules.json")):
            inside = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
            hint = f"; give the file: {', '.join(str(path / name) for name in inside[:3])}" if inside else ""
            raise InputError(f"{reference} is a folder without config.json, so no Hugging Face model{hint}")
        return "huggingface"
    if path.exists():
        if path.suffix not in _SUFFIXES:
            raise InputError(f"{reference} is no model that is known here: expected {_FORMS}")
        return _SUFFIXES[path.suffix]
    near = _near(path)
    hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", reference)
    first = Path(path.parts[0]) if path.parts else path
    if path.suffix not in _SUFFIXES:
        if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", reference):
            return "python"
        if hub and not near and not ("/" in reference and first.is_dir()):
            return "hub"
    raise InputError(f"{reference} does not exist" + (f"; did you mean {near}?" if near else f": expected {_FORMS}"))


def _near(path: Path) -> str | None:
    """A path like `path` that does exist: the first part that is not there, with the name most like it beside it."""
    present = path
    while not present.exists() and present != present.parent:
        missing, present = present, present.parent
    if not present.is_dir():
        return None
    names = [entry.name for entry in present.iterdir() if entry.is_dir() or entry.suffix in _SUFFIXES]
    match = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.75)
    return str(present / match[0]) if match else None


def _artifact(path: Path, names: list[str], metadata: dict[str, Any]) -> Artifact:
    return Artifact.of_files(path, "source", metadata, names=names)
