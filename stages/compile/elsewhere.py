"""Engines that were built elsewhere, for GPUs of other compute capabilities, to be published with the one built here.

A plan says nothing that could be read without its GPU. What it is, is known from what this project has written beside
it: the `artifact.json` of a compiled model, or the `provenance.json` of a published release. Both name the engine's
TensorRT version, compute capability and profiles, and with both lies the graph that it was built from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from model_repository.config import MODEL_FILES
from model_repository.layout import PROVENANCE
from stages.artifact import MANIFEST, Artifact, file_digest, link
from stages.errors import InputError
from stages.model import Engine, Model
from stages.runtime.tensorrt import GRAPH

__all__ = ["EngineFile", "add_engines", "engine_files", "plan_name"]

_PLAN = MODEL_FILES["tensorrt"]


class EngineFile(BaseModel):
    """A plan and the SHA-256 of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    sha256: str


def engine_files(given: Mapping[str, str]) -> dict[str, EngineFile]:
    """The files, by compute capability. Raises `InputError` for one that is missing."""
    found = {}
    for capability, name in given.items():
        path = Path(name).absolute()
        if not path.is_file():
            raise InputError(f"the engine for compute capability {capability} is missing: {path}")
        found[capability] = EngineFile(path=path, sha256=file_digest(path))
    return found


def plan_name(capability: str) -> str:
    """What the engine for a compute capability is called in a release."""
    return f"model_sm{capability.replace('.', '')}.plan"


def add_engines(model: Artifact, engines: Mapping[str, EngineFile], out: Path) -> dict[str, Engine]:
    """Lay `engines` beside the engine of `model` in the release `out`, under `plan_name`. Returns what each is.

    Raises `InputError` unless each is known to be of the same graph, by the same TensorRT, with the same optimisation
    profiles (a release has one `instance_group` for all), and for the compute capability that it is given for.
    """
    if not engines:
        return {}
    own, graph = Model.of(model).engine, model.files.get(GRAPH)
    if own is None:
        raise InputError(f"engines are published beside an engine, and {model.path} is a graph")
    found = {}
    for capability, file in engines.items():
        if capability == own.compute_capability:
            raise InputError(f"the engine for compute capability {capability} is built here; leave {file.path} out")
        engine, source = _known(file)
        for what, theirs, ours in (
            ("compute capability", engine.compute_capability, capability),
            ("TensorRT", engine.tensorrt, own.tensorrt),
            ("a graph with the SHA-256", source, graph),
            ("the optimisation profiles", engine.profiles, own.profiles),
            ("a version-compatible form", engine.version_compatible, own.version_compatible),
        ):
            if theirs != ours:
                raise InputError(
                    f"{file.path} was built for or with {what} {_shown(theirs)}; the release needs {_shown(ours)}"
                )
        if engine.stripped:
            raise InputError(f"{file.path} lies without its weights: Triton's backend gives it none")
        link(file.path, out / plan_name(capability))
        found[capability] = engine
    return found


def _known(file: EngineFile) -> tuple[Engine, str]:
    """What was written of an engine, and the SHA-256 of the graph that it was built from."""
    folder = file.path.parent
    if (digest := file_digest(file.path)) != file.sha256:
        raise InputError(f"{file.path} has changed since the run began: its SHA-256 is {digest}")
    if (folder / MANIFEST).is_file():
        engine, files, said = *_compiled(folder), folder / MANIFEST
    elif (folder / PROVENANCE).is_file():
        engine, files, said = *_published(folder / PROVENANCE), folder / PROVENANCE
    else:
        raise InputError(
            f"nothing beside {file.path} says what it is: give the engine where `optimize` has put it, in a model "
            f"repository with its {PROVENANCE} or as an artifact with its {MANIFEST}"
        )
    if engine is None or GRAPH not in files:
        raise InputError(f"{said} tells of no engine, with the graph that it was built from ({GRAPH})")
    # What is told of the engine is told of this file; another one beside it may be for another GPU.
    if file.path.name != _PLAN or files.get(_PLAN) != file.sha256:
        raise InputError(f"{file.path} is not the engine that {said} tells of")
    return engine, files[GRAPH]


def _compiled(folder: Path) -> tuple[Engine | None, Mapping[str, str]]:
    artifact = Artifact.read(folder)
    return Model.of(artifact).engine, artifact.files


def _published(path: Path) -> tuple[Engine | None, Mapping[str, str]]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        files = dict(told["release"]["files"])
        return None if told.get("engine") is None else Engine.model_validate(told["engine"]), files
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # pydantic's error is a ValueError
        raise InputError(f"{path} cannot be read as the provenance of an engine: {error}") from error


def _shown(value: object) -> str:
    return json.dumps(value) if isinstance(value, (tuple, bool)) else str(value)
