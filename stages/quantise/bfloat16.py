"""The floats of a graph in BF16, inputs and outputs as they were.

Which operators can take BF16 is read from ONNX's own schemas, for the opset of the graph; where opset 22 knows more of
them (convolutions, pooling), the graph is brought to it. What cannot stays in FP32 between casts, and so does what
turns integers into other integers by way of floats (positions, sizes): BF16 has 8 binary digits. Constants beyond its
range, such as the -3.4e38 of attention masks, become the largest finite number: an infinity times 0 is no number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import StageError
from stages.onnx_model import nodes, opset
from stages.quantise.half import declare_types

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["MOVES", "in_bfloat16"]

MOVES = frozenset((
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "ScatterElements",
    "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
))  # fmt: skip
"""Operators that compute nothing: what they give is exactly what they were given."""

_INDIFFERENT = frozenset(("Cast", "Shape", "Size"))
"""They take any dtype, and say the same of each."""

_LARGEST = np.float32((2 - 2.0**-7) * 2.0**127)

_NEW_OPSET = 22
_CONVERTIBLE_OPSET = 18
"""The earliest that onnxscript's version converter takes."""


def in_bfloat16(graph: ir.Model, *, exclude: Collection[str] = ()) -> ir.Model:
    """The graph in BF16; `graph` itself is changed. `exclude` names operators that stay in 32 bits, by their node or by
    their first output.

    A value that is wanted in both dtypes has one cast, whoever takes it. Raises `StageError` for a graph that is
    quantised already.
    """
    import onnx_ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

    if quantised := {n.op_type for n in nodes(graph)} & {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}:
        raise StageError(f"the graph has {', '.join(sorted(quantised))}: BF16 is made of graphs that are not quantised")
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    declare_types(graph)
    _raise_opset(graph)
    excluded = {node for node in nodes(graph) if {node.name, node.outputs[0].name} & set(exclude)}
    taken = _taken(graph, excluded)
    floats = dict.fromkeys(value for value in _values(graph) if _is_float(value))
    for node, positions in taken.items():
        for value in _given(node, positions, opset(graph)):
            value.dtype = onnx_ir.DataType.BFLOAT16
    for node in list(nodes(graph)):
        if _is_source(node) and all(_wants(taken, *use) for use in node.outputs[0].uses()):
            _narrow_source(node)
    for value in floats:
        _hand_over(value, taken)
    for part in graph.graphs():
        for position, value in enumerate(part.outputs):
            if value in floats and value.dtype == onnx_ir.DataType.BFLOAT16:
                part.outputs[position] = _widened_output(value)
    RemoveUnusedNodesPass()(graph)
    return graph


def _taken(graph: ir.Model, excluded: Collection[ir.Node]) -> dict[ir.Node, frozenset[int]]:
    """The nodes that compute in BF16, and which of their inputs they take so."""
    version = opset(graph)
    kept = _counting(graph) | set(excluded)
    taken = {node: found for node in nodes(graph) if node not in kept and (found := _bfloat16_inputs(node, version))}
    # What only moves values from one FP32 operator to another would round them for nothing.
    ahead: set[ir.Node] = set()
    for node in nodes(graph):
        if node.op_type in MOVES and node in taken and not _is_mixed(node):
            makers = [value.producer() for value in _float_inputs(node) if value.const_value is None]
            if makers and all(maker is not None and (maker not in taken or maker in ahead) for maker in makers):
                ahead.add(node)
    for node in reversed(list(nodes(graph))):
        takers = [taker for value in node.outputs for taker, _ in value.uses()]
        if node in ahead and takers and all(taker not in taken for taker in takers):
            del taken[node]
    return taken


def _is_mixed(node: ir.Node) -> bool:
    """Whether what makes its values is itself free to give them in either dtype."""
    return any((maker := value.producer()) is not None and _is_source(maker) for value in _float_inputs(node))


def _counting(graph: ir.Model) -> set[ir.Node]:
    """The nodes on a way from integers over floats to integers again."""
    whole: set[ir.Node] = set()
    for node in nodes(graph):
        given = _float_inputs(node)
        makers = [value.producer() for value in given if value.const_value is None]
        if all(maker in whole for maker in makers) and (makers or not given):
            whole.add(node)
    counting: set[ir.Node] = set()
    for node in reversed(list(nodes(graph))):
        takers = [taker for value in node.outputs for taker, _ in value.uses()]
        to_integer = node.op_type == "Cast" and not _gives_float(node)
        if node in whole and _float_inputs(node) and (to_integer or any(taker in counting for taker in takers)):
            counting.add(node)
    return counting


def _bfloat16_inputs(node: ir.Node, version: int) -> frozenset[int]:
    """Which FP32 inputs of a node ONNX allows to be BF16, in an opset."""
    if node.op_type in _INDIFFERENT or any(
        attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()
    ):
        return frozenset()
    allowed, formal = _allowed(node, version), _formal(node, version, outputs=False)
    return frozenset(
        position
        for position, value in enumerate(node.inputs)
        if value is not None and _is_float(value) and "tensor(bfloat16)" in allowed.get(formal(position), ())
    )


def _given(node: ir.Node, positions: frozenset[int], version: int) -> list[ir.Value]:
    """The outputs whose dtype is that of one of these inputs."""
    formal_in, formal_out = _formal(node, version, outputs=False), _formal(node, version, outputs=True)
    bound = {formal_in(position) for position in positions}
    return [value for position, value in enumerate(node.outputs) if _is_float(value) and formal_out(position) in bound]


