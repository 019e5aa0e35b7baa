"""FP16: weights and arithmetic in 16-bit floats, inputs and outputs as they were (`stages.quantise.half`)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from calibration.statistics import Statistics
from stages.artifact import Artifact
from stages.errors import StageError
from stages.model import Model
from stages.onnx_model import read_graph, weight_bytes
from stages.progress import Progress
from stages.quantise.half import in_half
from stages.quantise.variant import VariantConfig, build, write_variant

__all__ = ["Fp16"]


class Fp16(VariantConfig):
    """16-bit floats. On a CPU it halves the file and gains no time: ONNX Runtime casts around most operators there.

    `keep_fp32` are types of operators (`("Softmax", …)`) that stay in 32 bits, as what `exclude` names does.
    """

    precision: ClassVar[str] = "fp16"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "tensorrt")
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "onnx-ir")

    type: Literal["fp16"] = "fp16"
    runtime: Literal["onnxruntime", "onnxruntime-cuda", "tensorrt"] = "onnxruntime"
    keep_fp32: tuple[str, ...] = ()


@build.register
def _(config: Fp16, model: Artifact, out: Path, progress: Progress, statistics: Statistics | None) -> Artifact:
    """Raises `StageError` if the model has no 32-bit weights."""
    import onnx_ir

    graph = read_graph(model)
    bytes_before = weight_bytes(graph)
    signature = Model.of(model).signature
    converted = in_half(graph, signature, progress, keep_types=config.keep_fp32, exclude=config.exclude)
    if not any(
        value.const_value is not None and value.const_value.dtype == onnx_ir.DataType.FLOAT16
        for value in converted.graph.initializers.values()
    ):
        raise StageError(f"{config.name} found nothing to convert: the model has no 32-bit weights")
    return write_variant(converted, model, out, config, bytes_before)
