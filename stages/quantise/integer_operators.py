"""Float operators with constant weights, rewritten with 8-bit integer ones.

    x · w  ≈  x_scale · w_scale · ((x_q - x_zero) · w_q)        x_q uint8, w_q int8, both quantised linearly

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv:1712.05877), section 2; the activation's parameters are those of ONNX's `DynamicQuantizeLinear`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.quantise.operators import SMALLEST_TABLE, float_constant, matrix_product

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["IntegerOperators", "quantise_weight"]


def quantise_weight(
    weight: NDArray[np.float32], channel: int | None, reduce_range: bool = False
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round `weight` to symmetric integers in ±127 (±63 if `reduce_range`).

    `channel` is the axis that has a scale for each of its indices; None gives one scale for all.
    Returns the integers in the weight's shape, and the scales: [channels] float32, or [] for one.
    """
    largest_integer = 63 if reduce_range else 127
    axes = tuple(axis for axis in range(weight.ndim) if axis != channel)
    largest = np.abs(weight).max(axis=axes if channel is not None else None, keepdims=True)
    scale = np.where(largest > 0, largest / largest_integer, 1.0).astype(np.float32)
    integers = np.rint(weight / scale).clip(-largest_integer, largest_integer).astype(np.int8)
    return integers, scale.reshape(-1) if channel is not None else scale.reshape(())


