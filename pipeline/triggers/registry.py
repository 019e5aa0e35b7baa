"""Reading a model registry: what changed since, and what is there already. Nothing in it is trusted.

MLflow cannot be asked for what changed after a time, nor for aliases (3.17): versions are read by number, aliases from
the model itself.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline.records.address import is_server, public, resolve, sqlite_file
from pipeline.records.migration import of_another_version
from pipeline.triggers.work import NAME_RULE, SUFFIX, SourceVersion, is_alias, is_name
from stages.errors import InputError, RequirementError

__all__ = ["RegisteredModel", "Registry", "RegistryAwayError"]

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Whoever polls comes again anyway: a server that is away is noticed in seconds.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Unless the user's environment says otherwise."""

_PAGE = 200

_MOST_FILES = 10_000
"""Files and folders that a version may have: a listing may be without end."""


class RegistryAwayError(RequirementError):
    """The registry cannot be reached, or is broken for now. Asking again later may help."""


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model. `created_ms` tells it from another one that had its name before."""

    name: str
    created_ms: int
    aliases: Mapping[str, int]
    tags: Mapping[str, str]


class Registry:
    """The registry of a tracking URI (default: `MLFLOW_TRACKING_URI`, else `mlflow.db` here).

    Every method raises `RegistryAwayError` if it cannot be reached and `InputError` if it refuses. `name` is what it is
    called where it may be read by others: the URI without a password.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.tracking_uri = resolve(tracking_uri)
        self.name = public(self.tracking_uri)
        self._client: Any = None

    def client(self) -> Any:
        """MLflow's own client; the first call imports MLflow."""
        if self._client is None:
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            file = sqlite_file(self.tracking_uri)
            if file is not None and not file.exists():
                raise InputError(f"there is no MLflow database {file}")
            if file is not None and of_another_version(file):
                raise InputError(
                    f"{file} was made by another version of MLflow: `mlflow db upgrade` changes it for good"
                )
            from mlflow import MlflowClient

            self._client = MlflowClient(self.tracking_uri, self.tracking_uri)
        return self._client

    def models(self) -> Iterator[str]:
        """The names of all registered models but those that hold our results; also names that `is_name` refuses."""
        token = None
        while True:
            with self.errors("the list of registered models"):
                page = self.client().search_registered_models(max_results=_PAGE, page_token=token)
            yield from (model.name for model in page if not model.name.endswith(SUFFIX))
            token = page.token
            if not token:
                return

    def model(self, name: str) -> RegisteredModel | None:
        """A registered model by its name; null if there is none."""
        with self.errors(f"the registered model {name}"):
            found = _or_none(lambda: self.client().get_registered_model(_safe(name)))
        if found is None:
            return None
        aliases = {alias: _number(version) for alias, version in dict(found.aliases).items() if is_alias(alias)}
        return RegisteredModel(name, int(found.creation_timestamp), aliases, dict(found.tags or {}))

    def newer(self, name: str, version: int) -> list[SourceVersion]:
        """The versions of a model whose numbers are greater, in the order of their numbers."""
        found: list[SourceVersion] = []
        token = None
        query = f"name = '{_safe(name)}' and version_number > {version}"
        while True:
            with self.errors(f"the versions of {name}"):
                page = self.client().search_model_versions(
                    query, max_results=_PAGE, order_by=["version_number ASC"], page_token=token
                )
            found += [_version(entry) for entry in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda entry: entry.version)

    def version(self, name: str, version: int) -> SourceVersion | None:
        """One version by its number; null if there is none."""
        with self.errors(f"version {version} of {name}"):
            found = _or_none(lambda: self.client().get_model_version(_safe(name), str(version)))
        return None if found is None else _version(found)

    def made_by(self, name: str, key: str) -> int | None:
        """The version of a model that work of this key has made; null if there is none."""
        assert re.fullmatch(r"[0-9a-f]{64}", key)
        query = f"name = '{_safe(name)}' and tags.`optimize.key` = '{key}'"
        with self.errors(f"the versions of {name}"):
            found = self.client().search_model_versions(query, max_results=1, order_by=["version_number ASC"])
        return _number(found[0].version) if found else None

    def tags(self, name: str, version: int) -> dict[str, str]:
        """The tags of a version that is there."""
        with self.errors(f"version {version} of {name}"):
            return dict(self.client().get_model_version(_safe(name), str(version)).tags or {})

    def size_bytes(self, name: str, version: int, enough: int, local: bool = False) -> int:
        """How large the files of a version are by the listing of its artifact store, counted until there are more than
        `enough`.

        Raises `InputError` if the listing leaves out a size, has a name that leads elsewhere, or does not end; and if a
        server says that they lie in a folder, unless `local`: it would be one of this machine, chosen by whoever
        registered the version.
        """
        with self.errors(f"the files of version {version} of {name}"):
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            address = str(self.client().get_model_version_download_uri(_safe(name), str(version)))
            if is_server(self.tracking_uri) and not local and urlsplit(address).scheme in ("", "file"):
                raise InputError(
                    f"the files of models:/{name}/{version} would be read from {address} on this machine: "
                    "say --allow-local-files if the server and this machine share that folder"
                )
            repository = get_artifact_repository(address, self.tracking_uri, self.tracking_uri)
            told = f"the artifact store of models:/{name}/{version} lists"
            total, seen, folders = 0, 0, [""]
            while folders and total <= enough:
                folder = folders.pop()
                for entry in repository.list_artifacts(folder or None):
                    seen += 1
                    if seen > _MOST_FILES:
                        raise InputError(f"{told} more than {_MOST_FILES:,} files and folders")
                    if ".." in str(entry.path).split("/") or not str(entry.path).startswith(folder):
                        raise InputError(f"{told} {str(entry.path)[:80]!r} in the folder {folder[:80]!r}")
                    if entry.is_dir:
                        folders.append(str(entry.path))
                    elif entry.file_size is None or int(entry.file_size) < 0:
                        raise InputError(
                            f"{told} {str(entry.path)[:80]!r} without a size, so nobody knows how large it is"
                        )
                    else:
                        total += int(entry.file_size)
            return total

    def reachable(self) -> bool:
        """Whether the registry answers at all."""
        try:
            with self.errors("the list of registered models"):
                self.client().search_registered_models(max_results=1)
        except RegistryAwayError:
            return False
        return True

    @contextlib.contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turn MLflow's exceptions into ours. `what` was asked for."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            status = error.get_http_status_code()
            message = self._shortened(str(error))
            if 400 <= status < 500 and status != 429:
                raise InputError(f"MLflow at {self.name} refuses {what}: {message}") from error
            raise RegistryAwayError(f"MLflow at {self.name} does not answer: {message}") from error

    def _shortened(self, message: str) -> str:
        cause = re.search(r"\[Errno -?\d+\] [^'\")]+|timed out", message)
        if is_server(self.tracking_uri) and cause is not None:
            return cause[0]
        first = message.replace(self.tracking_uri, self.name).strip().split("\n")[0]
        return first if len(first) <= 300 else first[:300] + "…"


def _or_none(ask: Any) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _safe(name: str) -> str:
    """The name, once it is known that it can stand in a filter between quotation marks."""
    if not is_name(name):
        raise InputError(f"{name[:80]!r} cannot be watched: {NAME_RULE}")
    return name


def _version(entry: Any) -> SourceVersion:
    return SourceVersion(
        model=str(entry.name),
        version=_number(entry.version),
        source=str(entry.source or ""),
        created_ms=int(entry.creation_timestamp or 0),
        ready=str(entry.status) == "READY",
        key=(entry.tags or {}).get("optimize.key"),
    )


def _number(version: object) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,17}", str(version)):
        raise InputError(f"MLflow names a version {str(version)[:40]!r}, which is no number")
    return int(str(version))
