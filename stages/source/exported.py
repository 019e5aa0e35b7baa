"""A `torch.export` program (`.pt2`): read with care, and written from a module with example inputs.

The archive is a zip of raw weights and JSON, but it may also hold pickles (weights and constants marked `use_pickle`,
example inputs), and `torch.export.load` evaluates the shape expressions in its JSON. Both are looked at first.
"""

from __future__ import annotations

import ast
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.errors import InputError, StageError
from stages.model import Task
from stages.source.pickles import refuse_pickle

__all__ = ["Axes", "describe", "export", "load", "save"]

Axes = Mapping[str, Mapping[int, str]]
"""The dynamic axes of each input: `{"input_ids": {0: "batch", 1: "sequence"}}`."""


def describe(path: Path, task: Task | None, allow_pickle: bool) -> tuple[list[str], dict[str, Any]]:
    """The file's name and the metadata of the source artifact. Raises `InputError` if it is damaged or not safe."""
    try:
        with zipfile.ZipFile(path) as archive:
            documents = {name: archive.read(name) for name in archive.namelist() if name.endswith(".json")}
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a whole torch.export program: {error}") from error
    if not any("/models/" in name for name in documents):
        raise InputError(f"{path} is not a whole torch.export program: it holds no graph")
    for name, text in documents.items():
        for key, value in _entries(json.loads(text)):
            if key == "use_pickle" and value and not allow_pickle:
                raise refuse_pickle(f"part of {path} ({name})", "save it again with plain tensors only")
            if key == "expr_str" and not _plain(value):
                raise InputError(f"{path} ({name}) has code in place of a shape expression: {value[:80]!r}")
    return [path.name], {"type": "exported", "file": path.name, "task": task or "generic"}


def load(path: Path, allow_pickle: bool) -> Any:
    """The `torch.export.ExportedProgram` of a file. Raises `InputError` if it is damaged or not safe."""
    import io
    import pickle

    import torch

    describe(path, None, allow_pickle)
    if not allow_pickle:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pt"):
                    try:
                        torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                    except pickle.UnpicklingError as error:
                        raise refuse_pickle(
                            f"part of {path} ({name})", "save it with tensors only as example inputs"
                        ) from error
    try:
        return torch.export.load(path)
    except Exception as error:
        raise InputError(f"{path} cannot be loaded by torch {torch.__version__}: {error}") from error


def export(module: Any, arguments: Sequence[Any], keywords: Mapping[str, Any], axes: Axes, origin: str) -> Any:
    """Trace `module` into a `torch.export.ExportedProgram` whose `axes` are dynamic.

    `axes` are those of the tensors by their names in the signature of the module's `forward`. Raises `StageError` if
    the module cannot be traced, or only with one of the axes fixed; `origin` says in the message what it is.
    """
    import torch

    shapes = {
        name: dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC)
        for name in input_names(module, arguments, keywords)
    }
    try:
        with torch.no_grad():
            return torch.export.export(
                module.eval(), tuple(arguments), dict(keywords), dynamic_shapes=shapes, strict=False
            )
    # torch.export raises whatever the model's own code raises under tracing.
    except Exception as error:
        raise StageError(f"torch.export cannot trace {origin} with dynamic axes {_said(axes)}: {error}") from error


def save(program: Any, path: Path) -> None:
    """Write a program, the same bytes each time and wherever its source code lies."""
    import torch

    for graph_module in program.graph_module.modules():
        if isinstance(graph_module, torch.fx.GraphModule):
            for node in graph_module.graph.nodes:
                node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


def input_names(module: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> list[str]:
    """The names of the inputs by the signature of `forward`."""
    import inspect

    bound = inspect.signature(module.forward).bind(*arguments, **keywords)
    return list(bound.arguments)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
        for inner in value.values():
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def _plain(expression: Any) -> bool:
    """Whether a shape expression is arithmetic over symbols: calls of sympy's classes only, no attributes."""
    try:
        tree = ast.parse(str(expression), mode="eval")
    except SyntaxError:
        return False
    allowed = (
        ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator,
        ast.unaryop, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop,
    )  # fmt: skip
    return all(
        isinstance(node, allowed)
        and not (isinstance(node, ast.Name) and node.id.startswith("_"))
        and not (isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id[0].isupper()))
        for node in ast.walk(tree)
    )


def _said(axes: Axes) -> str:
    return "; ".join(f"{name} {dict(dynamic)}" for name, dynamic in axes.items()) or "(none)"