def _allowed(node: ir.Node, version: int) -> dict[str, Collection[str]]:
    """The types that each type parameter of an operator stands for; none for an operator that ONNX does not have."""
    schema = _schema(node, version)
    return {} if schema is None else {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}


def _formal(node: ir.Node, version: int, *, outputs: bool) -> Any:
    schema = _schema(node, version)
    names = [] if schema is None else [each.type_str for each in (schema.outputs if outputs else schema.inputs)]
    return lambda position: names[min(position, len(names) - 1)] if names else ""


def _schema(node: ir.Node, version: int) -> Any:
    import onnx

    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, version, ""):
        return None
    return onnx.defs.get_schema(node.op_type, version, "")


def _raise_opset(graph: ir.Model) -> None:
    """Bring the graph to the opset that knows BF16 in more operators, if it has one of those."""
    from onnxscript import version_converter

    found = opset(graph)
    if _CONVERTIBLE_OPSET <= found < _NEW_OPSET and any(
        not _bfloat16_inputs(node, found) and _bfloat16_inputs(node, _NEW_OPSET) for node in nodes(graph)
    ):
        version_converter.convert_version(graph, _NEW_OPSET)
        declare_types(graph)


def _hand_over(value: ir.Value, taken: dict[ir.Node, frozenset[int]]) -> None:
    """Give each that takes a value its dtype, by one cast (or one more constant) for all that want the other one."""
    import onnx_ir

    is_wide = value.dtype == onnx_ir.DataType.FLOAT
    others = [
        (node, position)
        for node, position in value.uses()
        if node.op_type not in _INDIFFERENT and _wants(taken, node, position) == is_wide
    ]
    if not others:
        return
    other = _narrowed_constant(value) if is_wide and value.is_initializer() else _cast_of(value, is_wide)
    for node, position in others:
        node.replace_input_with(position, other)


def _wants(taken: dict[ir.Node, frozenset[int]], node: ir.Node, position: int) -> bool:
    return position in taken.get(node, ())


def _cast_of(value: ir.Value, narrow: bool) -> ir.Value:
    """The value in the other dtype, cast where it is made. What is a cast itself is cast from where it comes."""
    import onnx_ir

    maker, graph = value.producer(), value.graph
    dtype = onnx_ir.DataType.BFLOAT16 if narrow else onnx_ir.DataType.FLOAT
    source = maker.inputs[0] if maker is not None and maker.op_type == "Cast" else value
    cast = onnx_ir.node("Cast", [source], {"to": dtype})
    cast.outputs[0].name = f"{value.name}_{'bf16' if narrow else 'fp32'}"
    cast.outputs[0].type, cast.outputs[0].shape = onnx_ir.TensorType(dtype), value.shape
    assert graph is not None
    if maker is not None:
        graph.insert_after(maker, cast)
    else:
        graph.insert_before(graph[0], cast)
    return cast.outputs[0]


def _widened_output(value: ir.Value) -> ir.Value:
    """The output of a graph under its name and in FP32; what made it, under another name in BF16."""
    import onnx_ir

    name, value.name = value.name, f"{value.name}_bf16"
    widened = _cast_of(value, narrow=False)
    widened.name = name
    widened.metadata_props.update(value.metadata_props)
    assert widened.dtype == onnx_ir.DataType.FLOAT
    return widened


def _narrowed_constant(value: ir.Value) -> ir.Value:
    import onnx_ir

    assert value.const_value is not None
    assert value.graph is not None
    name = f"{value.name}_bf16"
    made = onnx_ir.val(name, const_value=onnx_ir.tensor(_narrow(value.const_value.numpy()), name=name))
    made.shape, made.dtype = value.const_value.shape, onnx_ir.DataType.BFLOAT16
    value.graph.register_initializer(made)
    return made


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    import ml_dtypes

    held = np.where(np.isfinite(array), np.clip(array, -_LARGEST, _LARGEST), array)
    return held.astype(ml_dtypes.bfloat16)


def _is_source(node: ir.Node) -> bool:
    """Whether the node's attributes say that it gives FP32."""
    return node.op_type in ("Cast", "ConstantOfShape") and _gives_float(node)


def _narrow_source(node: ir.Node) -> None:
    import onnx_ir

    value = node.outputs[0]
    if not value.uses() or value.is_graph_output():
        return
    if node.op_type == "Cast":
        node.attributes["to"] = onnx_ir.AttrInt64("to", onnx_ir.DataType.BFLOAT16)
    else:
        given = node.attributes.get("value")
        array = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
        node.attributes["value"] = onnx_ir.AttrTensor("value", onnx_ir.tensor(_narrow(array)))
    value.dtype = onnx_ir.DataType.BFLOAT16


def _values(graph: ir.Model) -> Iterator[ir.Value]:
    for part in graph.graphs():
        yield from (*part.inputs, *part.initializers.values())
    for node in nodes(graph):
        yield from node.outputs


def _float_inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and _is_float(value)]


def _gives_float(node: ir.Node) -> bool:
    return _is_float(node.outputs[0])


def _is_float(value: ir.Value) -> bool:
    import onnx_ir

    return bool(value.dtype == onnx_ir.DataType.FLOAT)
