"""What a run is and how it is driven: recipe, plan, runner, store, records, report, command line.

`from pipeline import Recipe, run` is the Python spelling of `optimize run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.job import run
    from pipeline.recipe import Recipe
    from pipeline.result import RunResult

__all__ = ["Recipe", "RunResult", "run"]

_HOMES = {"Recipe": "pipeline.recipe", "RunResult": "pipeline.result", "run": "pipeline.job"}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `optimize --help` stays quick."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
