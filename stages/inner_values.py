"""Inside a variant: which of its operators are quantised, and the values that they give.

A variant keeps the names of the tensors of the graph that it was made from, in ONNX and in OpenVINO's IR.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from model_repository.signature import Signature, TensorSpec
from stages.artifact import Artifact
from stages.errors import StageError
from stages.model import Model
from stages.onnx_model import nodes, read_graph
from stages.quantise.operators import operators
from stages.runtime import Arrays
from stages.runtime.openvino import OpenVinoSession, import_openvino
from stages.taps import tapped_session

__all__ = ["InnerValues", "inner_values", "quantised_operators"]

_MOVING = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "Squeeze", "Unsqueeze"}
_TAKING = {"MatMul", "Convolution", "GroupConvolution", "Gather"}


class InnerValues(Protocol):
    """Runs one batch; answers with the inner tensors that were asked for and are there, by name."""

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]: ...


def quantised_operators(variant: Artifact, names: Collection[str]) -> frozenset[str]:
    """Those of the operators `names` (by the names of their outputs, in the graph that the variant was made from) whose
    weights the variant no longer keeps as floats."""
    if Model.of(variant).runtime == "openvino":
        made = _producers(_read_ir(variant))
        return frozenset(name for name in names if name in made and _takes_integers(made[name]))
    graph = read_graph(variant)
    floats = {operator.name for operator in operators(graph)}
    there = {str(value.name) for node in nodes(graph) for value in node.outputs}
    return frozenset(name for name in names if name in there and name not in floats)


@contextmanager
def inner_values(model: Artifact, names: Collection[str], threads: int = 0) -> Iterator[InnerValues]:
    """Open a model so that it gives its inner tensors `names` (those that it has) beside its outputs.

    Raises `InputError` if its runtime cannot open it, `RequirementError` if that is not installed.
    """
    if Model.of(model).runtime == "openvino":
        with (
            _inside_ir(model, names) as (path, signature),
            OpenVinoSession(path, signature, threads, Model.of(model).arithmetic) as session,
        ):
            yield session
        return
    graph = read_graph(model)
    found = {str(value.name): value for node in graph.graph for value in node.outputs}
    with tapped_session(graph, [found[name] for name in names if name in found], threads) as session:
        yield session.run


@contextmanager
def _inside_ir(model: Artifact, names: Collection[str]) -> Iterator[tuple[Path, Signature]]:
    """The IR again, with the inner tensors as outputs."""
    openvino = import_openvino()
    ir = _read_ir(model)
    signature = Model.of(model).signature
    outputs = {spec.name for spec in signature.outputs}
    added = [name for name in names if name in _producers(ir) and name not in outputs]
    ir.add_outputs(added)
    inner = tuple(TensorSpec(name=name, dtype="float32", shape=()) for name in added)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(ir, path, compress_to_fp16=False)
        yield path, signature.model_copy(update={"outputs": (*signature.outputs, *inner)})


def _read_ir(model: Artifact) -> Any:
    path = Model.of(model).path(model)
    try:
        return import_openvino().Core().read_model(path)
    except RuntimeError as error:
        raise StageError(f"OpenVINO cannot read {path}: {error}") from error


def _producers(ir: Any) -> dict[str, Any]:
    """The node of each tensor, by name."""
    return {name: node for node in ir.get_ops() for output in node.outputs() for name in output.get_names()}


def _takes_integers(node: Any, taken: bool = False) -> bool:
    """Whether a matrix of integers, perhaps scaled, is what the node is made of. `taken`: the product, the convolution
    or the choice of rows that takes it has been passed."""
    kind = node.get_type_name()
    if kind == "Constant":
        output = node.output(0)
        return output.get_element_type().bitwidth <= 8 and len(output.get_partial_shape()) > 1
    if (kind in _TAKING and taken) or kind not in _MOVING | _TAKING:
        return False
    passed = taken or kind in _TAKING
    return any(_takes_integers(value.get_node(), passed) for value in node.input_values())
