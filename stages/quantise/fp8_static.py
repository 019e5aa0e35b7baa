"""Static FP8: weights and activations in 8-bit floats (E4M3), with ranges that were learnt from calibration data.

As static INT8, with other numbers between QuantizeLinear and DequantizeLinear: the largest magnitude of a tensor (of a
weight: of an output channel) becomes 448, the largest finite E4M3 (Micikevicius et al., "FP8 Formats for Deep
Learning", arXiv:2209.05433). There is no zero point. For TensorRT on GPUs that have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from stages.quantise.int8_static import Static
from stages.quantise.qdq import QdqWriter

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Fp8Static"]

_LARGEST = 448.0


class Fp8Static(Static):
    """8-bit floats, calibrated; needs a GPU of compute capability 8.9 or later, and ONNX opset 19."""

    precision: ClassVar[str] = "fp8"
    targets: ClassVar[tuple[str, ...]] = ("tensorrt",)
    libraries: ClassVar[tuple[str, ...]] = ("onnx-ir", "ml-dtypes")

    type: Literal["fp8-static"] = "fp8-static"
    runtime: Literal["tensorrt"] = "tensorrt"

    @property
    def can_fall_back(self) -> bool:
        return True

    def writer(self, graph: ir.Model) -> QdqWriter:
        return _Fp8Writer(graph)


class _Fp8Writer(QdqWriter):
    def __init__(self, graph: ir.Model) -> None:
        super().__init__(graph, "int8")

    def ends(self, low: float, high: float) -> tuple[float, float]:
        largest = max(-low, high, 1e-30)
        return -largest, largest

    def rounded(self, values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
        scale = np.float32(high / _LARGEST)
        return _rounded(values / scale).astype(np.float32) * scale

    def parameters(self, name: str, low: float, high: float) -> list[ir.Value]:
        return [
            self.constant(f"{name}_scale", np.array(high / _LARGEST, np.float32)),
            self.constant(f"{name}_zero", np.zeros((), _dtype())),
        ]

    def stored(self, weight: NDArray[np.float32], axis: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        others = tuple(position for position in range(weight.ndim) if position != axis)
        largest = np.abs(weight).max(axis=others, keepdims=True)
        scale = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
        return _rounded(weight / scale), scale.reshape(-1)


def _dtype() -> Any:
    import ml_dtypes

    return np.dtype(ml_dtypes.float8_e4m3fn)


def _rounded(values: NDArray[np.float32]) -> NDArray[Any]:
    """To nearest, at most ±448: what lies beyond would become NaN."""
    return np.clip(values, -_LARGEST, _LARGEST).astype(_dtype())
