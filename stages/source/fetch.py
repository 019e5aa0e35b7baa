"""The stage that brings what does not lie on this machine as files: from the hub, from MLflow, from a function."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from stages.artifact import Artifact, link
from stages.model import Task
from stages.progress import SILENT, Progress
from stages.source import huggingface, mlflow_model, python_function
from stages.source.locate import kind_of, locate
from stages.stage import Stage

__all__ = ["SOURCE", "SourceOptions", "fetch"]


class SourceOptions(BaseModel):
    """What to bring. `revision` is of a hub repository, `tracking_uri` where MLflow's models are registered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    task: Task | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    tracking_uri: str | None = None
    revision: str | None = None


def fetch(*, options: SourceOptions, out: Path, progress: Progress = SILENT) -> Artifact:
    """Bring the model that `options.reference` names and write it as a source artifact.

    The artifact is the one that `locate` would give for the same files, so where they came from changes no digest.
    Raises `InputError` if there is no such model or it is not safe to read, `RequirementError` if the hub or the
    tracking server cannot be reached, `StageError` if a module cannot be traced.
    """
    progress.update(f"fetching {options.reference}")
    reference = options.reference
    kind = kind_of(reference)
    metadata: Mapping[str, Any]
    if kind == "python":
        metadata = python_function.bring(reference, out, options.task)
    elif kind == "pickle" and options.allow_pickle:
        metadata = python_function.bring_pickle(Path(reference).expanduser(), out, options.task)
    elif kind == "mlflow":
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            root = mlflow_model.download(reference, options.tracking_uri, Path(scratch))
            found = mlflow_model.unpack(root, reference, options.allow_pickle, Path(scratch))
            if found is None:
                metadata = mlflow_model.trace(root, reference, out, options.task)
            else:
                metadata = _take(str(found), options, out)
    elif kind == "hub":
        root = huggingface.download(reference, options.revision, options.allow_pickle, options.trust_remote_code)
        metadata = _take(str(root), options, out)
    else:
        metadata = _take(reference, options, out)
    return Artifact.write(out, "source", metadata)


def _take(path: str, options: SourceOptions, out: Path) -> Mapping[str, Any]:
    """Link the files that `path` names into `out`; returns what they are."""
    located = locate(path, task=options.task, allow_pickle=options.allow_pickle)
    assert located is not None, "these are files that lie here"
    for name in located.files:
        link(located.path / name, out / name)
    return located.metadata


SOURCE = Stage(name="source", revision=1, function=fetch, libraries=("torch",), volatile=True)
