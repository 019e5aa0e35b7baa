"""Inner values of an ONNX graph: the graph again, answering with more than its outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stages.convert.writer import write
from stages.runtime.onnxruntime import OnnxRuntimeSession

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["tapped_session"]


@contextmanager
def tapped_session(graph: ir.Model, values: Sequence[ir.Value], threads: int = 0) -> Iterator[OnnxRuntimeSession]:
    """A session on `graph` that gives `values` beside its outputs. The graph itself is left as it was.

    Ask it with `run`: the signature of the graph knows nothing of the inner values. Raises `InputError` if ONNX
    Runtime cannot open the graph.
    """
    outputs = graph.graph.outputs
    count = len(outputs)
    outputs.extend(value for value in dict.fromkeys(values) if not value.is_graph_output())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tapped.onnx"
        try:
            write(graph, path)
        finally:
            while len(outputs) > count:
                outputs.pop()
        with OnnxRuntimeSession(path, threads, spinning=False) as session:
            yield session