class IntegerOperators:
    """Rewrites the nodes of one graph, in topological order. Activations and weights in use twice are quantised once.

    Each method returns whether it replaced the node. The old weights stay until unused initialisers are removed.
    """

    def __init__(self, graph: ir.Model, per_channel: bool, reduce_range: bool) -> None:
        self._graph = graph.graph
        self._per_channel = per_channel
        self._reduce_range = reduce_range
        self._activations: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._weights: dict[str, tuple[ir.Value, ir.Value]] = {}

    def matmul(self, node: ir.Node) -> bool:
        """`MatMul`, `Gemm` or `FusedMatMul` of an activation and a constant matrix → `MatMulInteger`."""
        product = matrix_product(node)
        if product is None:
            return False
        weight, bias = product
        source = node.inputs[1]
        assert source is not None and node.inputs[0] is not None
        form = "transposed" if node.attributes.get_int("transB", 0) else "matrix"
        key = f"{source.name}/{form}/{node.attributes.get_float('alpha', 1.0):g}"
        made: list[ir.Node] = []
        x, x_scale, x_zero = self._activation(node.inputs[0], made)
        w, w_scale = self._weight(key, weight, channel=1)
        name = str(node.outputs[0].name)
        accumulated = self._op(made, "MatMulInteger", [x, w, x_zero], f"{name}_int32")
        result = self._scaled(made, accumulated, x_scale, w_scale, name)
        if bias is not None:
            result = self._op(made, "Add", [result, self._constant(f"{name}_bias", bias)], f"{name}_biased")
        self._replace(node, made, result)
        return True

    def convolution(self, node: ir.Node) -> bool:
        """An ungrouped `Conv` with constant weights → `ConvInteger`.

        The weights are stored as uint8 with the zero point 128: ONNX Runtime's kernel takes one zero point for all
        channels, and is 2.5 times slower with signed weights.
        """
        weight = float_constant(node.inputs[1]) if (node.domain, node.op_type) == ("", "Conv") else None
        if weight is None or node.attributes.get_int("group", 1) != 1 or weight.ndim < 3:
            return False
        assert node.inputs[0] is not None and node.inputs[1] is not None
        made: list[ir.Node] = []
        x, x_scale, x_zero = self._activation(node.inputs[0], made)
        across = (1, -1, *[1] * (weight.ndim - 2))  # one number a channel, over [batch, channel, …]
        w, w_scale = self._weight(f"{node.inputs[1].name}/kernel", weight, channel=0, offset=128, across=across)
        w_zero = self._constant("conv_weight_zero_point", np.array(128, np.uint8))
        name = str(node.outputs[0].name)
        accumulated = self._op(made, "ConvInteger", [x, w, x_zero, w_zero], f"{name}_int32", dict(node.attributes))
        result = self._scaled(made, accumulated, x_scale, w_scale, name)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            shape = self._constant(f"{name}_bias_shape", np.array(across, np.int64))
            spread = self._op(made, "Reshape", [bias, shape], f"{name}_bias")
            result = self._op(made, "Add", [result, spread], f"{name}_biased")
        self._replace(node, made, result)
        return True

    def embedding(self, node: ir.Node) -> bool:
        """A `Gather` of rows from a large constant table → the same of 8-bit rows, and of the rows' scales."""
        table = float_constant(node.inputs[0]) if (node.domain, node.op_type) == ("", "Gather") else None
        if table is None or table.ndim != 2 or table.size < SMALLEST_TABLE or node.attributes.get_int("axis", 0) != 0:
            return False
        assert node.inputs[0] is not None
        # An axis of ones beside the rows: the gathered scales are broadcast over the gathered rows.
        w, w_scale = self._weight(f"{node.inputs[0].name}/table", table, channel=0, across=(-1, 1), always_channel=True)
        made: list[ir.Node] = []
        name = str(node.outputs[0].name)
        rows = self._op(made, "Gather", [w, node.inputs[1]], f"{name}_int8", {"axis": 0})
        scales = self._op(made, "Gather", [w_scale, node.inputs[1]], f"{name}_scales", {"axis": 0})
        floats = self._cast(made, rows, f"{name}_float")
        self._replace(node, made, self._op(made, "Mul", [floats, scales], f"{name}_scaled"))
        return True

    def _activation(self, value: ir.Value, made: list[ir.Node]) -> tuple[ir.Value, ir.Value, ir.Value]:
        import onnx_ir

        name = str(value.name)
        if name not in self._activations:
            outputs = [onnx_ir.val(f"{name}_{part}") for part in ("uint8", "scale", "zero_point")]
            made.append(onnx_ir.node("DynamicQuantizeLinear", [value], outputs=outputs))
            self._activations[name] = (outputs[0], outputs[1], outputs[2])
        return self._activations[name]

    def _weight(
        self,
        key: str,
        weight: NDArray[np.float32],
        channel: int,
        offset: int = 0,
        across: tuple[int, ...] | None = None,
        always_channel: bool = False,
    ) -> tuple[ir.Value, ir.Value]:
        if key not in self._weights:
            per_channel = self._per_channel or always_channel
            integers, scale = quantise_weight(weight, channel if per_channel else None, self._reduce_range)
            stored: NDArray[Any] = (integers.astype(np.int16) + offset).astype(np.uint8) if offset else integers
            shaped = scale.reshape(across) if across is not None and per_channel else scale
            self._weights[key] = (self._constant(f"{key}_int8", stored), self._constant(f"{key}_scale", shaped))
        return self._weights[key]

    def _scaled(
        self, made: list[ir.Node], accumulated: ir.Value, x_scale: ir.Value, w_scale: ir.Value, name: str
    ) -> ir.Value:
        floats = self._cast(made, accumulated, f"{name}_float")
        scale = self._op(made, "Mul", [x_scale, w_scale], f"{name}_factor")
        return self._op(made, "Mul", [floats, scale], f"{name}_scaled")

    def _cast(self, made: list[ir.Node], value: ir.Value, name: str) -> ir.Value:
        import onnx_ir

        return self._op(made, "Cast", [value], name, {"to": int(onnx_ir.DataType.FLOAT)})

    def _op(
        self,
        made: list[ir.Node],
        op_type: str,
        inputs: list[ir.Value | None],
        output: str,
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        import onnx_ir

        node = onnx_ir.node(op_type, inputs, attributes, outputs=[onnx_ir.val(output)])
        made.append(node)
        return node.outputs[0]

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        import onnx_ir

        if name not in self._graph.initializers:
            value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
            value.shape = onnx_ir.Shape(array.shape)
            value.dtype = onnx_ir.DataType.from_numpy(array.dtype)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def _replace(self, node: ir.Node, made: list[ir.Node], result: ir.Value) -> None:
        import onnx_ir

        onnx_ir.convenience.replace_nodes_and_values(self._graph, node, [node], made, [node.outputs[0]], [result])
