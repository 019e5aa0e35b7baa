"""FP16: weights and arithmetic in 16-bit floats, inputs and outputs as they were.

The conversion is ONNX Runtime's own (`onnxruntime.transformers.float16`). It keeps operators that have no 16-bit form
in FP32 and brings constants beyond ±65504, such as the -3.4e38 of attention masks, to the largest finite number.
What it cannot know is which *computed* values exceed that range (sums of squares, large activations). So the FP32 graph
is run on random batches with all its intermediate values, and the operators that make or take the large ones stay in
FP32, with no 16-bit value between them. The answers alone would not show it: on a CPU ONNX Runtime computes most
operators in FP32 anyway, and the same file would overflow on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.statistics import Statistics
from stages.artifact import Artifact
from stages.errors import StageError
from stages.model import Model
from stages.onnx_model import nodes, read_graph, weight_bytes
from stages.progress import Progress
from stages.quantise.variant import VariantConfig, build, write_variant
from stages.taps import tapped_session
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

    `keep_fp32` are types of operators (`("Softmax", …)`) that stay in 32 bits, as what `exclude` names does.
    """

    precision: ClassVar[str] = "fp16"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "onnx-ir")

    type: Literal["fp16"] = "fp16"
    runtime: Literal["onnxruntime"] = "onnxruntime"
    keep_fp32: tuple[str, ...] = ()


@build.register
def _(config: Fp16, model: Artifact, out: Path, progress: Progress, statistics: Statistics | None) -> Artifact:
    """Raises `StageError` if the model has no 32-bit weights."""
    import onnx_ir

    graph = read_graph(model)
    bytes_before = weight_bytes(graph)
    _name_nodes(graph)
    _declare_types(graph)
    progress.update("looking for values beyond the range of 16-bit floats")
    large = _large_values(graph, trial_batches(graph, Model.of(model).signature)[:2])
    overflowing = {
        str(node.name)
        for node in nodes(graph)
        if any(value is not None and value.name in large for value in (*node.inputs, *node.outputs))
    }
    excluded = {str(node.name) for node in nodes(graph) if {node.name, node.outputs[0].name} & set(config.exclude)}
    progress.update(f"converting to 16-bit floats; {len(overflowing)} operators keep their range of 32 bits")
    proto = onnx_ir.to_proto(graph)
    del graph  # its weights are in the message now
    converted = onnx_ir.from_proto(_convert(proto, {*config.keep_fp32, *overflowing, *excluded}))
    _drop_narrowing_detours(converted)
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
    converted = float16.convert_float_to_float16(
        proto,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *keep],
        node_block_list=sorted(keep),
    )
    # A value that two FP32 operators take gets the same cast twice, under one name, which no engine accepts.
    casts: set[str] = set()
    for position in range(len(converted.graph.node) - 1, -1, -1):
        node = converted.graph.node[position]
        if node.op_type == "Cast" and node.output[0] in casts:
            del converted.graph.node[position]
        elif node.op_type == "Cast":
            casts.add(node.output[0])
    return converted


def _name_nodes(graph: ir.Model) -> None:
    """Give unnamed nodes a name: the conversion knows by name what stays in 32 bits."""
    for position, node in enumerate(nodes(graph)):
        node.name = node.name or f"{node.op_type}_{position}"


def _declare_types(graph: ir.Model) -> None:
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


def _large_values(graph: ir.Model, batches: list[dict[str, NDArray[Any]]]) -> set[str]:
    """The names of the values that leave FP16's range when the graph answers `batches`."""
    import onnx_ir

    inner = [
        value
        for node in graph.graph
        for value in node.outputs
        if value.dtype == onnx_ir.DataType.FLOAT and value.uses()
    ]
    large: set[str] = set()
    with tapped_session(graph, inner) as session:
        for batch in batches:
            try:
                values = session.run(batch)
            except StageError:
                continue  # a size that the model does not take
            large |= {name for name, array in values.items() if _overflows(array)}
    return large


def _overflows(values: NDArray[Any]) -> bool:
    if not np.issubdtype(values.dtype, np.floating):
        return False
    magnitudes = np.abs(values[np.isfinite(values)])
    return bool(((magnitudes > _SAFE_MAGNITUDE) & (magnitudes < _MASK_MAGNITUDE)).any())
