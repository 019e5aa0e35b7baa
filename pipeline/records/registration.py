"""Registering a release: as a version of `<model>-optimized` that holds the release's own files.

MLflow takes the same thing twice without a word, so what is there is searched by the tag `optimize.key` before anything
is made. The files are those of the logged model that the run's record has; only where it has none are they sent here.
The alias moves last.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_repository import Repository
from pipeline.records.logged_model import logged_model, point_to
from pipeline.records.model_files import release_files
from pipeline.records.names import version_tags
from pipeline.records.note import headline
from pipeline.records.record import model_of
from pipeline.result import RunResult
from stages.artifact import link
from stages.errors import StageError
from stages.mlflow_access import pointed_at

__all__ = ["Registered", "Registration", "move_alias", "register"]


@dataclass(frozen=True)
class Registration:
    """What a result is registered as. `key` identifies the work that made it; `model` and `version` are its source;
    `target` is the name it goes under, `alias` the one that the best version has."""

    key: str
    model: str
    version: int
    target: str
    alias: str


@dataclass(frozen=True)
class Registered:
    """The version that holds the result. `new` is false when it was there already; `alias` says in words what became of
    the alias."""

    name: str
    version: int
    new: bool
    alias: str


def register(result: RunResult, registration: Registration, tracking_uri: str, scratch: Path) -> Registered:
    """Make the release of a run a version of the registered model `registration.target`, once.

    The version's files are a model repository with this one release in it: what `models:/<target>@<alias>` downloads
    can be served as it is. `scratch` is a folder for links to them. Raises `MlflowException` for whatever the server
    has against it, `StageError` if the run has published nothing or is not on record, `RepositoryError` if the release
    is no more what was published.
    """
    from mlflow import MlflowClient

    if result.status != "published" or result.release is None:
        raise StageError(f"{result.model} was not published, so there is nothing to register")
    if result.mlflow is None or result.mlflow.run_id is None:
        raise StageError(f"the run {result.job_id} is not on record in MLflow, so nothing can be registered of it")
    with pointed_at(tracking_uri):
        client = MlflowClient(tracking_uri, tracking_uri)
        version, new = _version(client, result, registration, scratch)
        alias = move_alias(client, registration, version)
    return Registered(registration.target, version, new, alias)


def move_alias(client: Any, registration: Registration, version: int) -> str:
    """Give the alias to a version of `registration.target`, if it should have it; says in words what was done.

    Where the source model has an alias of that name, the result of that source version has it here; else that of the
    latest source version that has passed.
    """
    source = client.get_registered_model(registration.model)
    target = client.get_registered_model(registration.target)
    alias = registration.alias
    pointed = {name: int(number) for name, number in dict(source.aliases).items()}.get(alias)
    held = {name: int(number) for name, number in dict(target.aliases).items()}.get(alias)
    if held == version:
        return f"{alias} is on version {version}"
    if pointed is not None and pointed != registration.version:
        return f"{alias} stays: {registration.model}@{alias} is version {pointed}, not {registration.version}"
    if pointed is None and held is not None:
        tags = client.get_model_version(registration.target, str(held)).tags or {}
        later = tags.get("optimize.source_version", "")
        if re.fullmatch(r"[0-9]{1,18}", later) and int(later) > registration.version:
            return f"{alias} stays on version {held}, the result of the later version {later}"
    client.set_registered_model_alias(registration.target, alias, str(version))
    return f"{alias} moved to version {version}"


def _version(client: Any, result: RunResult, registration: Registration, scratch: Path) -> tuple[int, bool]:
    _target(client, registration)
    query = f"name = '{registration.target}' and tags.`optimize.key` = '{registration.key}'"
    found = client.search_model_versions(query, order_by=["version_number ASC"])
    if found:
        return int(found[0].version), False
    assert result.mlflow is not None
    run = client.get_run(result.mlflow.run_id)
    model_id = _logged_model(client, run, result, scratch)
    made = client.create_model_version(
        registration.target,
        source=f"models:/{model_id}",
        run_id=run.info.run_id,
        tags={"optimize.key": registration.key, **version_tags(result, registration.model, registration.version)},
        description=f"{headline(result)} Made from {registration.model} version {registration.version}.",
        model_id=model_id,
    )
    return int(made.version), True


def _target(client: Any, registration: Registration) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            registration.target,
            tags={"optimize.source_model": registration.model},
            description=f"Optimised forms of {registration.model}, made by optimize.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _logged_model(client: Any, run: Any, result: RunResult, scratch: Path) -> str:
    """The id of the logged model that holds the release's files: that of the run's record if there is one."""
    release = result.release
    assert release is not None
    Repository(release.repository).verify(release.model, release.version)
    files = release_files(release)
    if not files:
        raise StageError(f"{release.repository} has another version {release.version} of {release.model} by now")
    variant = next(variant for variant in result.variants if variant.name == release.variant)
    model = model_of(result, variant, {name: digest for name, (_, digest) in files.items()})
    with tempfile.TemporaryDirectory(dir=scratch) as folder:

        def laid_out() -> Path:
            for name, (path, _) in files.items():
                link(path, Path(folder) / name)
            return Path(folder)

        model_id = logged_model(client, run.info.experiment_id, run.info.run_id, model, laid_out)
    point_to(client, run, model_id)
    return model_id
