"""Take the projections out of fused attention, so that they can be quantised like any matrix product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.fuse import FUSED_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["expand_attention"]

# Inputs of com.microsoft.Attention
_INPUT, _WEIGHTS, _BIAS, _MASK_INDEX, _PAST, _ATTENTION_BIAS = range(6)
_SHARED_ATTRIBUTES = ("num_heads", "scale", "mask_filter_value", "unidirectional")


def expand_attention(graph: ir.Model) -> int:
    """Replace `Attention` by `MatMul`, `Split` and `MultiHeadAttention`; returns how many were.

    `Attention` computes the projections of query, key and value inside, with one packed weight of shape
    [hidden, 3 x hidden]. Its quantised form (`QAttention`) cannot take an additive mask (`attention_bias`), so
    quantising it as it is would ignore padding. `MultiHeadAttention` takes the projected tensors and the mask.

    Nodes with a past, or with a mask given as lengths, are left as they are: they keep their 32-bit weights.
    Source: docs/ContribOperators.md of ONNX Runtime.
    """
    import onnx_ir

    expanded = 0
    for node in list(graph.graph):
        inputs = [*node.inputs, *[None] * 7][:7]
        taken = {_INPUT, _WEIGHTS, _BIAS, _ATTENTION_BIAS}
        if (
            (node.domain, node.op_type) != (FUSED_DOMAIN, "Attention")
            or any(value is not None for position, value in enumerate(inputs) if position not in taken)
            or any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
        ):
            continue
        name = node.outputs[0].name
        sizes = _sizes(node)
        if sizes is None:
            continue
        projected = onnx_ir.node(
            "MatMul",
            [inputs[_INPUT], inputs[_WEIGHTS]],
            outputs=[onnx_ir.val(f"{name}_projected")],
            name=f"{node.name or name}_projection",
        )
        lengths = onnx_ir.val(
            f"{name}_sizes", const_value=onnx_ir.tensor(np.array(sizes, np.int64), name=f"{name}_sizes")
        )
        graph.graph.register_initializer(lengths)
        parts = onnx_ir.node(
            "Split",
            [projected.outputs[0], lengths],
            {"axis": -1},
            outputs=[onnx_ir.val(f"{name}_{part}") for part in ("query", "key", "value")],
        )
        attention = onnx_ir.node(
            "MultiHeadAttention",
            [*parts.outputs, inputs[_BIAS], None, inputs[_ATTENTION_BIAS]],
            {key: node.attributes[key] for key in _SHARED_ATTRIBUTES if key in node.attributes},
            domain=FUSED_DOMAIN,
            outputs=[onnx_ir.val(None)],
            name=node.name,
        )
        onnx_ir.convenience.replace_nodes_and_values(
            graph.graph, node, [node], [projected, parts, attention], [node.outputs[0]], [attention.outputs[0]]
        )
        expanded += 1
    return expanded


def _sizes(node: ir.Node) -> list[int] | None:
    """The widths of query, key and value; by default they share the packed weight's columns equally."""
    given = node.attributes.get("qkv_hidden_sizes")
    if given is not None:
        return [int(size) for size in given.as_ints()]
    bias = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
    for value in (bias, node.inputs[_WEIGHTS]):
        if value is not None and value.shape is not None and isinstance(value.shape[-1], int):
            return [value.shape[-1] // 3] * 3
    return None
