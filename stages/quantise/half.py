"""The floats of a graph in 16 bits, inputs and outputs as they were.

The conversion is ONNX Runtime's own (`onnxruntime.transformers.float16`). It keeps operators that have no 16-bit form
in FP32 and brings constants beyond ±65504, such as the -3.4e38 of attention masks, to the largest finite number.
What it cannot know is which *computed* values exceed that range (sums of squares, large activations). So the FP32 graph
is run on random batches with all its intermediate values, and the operators that make or take the large ones stay in
FP32, with no 16-bit value between them. The answers alone would not show it: on a CPU ONNX Runtime computes most
operators in FP32 anyway, and the same file would overflow on a GPU.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_repository.signature import Signature
from stages.errors import StageError
from stages.onnx_model import nodes
from stages.progress import Progress
from stages.taps import tapped_session
from stages.trial import trial_batches

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["declare_types", "half_between", "in_half", "large_values"]

# Half of the largest FP16 number: other inputs than the random ones may give larger values.
_SAFE_MAGNITUDE = 65504 / 2
# Beyond this a value is a mask's stand-in for minus infinity, and minus infinity serves as well.
_MASK_MAGNITUDE = 1e30


def in_half(
    graph: ir.Model,
    signature: Signature,
    progress: Progress,
    *,
    keep_types: Collection[str] = (),
    exclude: Collection[str] = (),
    large: Collection[str] | None = None,
) -> ir.Model:
    """The graph in 16-bit floats; `graph` itself is used up.

    `keep_types` are types of operators that stay in 32 bits, `exclude` names such operators (by their node or by their
    first output). `large`: names of the values that leave the range, if they are known (`large_values`).
    """
    import onnx_ir

    _name_nodes(graph)
    declare_types(graph)
    if large is None:
        progress.update("looking for values beyond the range of 16-bit floats")
        large = large_values(graph, signature)
    overflowing = {
        str(node.name)
        for node in nodes(graph)
        if any(value is not None and value.name in large for value in (*node.inputs, *node.outputs))
    }
    excluded = {str(node.name) for node in nodes(graph) if {node.name, node.outputs[0].name} & set(exclude)}
    progress.update(f"converting to 16-bit floats; {len(overflowing)} operators keep their range of 32 bits")
    proto = onnx_ir.to_proto(graph)
    del graph  # its weights are in the message now
    converted = onnx_ir.from_proto(_convert(proto, {*keep_types, *overflowing, *excluded}))
    _drop_narrowing_detours(converted)
    _give_names_back(converted)
    converted.graph.sort()
    return converted


def half_between(graph: ir.Model, signature: Signature, progress: Progress, large: Collection[str]) -> ir.Model:
    """A graph with QuantizeLinear and DequantizeLinear, in 16-bit floats wherever it is not quantised.

    `large` is what `large_values` says of the graph before it was quantised.

    The scales become 16-bit too, so that Q takes and DQ gives such floats with no cast between them and the operators
    that they surround: an engine fuses what stands next to each other.
    """
    kept = ("QuantizeLinear", "DequantizeLinear")
    converted = in_half(graph, signature, progress, keep_types=kept, large=large)
    _narrow_scales(converted)
    converted.graph.sort()
    return converted


def _narrow_scales(graph: ir.Model) -> None:
    """`Cast to 32 → Q` becomes Q with a 16-bit scale, `DQ → Cast to 16` DQ with one."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    half = onnx_ir.DataType.FLOAT16
    for node in list(nodes(graph)):
        if node.op_type == "QuantizeLinear":
            given = _before_cast(node.inputs[0])
            if given is None:
                continue  # what makes it stays in 32 bits
            node.replace_input_with(0, given)
        elif node.op_type == "DequantizeLinear":
            takers = [taker for taker, _ in node.outputs[0].uses()]
            if not takers or any(t.op_type != "Cast" or t.attributes.get_int("to") != half for t in takers):
                continue
            for cast in takers:
                onnx_ir.convenience.replace_all_uses_with(cast.outputs[0], node.outputs[0])
            node.outputs[0].dtype = half
        else:
            continue
        node.replace_input_with(1, _half_scale(graph, node))
    RemoveUnusedNodesPass()(graph)


def _half_scale(graph: ir.Model, node: ir.Node) -> ir.Value:
    """The scale of Q or DQ as a 16-bit constant; nodes with the same scale share it."""
    import onnx_ir

    scale = node.inputs[1]
    assert scale is not None
    cast = scale.producer()  # the conversion puts one there, from 32 bits to 32 bits
    if cast is not None and cast.op_type == "Cast" and cast.inputs[0] is not None:
        scale = cast.inputs[0]
    assert scale.const_value is not None
    name = f"{scale.name}_half"
    if name not in graph.graph.initializers:
        array = scale.const_value.numpy().astype(np.float16)
        # The smallest normal number: at 0 a tensor would vanish, and below it lose its digits.
        array = np.maximum(array, np.finfo(np.float16).tiny)
        value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
        value.shape, value.dtype = onnx_ir.Shape(array.shape), onnx_ir.DataType.FLOAT16
        graph.graph.register_initializer(value)
    return graph.graph.initializers[name]


def _before_cast(value: ir.Value | None) -> ir.Value | None:
    """The 16-bit value that `value` is a cast of; None if it is none."""
    import onnx_ir

    cast = None if value is None else value.producer()
    if cast is None or cast.op_type != "Cast" or cast.inputs[0] is None:
        return None
    return cast.inputs[0] if cast.inputs[0].dtype == onnx_ir.DataType.FLOAT16 else None


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


def declare_types(graph: ir.Model) -> None:
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


def _give_names_back(graph: ir.Model) -> None:
    """Let what an FP32 operator gives have its name again: the conversion has called it `<name>_cast_to_fp16`, and the
    16-bit copy of it `<name>`."""
    values = {str(value.name): value for node in nodes(graph) for value in node.outputs}
    for given, value in values.items():
        name = given.removesuffix("_cast_to_fp16")
        copy = values.get(name)
        if name == given or (copy is not None and copy.is_graph_output()):
            continue
        if copy is not None:
            copy.name = f"{name}_half"
        value.name = name


def large_values(graph: ir.Model, signature: Signature) -> set[str]:
    """The names of the values that leave FP16's range when the graph answers random batches."""
    import onnx_ir

    declare_types(graph)
    inner = [
        value
        for node in graph.graph
        for value in node.outputs
        if value.dtype == onnx_ir.DataType.FLOAT and value.uses()
    ]
    large: set[str] = set()
    with tapped_session(graph, inner) as session:
        for batch in trial_batches(graph, signature)[:2]:
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
