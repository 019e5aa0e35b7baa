"""Data that a Python function yields: `module:function`."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calibration.archives import write_npz
from calibration.errors import DataError
from calibration.rows import Row

__all__ = ["is_function", "keep_rows", "read_function"]

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_function(reference: str) -> bool:
    """Whether a text has the form `package.module:function`."""
    return _REFERENCE.fullmatch(reference) is not None


def read_function(reference: str) -> Iterator[tuple[int, Row]]:
    """The dictionaries that `module:function`, called without arguments, yields, numbered from 1.

    The module is looked for in the working directory first, as `python -m` does. Raises `DataError` if it is not
    there, is no function, or yields something else; what the function itself raises passes through.
    """
    module_name, _, name = reference.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise DataError(
            f"{reference}: there is no module {error.name!r} in {here} or among the installed ones"
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"{reference}: {module_name} ({module.__file__}) has no function {name!r}")
    produced = function()
    if not hasattr(produced, "__iter__") or isinstance(produced, Mapping):
        raise DataError(f"{reference} gave a {type(produced).__name__}; it should yield dictionaries, one a row")
    for number, row in enumerate(produced, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"{reference}, row {number} is a {type(row).__name__}, not a dictionary")
        yield number, row


def keep_rows(rows: Iterator[tuple[int, Row]], folder: Path, source: str) -> tuple[Literal["jsonl", "npz"], int]:
    """Write rows to `rows.jsonl`, or to `rows.npz` if the first one holds an array; the type and the number of rows.

    Raises `DataError` naming `source` if there are none, and the row that holds what cannot be written: anything but
    text, numbers, lists and arrays; among arrays, another shape or other columns than in the first row.
    """
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source} yielded no rows")
    rows = chain([first], rows)
    if any(isinstance(value, np.ndarray) and value.ndim for value in first[1].values()):
        return "npz", _keep_arrays(rows, folder / "rows.npz", source)
    return "jsonl", _keep_lines(rows, folder / "rows.jsonl", source)


def _keep_lines(rows: Iterator[tuple[int, Row]], file: Path, source: str) -> int:
    number = 0
    with file.open("w", encoding="utf-8") as stream:
        for number, row in rows:
            try:
                stream.write(json.dumps(dict(row), default=_listed) + "\n")
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{source}, row {number} cannot be kept: {error}. Yield text, numbers, lists and NumPy arrays"
                ) from error
    return number


def _listed(value: object) -> object:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no text, number, list or array")


def _keep_arrays(rows: Iterator[tuple[int, Row]], file: Path, source: str) -> int:
    columns: dict[str, list[Any]] = {}
    number = 0
    for number, row in rows:
        columns = columns or {name: [] for name in row}
        if set(row) != set(columns):
            raise DataError(f"{source}, row {number} has the columns {', '.join(row)}, row 1 has {', '.join(columns)}")
        for name, value in row.items():
            array = np.asarray(value)
            if array.dtype == object:
                raise DataError(
                    f"{source}, row {number}: {name!r} is a {type(value).__name__}, not an array of numbers"
                )
            if columns[name] and array.shape != columns[name][0].shape:
                raise DataError(
                    f"{source}, row {number}: {name!r} has shape {list(array.shape)}, row 1 has "
                    f"{list(columns[name][0].shape)}"
                )
            columns[name].append(array)
    write_npz(file, {name: ((number, *parts[0].shape), parts) for name, parts in columns.items()})
    return number
