"""Python functions named by `module:function`, and the data that one yields."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from calibration.errors import DataError
from calibration.rows import Row

__all__ = ["import_function", "is_function", "read_function"]

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_function(reference: str) -> bool:
    """Whether a text has the form `package.module:function`."""
    return _REFERENCE.fullmatch(reference) is not None


def import_function(reference: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    The module is looked for in the working directory first, as `python -m` does. Raises `DataError` if there is no
    such module or function, or the module cannot be imported.
    """
    module_name, _, name = reference.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise DataError(
                f"{reference}: there is no module {missing!r} in {here} or among the installed ones"
            ) from error
        raise DataError(f"{reference}: {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise DataError(f"{reference}: the module {module_name} ({module.__file__}) has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise DataError(f"{reference} is no function but a {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def read_function(reference: str) -> Iterator[tuple[int, Row]]:
    """The dictionaries that `module:function`, called without arguments, yields, numbered from 1.

    Raises `DataError` if there is no such function (see `import_function`), it fails, or yields something else.
    """
    function = import_function(reference)
    number = 0
    try:
        produced = function()
        if not hasattr(produced, "__iter__") or isinstance(produced, Mapping):
            raise DataError(f"{reference} gave a {type(produced).__name__}; it should yield dictionaries, one a row")
        for number, row in enumerate(produced, 1):
            if not isinstance(row, Mapping):
                raise DataError(f"{reference}, row {number} is a {type(row).__name__}, not a dictionary")
            yield number, row
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{reference} failed at row {number + 1} with {type(error).__name__}: {error}") from error
