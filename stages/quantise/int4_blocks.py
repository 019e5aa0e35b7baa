"""INT4 for TensorRT: weights of products in blocks behind DequantizeLinear, which it fuses with the product behind.

Standard ONNX of opset 21 (`block_size`), symmetric, with scales above 0. The rest of the graph is in 16-bit floats, as
is what DequantizeLinear gives: TensorRT multiplies INT4 weights by no others. Tables and convolutions are not for INT4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.compile.dtypes import INT4_BLOCK, ensure_promised
from stages.errors import StageError
from stages.model import Model
from stages.onnx_model import opset, read_graph, weight_bytes
from stages.progress import Progress
from stages.quantise.blocks.form import BlockMatrix
from stages.quantise.half import half_between, large_values
from stages.quantise.operators import Operator, is_excluded, matrix_product, operators
from stages.quantise.qdq import QdqWriter
from stages.quantise.variant import VariantConfig, write_variant

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["make_int4_blocks"]

_OPSET = 21
_MIDDLE = 8

Quantise = Callable[[NDArray[np.float32], list[str]], tuple[BlockMatrix, list[NDArray[np.float32] | None]]]
"""As `stages.quantise.weight_only.Quantise`."""


def make_int4_blocks(
    config: VariantConfig, model: Artifact, out: Path, progress: Progress, quantise: Quantise
) -> Artifact:
    """Write `model` with the matrices of its products in blocks of 128 inputs. One whose inputs are no multiple of that
    stays in floats.

    Raises `StageError` if the graph is older than opset 21, or has no product to quantise.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = read_graph(model)
    if opset(graph) < _OPSET:
        raise StageError(
            f"{config.name} takes ONNX opset {_OPSET}, in which DequantizeLinear knows blocks; the model has opset "
            f"{opset(graph)}: convert it with `onnx.version_converter`"
        )
    bytes_before = weight_bytes(graph)
    graph.graph.sort()
    excluded = set(config.exclude)
    chosen = [op for op in operators(graph) if op.kind == "product" and not is_excluded(op.node, excluded)]
    chosen = [operator for operator in chosen if _matrix(operator).shape[0] % INT4_BLOCK == 0]
    if not chosen:
        raise StageError(
            f"{config.name} has nothing to quantise: the model has no matrix product with constant 32-bit weights "
            f"whose inputs are a multiple of {INT4_BLOCK}"
        )
    writer = QdqWriter(graph, "int8")
    for number, operator in enumerate(chosen):
        progress.update("quantising weights to 4 bits", number, len(chosen))
        assert operator.activation is not None
        matrix, [correction] = quantise(_matrix(operator), [str(operator.activation.name)])
        _rewrite(graph, writer, operator, matrix, correction)
    RemoveUnusedNodesPass()(graph)
    graph.graph.sort()
    signature = Model.of(model).signature
    narrowed = half_between(graph, signature, progress, large_values(read_graph(model), signature))
    ensure_promised(narrowed, "int4")
    return write_variant(narrowed, model, out, config, bytes_before)


def _rewrite(
    graph: ir.Model, writer: QdqWriter, operator: Operator, matrix: BlockMatrix, correction: NDArray[np.float32] | None
) -> None:
    """The product as `MatMul` by what DequantizeLinear gives, and its bias, with the correction, behind it."""
    import ml_dtypes
    import onnx_ir

    product = matrix_product(operator.node)
    assert product is not None
    integers = (matrix.integers.astype(np.int8) - _MIDDLE).astype(ml_dtypes.int4)
    name = operator.name
    restored = onnx_ir.node(
        "DequantizeLinear",
        [writer.constant(f"{name}_int4", integers), writer.constant(f"{name}_int4_scale", matrix.scales)],
        {"axis": 0, "block_size": INT4_BLOCK},
        outputs=[onnx_ir.val(f"{name}_int4_dq")],
    )
    result = onnx_ir.node(
        "MatMul", [operator.node.inputs[0], restored.outputs[0]], outputs=[onnx_ir.val(f"{name}_product")]
    )
    made = [restored, result]
    added = [array for array in (product[1], correction) if array is not None]
    if added:
        total = writer.constant(f"{name}_bias", np.asarray(sum(added), np.float32))
        made.append(onnx_ir.node("Add", [result.outputs[0], total], outputs=[onnx_ir.val(f"{name}_biased")]))
    node = operator.node
    onnx_ir.convenience.replace_nodes_and_values(
        graph.graph, node, [node], made, [node.outputs[0]], [made[-1].outputs[0]]
    )


def _matrix(operator: Operator) -> NDArray[np.float32]:
    product = matrix_product(operator.node)
    assert product is not None
    return product[0]
