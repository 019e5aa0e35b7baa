"""Float operators between QuantizeLinear and DequantizeLinear: the form in which every engine reads static INT8.

An engine computes `DequantizeLinear → operator → QuantizeLinear` in integers where it can, and is exact to the float
graph that is written where it cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.ranges import quantise_linear
from stages.quantise.integer_operators import quantise_weight

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["QdqWriter", "SymmetricQdqWriter"]

_LEVELS = 255


class QdqWriter:
    """Puts quantised forms into one graph. The old weights stay until unused initialisers are removed.

    `activations`: the integers of activations. ONNX Runtime's kernels for x86 are fastest with uint8, OpenVINO's with
    int8; the values are the same.
    """

    def __init__(self, graph: ir.Model, activations: Literal["uint8", "int8"]) -> None:
        self._graph = graph.graph
        self._dtype = np.uint8 if activations == "uint8" else np.int8
        self._quantised: dict[ir.Value, ir.Value] = {}

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """The range that an activation between `low` and `high` is given."""
        return low, high

    def rounded(self, values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
        """What is left of `values` between these ends (`ends`), as floats."""
        return quantise_linear(values, low, high)

    def divide(self, value: ir.Value, divisor: NDArray[np.float32]) -> ir.Value:
        """`value` with its last axis divided by `divisor` [C], in front of all who take it from here."""
        import onnx_ir

        factors = self.constant(f"{value.name}_smoothing", (1 / divisor).astype(np.float32))
        node = onnx_ir.node("Mul", [value, factors], outputs=[onnx_ir.val(f"{value.name}_smoothed")])
        self._behind(value, [node])
        return node.outputs[0]

    def activation(self, value: ir.Value, low: float, high: float) -> ir.Value:
        """`value` rounded to 256 levels between `low` and `high`, which hold 0; made once."""
        import onnx_ir

        if value not in self._quantised:
            parameters = self.parameters(str(value.name), low, high)
            quantise = onnx_ir.node("QuantizeLinear", [value, *parameters], outputs=[onnx_ir.val(f"{value.name}_q")])
            restore = onnx_ir.node(
                "DequantizeLinear",
                [quantise.outputs[0], *parameters],
                outputs=[onnx_ir.val(f"{value.name}_dq")],
            )
            self._behind(value, [quantise, restore])
            self._quantised[value] = restore.outputs[0]
        return self._quantised[value]

    def weight(self, name: str, weight: NDArray[np.float32], axis: int) -> tuple[ir.Value, NDArray[np.float32]]:
        """A constant, symmetric, with a scale for each index of `axis`, behind its DequantizeLinear.

        Returns the restored value and its numbers, which differ from `weight` by the rounding.
        """
        import onnx_ir

        stored, scale = self.stored(weight, axis)
        node = onnx_ir.node(
            "DequantizeLinear",
            [
                self.constant(f"{name}_w", stored),
                self.constant(f"{name}_w_scale", scale),
            ],
            {"axis": axis},
            outputs=[onnx_ir.val(f"{name}_w_dq")],
        )
        self._graph.insert_before(self._graph[0], node)
        across = [-1 if position == axis else 1 for position in range(weight.ndim)]
        return node.outputs[0], stored.astype(np.float32) * scale.reshape(across)

    def parameters(self, name: str, low: float, high: float) -> list[ir.Value]:
        """The constants of an activation's scale and zero point."""
        scale = np.float32(max(high - low, 1e-30) / _LEVELS)
        smallest = np.iinfo(self._dtype).min
        zero = np.clip(np.rint(-low / scale) + smallest, smallest, smallest + _LEVELS).astype(self._dtype)
        return [
            self.constant(f"{name}_scale", np.array(scale, np.float32)),
            self.constant(f"{name}_zero", np.array(zero, self._dtype)),
        ]

    def stored(self, weight: NDArray[np.float32], axis: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """A weight as it is stored, and the scales [channels] of `axis`."""
        return quantise_weight(weight, axis)

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initialiser; `name` must not be taken by another one."""
        import onnx_ir

        assert name not in self._graph.initializers, name
        value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
        value.shape = onnx_ir.Shape(array.shape)
        value.dtype = onnx_ir.DataType.from_numpy(array.dtype)
        self._graph.register_initializer(value)
        return value

    def _behind(self, value: ir.Value, made: list[ir.Node]) -> None:
        """Insert nodes right where `value` comes to be."""
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], made)
        else:
            self._graph.insert_after(producer, made)


class SymmetricQdqWriter(QdqWriter):
    """For TensorRT: int8 activations whose zero point is 0."""

    def __init__(self, graph: ir.Model) -> None:
        super().__init__(graph, "int8")

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """-128 and 127 steps, so that the larger end is ±127 steps away."""
        step = max(-low, high, 1e-30) / 127
        return -128 * step, 127 * step
