"""BF16 on a processor without it: each operator computes in FP32, and what it answers is rounded to BF16.

That is what hardware for BF16 does: sums are kept in FP32, and a tensor is rounded when it is written. ONNX's
`ReferenceEvaluator` (1.23) adds up in BF16 within Softmax, LayerNormalization and reductions, and loses digits there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.onnx_model import nodes
from stages.quantise.bfloat16 import MOVES

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["rounded"]


def rounded(graph: ir.Model) -> ir.Model:
    """The graph with FP32 in the place of BF16 and a pair of casts behind each operator; `graph` itself is changed.

    Inputs and outputs must not be BF16.
    """
    import onnx_ir
    from onnx_ir.passes.common import ShapeInferencePass

    low, wide = onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.FLOAT
    ShapeInferencePass()(graph)
    for part in graph.graphs():
        for value in part.initializers.values():
            if value.dtype == low and value.const_value is not None:
                array = value.const_value.numpy().astype(np.float32)
                value.const_value, value.dtype = onnx_ir.tensor(array, name=value.name), wide
    for node in list(nodes(graph)):
        if node.op_type == "Cast" and node.attributes.get_int("to") == low:
            node.attributes["to"] = onnx_ir.AttrInt64("to", wide)
        elif node.op_type == "ConstantOfShape" and node.outputs[0].dtype == low:
            filled = node.attributes["value"].as_tensor().numpy().astype(np.float32)
            node.attributes["value"] = onnx_ir.AttrTensor("value", onnx_ir.tensor(filled))
        for value in node.outputs:
            if value.dtype == low:
                value.dtype = wide
                if node.op_type not in MOVES:
                    _round(value)
    return graph


def _round(value: ir.Value) -> None:
    import onnx_ir

    maker, users = value.producer(), list(value.uses())
    assert maker is not None
    narrowed = onnx_ir.node("Cast", [value], {"to": onnx_ir.DataType.BFLOAT16})
    widened = onnx_ir.node("Cast", [narrowed.outputs[0]], {"to": onnx_ir.DataType.FLOAT})
    narrowed.outputs[0].name, widened.outputs[0].name = f"{value.name}_narrowed", f"{value.name}_rounded"
    assert maker.graph is not None
    maker.graph.insert_after(maker, [narrowed, widened])
    for user, position in users:
        user.replace_input_with(position, widened.outputs[0])
