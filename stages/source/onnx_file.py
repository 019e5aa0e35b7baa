"""An ONNX file, with or without external data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from stages.errors import InputError
from stages.model import Task

__all__ = ["describe", "external_files", "read"]


def describe(path: Path, task: Task | None) -> tuple[list[str], dict[str, Any]]:
    """The names of the file and its external data, relative to its folder, and the metadata of the source artifact.

    Raises `InputError` for a file that is not a whole ONNX model, and for external data that is missing, too short or
    outside the folder.
    """
    names = [path.name, *external_files(read(path), path.parent)]
    return names, {"type": "onnx", "file": path.name, "task": task or "generic"}


def read(path: Path) -> Any:
    """The `onnx.ModelProto` of a file, without its external data. Raises `InputError` if it cannot be parsed."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise InputError(f"{path} is not a whole ONNX file: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise InputError(f"{path} is not a whole ONNX file: it holds no graph")
    return model


def external_files(model: Any, folder: Path) -> list[str]:
    """The names of a model's external data files, each checked to lie, as it is, inside `folder`."""
    needed: dict[str, int] = {}
    for tensor in _tensors(model):
        if not tensor.external_data:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        needed[location] = max(needed.get(location, 0), end)
    for location, size in needed.items():
        where = f"external data {location!r} of {folder}"
        parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
        if not location or absolute or ".." in parts:
            raise InputError(f"{where}: the path leaves the model's folder; put the data beside the model")
        file = folder / location
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{where}: a symbolic link out of the model's folder; put the data itself there")
        if not file.is_file():
            raise InputError(f"{where}: {file} is missing")
        if file.stat().st_size < size:
            raise InputError(f"{where}: {file} has {file.stat().st_size} bytes, the model needs {size}")
    return sorted(needed)


def _tensors(model: Any) -> Iterator[Any]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)
