"""The rows of an artifact of kind `data`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from calibration.dataset import read_rows
from calibration.rows import Rows
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError

__all__ = ["data_rows"]

_FOLDERS = frozenset({"images", "texts", "datasets"})


def data_rows(data: Artifact, *, columns: Mapping[str, str], limit: int | None = None, seed: int = 0) -> Rows:
    """The rows of data that `locate_data` found or `collect` brought, under the name that they have for people.

    Raises `InputError` for an artifact of another kind, `DataError` as `calibration.read_rows` does, and
    `RequirementError` if the library that reads them is not installed.
    """
    if data.kind != "data":
        raise InputError(f"{data.path} is a {data.kind}, not data")
    path = data.path if data.metadata["type"] in _FOLDERS else data.path / next(iter(data.files))
    try:
        rows = read_rows(path, columns=columns, limit=limit, seed=seed)
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise RequirementError(str(error)) from error
    # What was brought lies in a file of ours, whose name says nothing to people.
    return replace(rows, source=data.metadata["name"])
