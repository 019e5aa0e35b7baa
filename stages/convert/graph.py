"""From a program to an ONNX graph whose text depends on the model alone."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stages.convert.program import Program
from stages.errors import InputError, StageError
from stages.source.exported import export

__all__ = ["operators", "strip", "to_onnx"]


def to_onnx(program: Program, opset: int) -> Any:
    """The `onnx_ir.Model` of a program, every dynamic axis named.

    Raises `InputError` naming the weights that the graph needs and the checkpoint lacks, `StageError` if the model
    cannot be exported.
    """
    import torch

    with _quiet_exporter():
        exported = program.exported
        if exported is None:
            tensors = {name: torch.from_numpy(array) for name, array in program.examples.items()}
            exported = export(program.module, (), tensors, program.axes, program.origin)
        _refuse_missing(exported, program)
        try:
            onnx_program = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                input_names=list(program.examples),
                output_names=list(program.outputs),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise StageError(f"{program.origin} cannot be exported to ONNX: {error}") from error
        model = onnx_program.model
        renamed = {}
        for value in model.graph.inputs:
            for axis, said in program.axes.get(value.name, {}).items():
                if isinstance(value.shape[axis], int):
                    raise StageError(
                        f"{program.origin}: axis {axis} ({said}) of {value.name} was exported with the "
                        f"fixed size {value.shape[axis]}"
                    )
                renamed[value.shape[axis]] = said
        onnx_program.rename_axes(renamed)
    strip(model)
    return model


def operators(model: Any) -> dict[str, int]:
    """How many nodes of each operator type the graph holds, those of its subgraphs included."""
    import onnx_ir as ir

    return dict(sorted(Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph)).items()))


def strip(model: Any) -> None:
    """Take away what only says how the graph was made: stack traces with file paths, scopes, comments."""
    import onnx_ir as ir

    for part in (model, model.graph, *model.functions.values()):
        part.doc_string = None
        part.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        for value in (*graph.inputs, *getattr(graph, "initializers", {}).values()):
            value.doc_string = None
            value.metadata_props.clear()
        for node in ir.traversal.RecursiveGraphIterator(graph):
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                value.doc_string = None
                value.metadata_props.clear()


def _refuse_missing(exported: Any, program: Program) -> None:
    """A weight that was not in the checkpoint matters only if the graph reads it (a pooler often stands unused)."""
    if not program.missing:
        return
    exported.graph.eliminate_dead_code()
    parameters = {**exported.graph_signature.inputs_to_parameters, **exported.graph_signature.inputs_to_buffers}
    needed = sorted(
        parameters[node.name].removeprefix("model.")
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.users and parameters.get(node.name) in program.missing
    )
    if needed:
        raise InputError(
            f"the checkpoint does not hold these weights of {program.origin}: {', '.join(needed)}. They would be "
            "random numbers; train the model for this task first, or give the task that it was trained for"
        )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """No chatter of the exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
