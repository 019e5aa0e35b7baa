"""Operators with constant float weights, rewritten with blocks of integers that are turned back while they run.

ONNX Runtime's operators `MatMulNBits` and `GatherBlockQuantized`. OpenVINO reads them as well, and it, too, keeps the
weights as integers in memory. For convolutions there is no such operator: theirs stand behind a `DequantizeLinear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.fuse import FUSED_DOMAIN
from stages.quantise.blocks.form import BlockMatrix
from stages.quantise.blocks.packing import packed, packed_matrix, packed_zero_points
from stages.quantise.operators import Operator, float_constant, matrix_product
from stages.quantise.qdq import QdqWriter

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["BlockOperators"]


class BlockOperators:
    """Rewrites operators of one graph; those that share a weight are given together, and share it still. The old
    weights stay until unused initialisers are removed."""

    def __init__(self, graph: ir.Model, accuracy_level: int) -> None:
        graph.opset_imports.setdefault(FUSED_DOMAIN, 1)
        self._graph = graph.graph
        self._accuracy_level = accuracy_level
        self._writer = QdqWriter(graph, "int8")

    def products(
        self, sharing: Sequence[Operator], matrix: BlockMatrix, corrections: Sequence[NDArray[np.float32] | None]
    ) -> None:
        """`MatMul`, `Gemm` or `FusedMatMul` → `MatMulNBits` with `matrix`, and `corrections` [out] added to what each
        of them gives: to its bias, if it has one."""
        constants = self._constants(sharing[0], matrix, packed_matrix(matrix))
        inputs, outputs = matrix.integers.shape
        attributes = {
            "K": inputs,
            "N": outputs,
            "bits": matrix.format.bits,
            "block_size": matrix.format.block_size,
            "accuracy_level": self._accuracy_level,
        }
        for operator, correction in zip(sharing, corrections, strict=True):
            product = matrix_product(operator.node)
            assert product is not None
            bias = product[1]
            if bias is None and correction is not None and self._correct_bias(operator, correction):
                correction = None
            result = self._node(
                "MatMulNBits", [operator.node.inputs[0], *constants], f"{operator.name}_product", attributes
            )
            made = [result]
            added = [array for array in (bias, correction) if array is not None]
            if added:
                total = self._writer.constant(f"{operator.name}_bias", np.asarray(sum(added), np.float32))
                made.append(self._node("Add", [result.outputs[0], total], f"{operator.name}_biased", {}, domain=""))
            self._replace(operator, made)

    def embeddings(self, sharing: Sequence[Operator], table: BlockMatrix) -> None:
        """`Gather` of rows → `GatherBlockQuantized`. `table` has the rows as its columns: [width, rows]."""
        rows = packed(np.ascontiguousarray(table.integers.T), table.format.bits)
        constants = self._constants(sharing[0], table, rows)
        attributes = {
            "bits": table.format.bits,
            "block_size": table.format.block_size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        for operator in sharing:
            inputs = [constants[0], operator.node.inputs[1], *constants[1:]]
            self._replace(operator, [self._node("GatherBlockQuantized", inputs, f"{operator.name}_rows", attributes)])

    def convolutions(self, sharing: Sequence[Operator]) -> None:
        """The weights of `Conv` in 8 bits, with a scale for each output channel, behind a `DequantizeLinear`."""
        weight = float_constant(sharing[0].weight)
        assert weight is not None
        restored, _ = self._writer.weight(sharing[0].name, weight, axis=0)
        for operator in sharing:
            operator.node.replace_input_with(1, restored)

    def _constants(self, first: Operator, matrix: BlockMatrix, integers: NDArray[np.uint8]) -> list[ir.Value]:
        name = f"{first.name}_int{matrix.format.bits}"
        constants = [
            self._writer.constant(name, integers),
            self._writer.constant(f"{name}_scales", np.ascontiguousarray(matrix.scales.T)),
        ]
        zero_points = packed_zero_points(matrix)
        if zero_points is not None:
            constants.append(self._writer.constant(f"{name}_zero_points", zero_points))
        return constants

    def _correct_bias(self, operator: Operator, correction: NDArray[np.float32]) -> bool:
        """Add `correction` to the constant that alone is added behind a product, if there is one."""
        uses = list(operator.node.outputs[0].uses())
        if len(uses) != 1 or uses[0][0].op_type != "Add" or operator.node.outputs[0].is_graph_output():
            return False
        add, position = uses[0]
        bias = float_constant(add.inputs[1 - position])
        if bias is None or bias.ndim > 1:
            return False
        add.replace_input_with(1 - position, self._writer.constant(f"{operator.name}_bias", bias + correction))
        return True

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        output: str,
        attributes: dict[str, Any],
        domain: str = FUSED_DOMAIN,
    ) -> ir.Node:
        import onnx_ir

        return onnx_ir.node(op_type, inputs, attributes, domain=domain, outputs=[onnx_ir.val(output)])

    def _replace(self, operator: Operator, made: list[ir.Node]) -> None:
        import onnx_ir

        node, result = operator.node, made[-1].outputs[0]
        onnx_ir.convenience.replace_nodes_and_values(self._graph, node, [node], made, [node.outputs[0]], [result])
