"""A piece of work: one version of one registered model, one recipe, one set of tools. Its key says when two are one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal

from model_repository.layout import NAME
from pipeline.recipe import Recipe
from pipeline.store import library_versions
from stages.artifact import canonical_json

__all__ = ["NAME_RULE", "SUFFIX", "SourceVersion", "State", "Work", "is_alias", "is_name", "make_work"]

State = Literal["queued", "running", "done", "refused", "failed"]
"""`refused`: no variant passed its gates. `done`, `refused` and `failed` are final."""

SUFFIX = "-optimized"
"""What the name of our own registered models ends in."""

NAME_RULE = (
    "its name must do for a folder and a release (letters, digits, '_', '-' and '.', not '.' first, 190 at most)"
)

_LIBRARIES = (
    "optimize-pipeline", "onnx", "onnxruntime", "openvino", "onnxscript", "torch", "transformers", "tritonclient",
    "numpy",
)  # fmt: skip
"""What the key counts as the tool and its runtimes."""


@dataclass(frozen=True)
class SourceVersion:
    """A version as the registry has it. `source` is where its files lie; `created_ms` tells it from the version of the
    same number that a model had before it was deleted. `key`: that of the work that made it, if we did."""

    model: str
    version: int
    source: str
    created_ms: int
    ready: bool = True
    key: str | None = None

    @property
    def identity(self) -> str:
        """SHA-256 of what makes it this version and no other."""
        return _digest([self.model, self.version, self.source, self.created_ms])


@dataclass(frozen=True)
class Work:
    """A piece of work as the queue keeps it. `recipe` is the whole recipe, without the tracking URI, which may hold a
    password. `why` says in words what asked for it."""

    key: str
    registry: str
    model: str
    version: int
    why: str
    recipe_name: str
    recipe: dict[str, Any]

    @property
    def reference(self) -> str:
        """The version as `optimize run` takes it."""
        return f"models:/{self.model}/{self.version}"

    @property
    def target_model(self) -> str:
        """The registered model that the result becomes a version of."""
        return self.model + SUFFIX


def make_work(source: SourceVersion, recipe: Recipe, recipe_name: str, registry: str, why: str) -> Work:
    """The work that a version asks for. The key is SHA-256 over the version's identity, the recipe (but for the places
    it writes to), the target, and the versions of this program and its runtimes."""
    asked = recipe.model_dump(mode="json", serialize_as_any=True, exclude={"tracking_uri"})
    what = {name: value for name, value in asked.items() if name != "repository"}
    key = _digest([registry, source.identity, what, recipe.target, library_versions(_LIBRARIES)])
    return Work(key, registry, source.model, source.version, why, recipe_name, asked)


def is_name(text: str) -> bool:
    """Whether a registered model's name can be a folder's and a release's: MLflow allows nearly any text."""
    return all(re.fullmatch(NAME, name) for name in (text, text + SUFFIX))


def is_alias(text: str) -> bool:
    """Whether a text can be an alias in MLflow: letters, digits, `_` and `-`, neither `latest` nor `v1`."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,255}", text) is not None and not re.fullmatch(r"(?i)latest|v\d+", text)


def _digest(content: object) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
