"""Which recipe a registered model gets: by its tag, by a rule for its name, or the default.

    rules:
      - model: "minilm*"       # a pattern as in a shell: *, ?, [a-z]
        recipe: embeddings     # embeddings.yaml in the folder of recipes

The tag `optimize.recipe` is written by whoever may write to the registry. It chooses among the recipes in the folder,
and can name nothing else.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.recipe import Recipe
from stages.errors import InputError

__all__ = ["RECIPE_TAG", "Rule", "Rules", "read_rules"]

RECIPE_TAG = "optimize.recipe"
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}"


class Rule(BaseModel):
    """Models whose names match the pattern get the recipe of that name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    recipe: str


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Rules:
    """Where recipes come from. `folder` holds those that tags and rules name; `default` is a file; `plain`: a model
    that nothing else fits gets the recipe that says nothing but the model."""

    folder: Path | None = None
    rules: tuple[Rule, ...] = ()
    default: Path | None = None
    plain: bool = True

    def recipe(
        self, model: str, version: int, tags: Mapping[str, str], overrides: Mapping[str, str]
    ) -> tuple[str, Recipe] | None:
        """The recipe's name and the recipe for a version of a model; null if none is meant for it.

        Raises `InputError` for a tag or a rule that names no recipe of the folder, and for a recipe that is wrong.
        """
        asked = {"model": f"models:/{model}/{version}", **overrides}
        path = self._file(model, tags)
        if path is not None:
            return path.stem, Recipe.read(path, asked)
        if self.plain:
            return "plain", Recipe.parse(asked, f"the plain recipe for {model}")
        return None

    def _file(self, model: str, tags: Mapping[str, str]) -> Path | None:
        if RECIPE_TAG in tags:
            return self._named(tags[RECIPE_TAG], f"the tag {RECIPE_TAG} of the registered model {model}")
        for rule in self.rules:
            if fnmatch.fnmatchcase(model, rule.model):
                return self._named(rule.recipe, f"the rule for {rule.model!r}")
        return self.default

    def _named(self, name: str, who: str) -> Path:
        if self.folder is None:
            raise InputError(f"{who} names the recipe {name[:60]!r}, but there is no folder of recipes (--recipes)")
        if re.fullmatch(_NAME, name):
            path = (self.folder / f"{name}.yaml").resolve()
            if path.is_file() and path.is_relative_to(self.folder.resolve()):
                return path
        known = ", ".join(sorted(file.stem for file in self.folder.glob("*.yaml"))) or "none"
        raise InputError(f"{who} names the recipe {name[:60]!r}, which is not in {self.folder}; there are: {known}")


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a file. Raises `InputError` for one that cannot be read or says something else."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"the rules {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the rules {path} are not YAML: {' '.join(str(error).split())}") from error
    try:
        return _File.model_validate(values).rules
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path}: {place}: {first['msg']} (expected `rules:`, a list of `model` and `recipe`)"
        ) from error
