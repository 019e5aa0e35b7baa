"""What can be quantised in a graph: products with constant matrices, convolutions, rows of embedding tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from stages.fuse import FUSED_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "SMALLEST_TABLE", "Operator", "float_constant", "is_excluded", "matrix_product", "operators",
    "output_of",
]  # fmt: skip

SMALLEST_TABLE = 2**16
"""A table with fewer values gains less than its extra operators cost."""


@dataclass(frozen=True)
class Operator:
    """One operator with constant 32-bit weights.

    `kind`: `product` (`MatMul`, `Gemm`, `FusedMatMul`), `convolution`, or `embedding` (a `Gather` of rows).
    `activation`: the tensor that the weights are applied to; of a product its last axis, of a convolution its axis 1
    are the channels. An embedding has none. `weight`: the constant as the node takes it.
    """

    kind: Literal["product", "convolution", "embedding"]
    node: ir.Node
    activation: ir.Value | None
    weight: ir.Value

    @property
    def name(self) -> str:
        """The name of its output, which every operator has and no other shares."""
        return str(self.node.outputs[0].name)


def operators(graph: ir.Model) -> list[Operator]:
    """The operators of the main graph that can be quantised, in its order."""
    found = []
    for node in graph.graph:
        if matrix_product(node) is not None:
            found.append(Operator("product", node, node.inputs[0], _given(node.inputs[1])))
        elif _is_convolution(node):
            found.append(Operator("convolution", node, node.inputs[0], _given(node.inputs[1])))
        elif _is_embedding(node):
            found.append(Operator("embedding", node, None, _given(node.inputs[0])))
    return found


def output_of(operator: Operator) -> ir.Value:
    """What a convolution gives to the rest of the graph: the output of the ReLU or clipping that alone follows it, or
    else its own. Engines compute both as one operator."""
    value = operator.node.outputs[0]
    uses = list(value.uses())
    if len(uses) == 1 and not value.is_graph_output() and uses[0][0].op_type in ("Relu", "Clip"):
        return uses[0][0].outputs[0]
    return value


def is_excluded(node: ir.Node, names: frozenset[str] | set[str]) -> bool:
    """Whether a node is named there, by its own name or by that of its first output."""
    return node.name in names or node.outputs[0].name in names


def matrix_product(node: ir.Node) -> tuple[NDArray[np.float32], NDArray[np.float32] | None] | None:
    """The constant matrix [in, out] of a product, its factor multiplied in, and its constant bias [out] or None.

    None for what is no product of an activation by a constant matrix, or one that a plain `MatMul` cannot express.
    """
    kind = (node.domain, node.op_type)
    if kind not in (("", "MatMul"), ("", "Gemm"), (FUSED_DOMAIN, "FusedMatMul")):
        return None
    if any(node.attributes.get_int(name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        return None
    weight = float_constant(node.inputs[1])
    if weight is None or weight.ndim != 2 or float_constant(node.inputs[0]) is not None:
        return None
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = float_constant(node.inputs[2])
        if bias is None:
            return None
        bias = bias * np.float32(node.attributes.get_float("beta", 1.0))
    if node.attributes.get_int("transB", 0):
        weight = weight.T
    return np.ascontiguousarray(weight) * np.float32(node.attributes.get_float("alpha", 1.0)), bias


def float_constant(value: ir.Value | None) -> NDArray[np.float32] | None:
    """The float32 array of an initialiser, or of a transposition or concatenation of initialisers."""
    import onnx_ir

    if value is None:
        return None
    tensor = onnx_ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor.numpy() if tensor.dtype == onnx_ir.DataType.FLOAT else None
    node = value.producer()
    if node is None or node.domain != "" or node.op_type not in ("Transpose", "Concat"):
        return None
    parts = [float_constant(part) for part in node.inputs]
    arrays = [part for part in parts if part is not None]
    if len(arrays) != len(parts):
        return None
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        return np.transpose(arrays[0], order.as_ints() if order is not None else None)
    return np.concatenate(arrays, axis=node.attributes.get_int("axis"))


def _is_convolution(node: ir.Node) -> bool:
    weight = float_constant(node.inputs[1]) if (node.domain, node.op_type) == ("", "Conv") else None
    return weight is not None and weight.ndim >= 3


def _is_embedding(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "Gather") or node.attributes.get_int("axis", 0) != 0:
        return False
    table = float_constant(node.inputs[0])
    return table is not None and table.ndim == 2 and table.size >= SMALLEST_TABLE


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
