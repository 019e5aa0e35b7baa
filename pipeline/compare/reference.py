"""What can be compared, as it is named on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pipeline.triggers.work import NAME_RULE, is_alias, is_name
from stages.errors import InputError

__all__ = ["Reference", "parse"]

Kind = Literal["job", "run", "version", "alias", "release"]

_RUN = re.compile(r"[0-9a-f]{32}")
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>[0-9]{1,18})|@(?P<alias>[^/@]+))")
_RELEASE = re.compile(r"(?P<repository>.+):(?P<model>[^:@/]+)@(?P<version>[0-9]{1,18})")
_JOB = re.compile(r"(?P<job>[A-Za-z0-9][A-Za-z0-9._-]*)(?::(?P<variant>[^:@/]+))?")


@dataclass(frozen=True)
class Reference:
    """One thing to compare. `place`: a job or its beginning, a run's id, a registered model's name, or a repository;
    `part`: a variant of the job, a version, an alias, or a model of the repository; `number`: the release's."""

    text: str
    kind: Kind
    place: str
    part: str | None = None
    number: int | None = None


def parse(text: str) -> Reference:
    """Read `last`, `JOB`, `JOB:VARIANT`, a run's id (32 digits), `models:/NAME/3`, `models:/NAME@ALIAS` or
    `REPOSITORY:MODEL@VERSION`. Raises `InputError` for anything else."""
    if text.startswith("models:"):
        return _registered(text)
    if found := _RELEASE.fullmatch(text):
        return Reference(text, "release", found["repository"], found["model"], int(found["version"]))
    if _RUN.fullmatch(text):
        return Reference(text, "run", text)
    if found := _JOB.fullmatch(text):
        return Reference(text, "job", found["job"], found["variant"])
    raise InputError(
        f"{text[:120]!r} names nothing that can be compared: say last, JOB or JOB:VARIANT, an MLflow run's id, "
        "models:/NAME/VERSION, models:/NAME@ALIAS or REPOSITORY:MODEL@VERSION"
    )


def _registered(text: str) -> Reference:
    found = _REGISTERED.fullmatch(text)
    if found is None:
        raise InputError(f"{text[:120]!r} is no registered version: say models:/NAME/VERSION or models:/NAME@ALIAS")
    if not is_name(found["name"]):
        raise InputError(f"{found['name'][:80]!r} cannot be asked for: {NAME_RULE}")
    if found["version"] is not None:
        return Reference(text, "version", found["name"], found["version"])
    if not is_alias(found["alias"]):
        raise InputError(f"{found['alias'][:80]!r} is no alias")
    return Reference(text, "alias", found["name"], found["alias"])
