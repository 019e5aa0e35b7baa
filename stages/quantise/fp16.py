"""FP16: weights and arithmetic in 16-bit floats, inputs and outputs as they were.

The conversion is ONNX Runtime's own (`onnxruntime.transformers.float16`). It keeps operators that have no 16-bit form
in FP32 and brings constants beyond ±65504, such as the -3.4e38 of attention masks, to the largest finite number.
What it cannot know is which *computed* values exceed that range (sums of squares, large activations). Where that
happens, the answers are not finite; then the FP32 graph is run once with all its intermediate values, and the
operators that make or take the large ones stay in FP32, with no 16-bit value between them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from stages.artifact import Artifact
from stages.errors import StageError
from stages.model import Model
from stages.onnx_model import nodes, read_graph, weight_bytes
from stages.progress import Progress
from stages.quantise.variant import NonFiniteError, VariantConfig, build, write_variant
from stages.trial import trial_batches

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Fp16"]

# Half of the largest FP16 number: other inputs than the random ones may give larger values.
_SAFE_MAGNITUDE = 65504 / 2
# Beyond this a value is a mask's stand-in for minus infinity, and minus infinity serves as well.
_MASK_MAGNITUDE = 1e30


class Fp16(VariantConfig):
    """16-bit floats. On a CPU it halves the file and gains no time: ONNX Runtime casts around most operators there.

    `keep_fp32` are types of operators (`("Softmax", …)`) or names of nodes that stay in 32 bits.
    """

    precision: ClassVar[str] = "fp16"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "onnx-ir")

    type: Literal["fp16"] = "fp16"
    keep_fp32: tuple[str, ...] = ()


@build.register
def _(config: Fp16, model: Artifact, out: Path, progress: Progress) -> Artifact:
    """Raises `StageError` if nothing became 16-bit, or if the answers are not finite whatever stays in FP32."""
    progress.update("converting to 16-bit floats")
    try:
        return _write(config, model, out, keep=set(config.keep_fp32))
    except NonFiniteError:
        progress.update("looking for the operators that leave the range of 16-bit floats")
        overflowing = _overflowing_nodes(model)
        if not overflowing:
            raise
    for leftover in list(out.iterdir()):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    progress.update(f"converting to 16-bit floats, {len(overflowing)} operators kept in 32 bits")
    return _write(config, model, out, keep={*config.keep_fp32, *overflowing})


def _write(config: Fp16, model: Artifact, out: Path, keep: set[str]) -> Artifact:
    import onnx_ir

    graph = read_graph(model)
    bytes_before = weight_bytes(graph)
    _name_nodes(graph)
    _declare_float_outputs(graph)
    proto = onnx_ir.to_proto(graph)
    del graph
    converted = onnx_ir.from_proto(_convert(proto, keep))
    _drop_narrowing_detours(converted)
    _forget_types(converted)
    converted.graph.sort()
    if not any(
        value.const_value is not None and value.const_value.dtype == onnx_ir.DataType.FLOAT16
        for value in converted.graph.initializers.values()
    ):
        raise StageError(f"{config.name} found nothing to convert: the model has no 32-bit weights")
    return write_variant(converted, model, out, config, bytes_before)


def _convert(proto: Any, keep: set[str]) -> Any:
    from onnxruntime.transformers import float16

    # Types are declared already, and ONNX's inference stops at ONNX Runtime's own operators.
    return float16.convert_float_to_float16(
        proto,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *keep],
        node_block_list=sorted(keep),
    )


def _name_nodes(graph: ir.Model) -> None:
    """Give unnamed nodes a name: the conversion knows by name what stays in 32 bits."""
    for position, node in enumerate(nodes(graph)):
        node.name = node.name or f"{node.op_type}_{position}"


def _declare_float_outputs(graph: ir.Model) -> None:
    """Declare the type of every value: without one the conversion puts no cast before an operator that stays FP32.

    ONNX's inference knows the standard operators; ONNX Runtime's fused ones give what they are given.
    """
    import onnx_ir
    from onnx_ir.passes.common import ShapeInferencePass

    if all(value.type is not None for node in nodes(graph) for value in node.outputs if value.uses()):
        return
    ShapeInferencePass()(graph)
    for node in nodes(graph):
        given = next((value.dtype for value in node.inputs if value is not None and value.dtype is not None), None)
        for value in node.outputs:
            if value.type is None and given is not None:
                value.type = onnx_ir.TensorType(given)


def _drop_narrowing_detours(graph: ir.Model) -> None:
    """Let FP32 operators that follow one another hand over FP32 values.

    The conversion wraps each of them by itself, which leaves FP32 → FP16 → FP32 between them: a value out of range
    would still become infinite on the way.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in list(nodes(graph)):
        narrowing = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
        if (
            narrowing is not None
            and narrowing.op_type == "Cast"
            and node.attributes.get_int("to") == onnx_ir.DataType.FLOAT
            and narrowing.attributes.get_int("to") == onnx_ir.DataType.FLOAT16
            and narrowing.inputs[0] is not None
            and narrowing.inputs[0].dtype == onnx_ir.DataType.FLOAT
        ):
            if node.outputs[0].is_graph_output():
                node.replace_input_with(0, narrowing.inputs[0])
            else:
                onnx_ir.convenience.replace_all_uses_with(node.outputs[0], narrowing.inputs[0])
    RemoveUnusedNodesPass()(graph)


def _forget_types(graph: ir.Model) -> None:
    """Drop what was declared of inner values: the engine infers it, and a stale declaration would stop it."""
    for node in nodes(graph):
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = None
                value.shape = None


def _overflowing_nodes(model: Artifact) -> list[str]:
    """The nodes that make or take a value beyond FP16's range when the FP32 graph answers the random batches."""
    import onnx_ir

    from stages.runtime.onnxruntime import OnnxRuntimeSession

    graph = read_graph(model)
    _name_nodes(graph)
    _declare_float_outputs(graph)
    batches = trial_batches(graph, Model.of(model).signature)
    produced = [
        value
        for node in graph.graph
        for value in node.outputs
        if value.dtype == onnx_ir.DataType.FLOAT and value.name and (value.uses() or value.is_graph_output())
    ]
    graph.graph.outputs.extend(value for value in produced if not value.is_graph_output())
    large: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "every_value.onnx"
        onnx_ir.save(graph, path)
        with OnnxRuntimeSession(path) as session:
            for batch in batches:
                large |= {name for name, values in session.run(batch).items() if _overflows(values)}
    return sorted(
        str(node.name)
        for node in graph.graph
        if any(value is not None and value.name in large for value in (*node.inputs, *node.outputs))
    )


def _overflows(values: Any) -> bool:
    magnitudes = np.abs(values[np.isfinite(values)])
    return bool(((magnitudes > _SAFE_MAGNITUDE) & (magnitudes < _MASK_MAGNITUDE)).any())
