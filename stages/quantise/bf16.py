"""BF16: weights stored in 16 bits, arithmetic in BF16, inputs and outputs as they were.

BF16 has the range of FP32, so that nothing can overflow while it runs.

For OpenVINO the graph stays as it is: OpenVINO computes in BF16 on processors that can (AVX-512 BF16, AMX), and takes
FP32 on others. The weights lie in the file as FP16, which has more digits; OpenVINO keeps those beyond its range
in FP32. For TensorRT the graph itself is in BF16 (`stages.quantise.bfloat16`). ONNX Runtime's CPU provider computes
nothing in BF16; it runs such a graph in FP32 with every answer rounded to BF16 (`stages.runtime.rounded`).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from calibration.statistics import Statistics
from stages.artifact import Artifact
from stages.errors import StageError
from stages.onnx_model import read_graph, weight_bytes
from stages.progress import Progress
from stages.quantise.bfloat16 import in_bfloat16
from stages.quantise.variant import VariantConfig, build, write_variant

__all__ = ["Bf16"]


class Bf16(VariantConfig):
    """16-bit floats with the range of FP32. `exclude` is of TensorRT's form."""

    precision: ClassVar[str] = "bf16"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "tensorrt")
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnx-ir", "onnxscript", "ml-dtypes")
    smaller: ClassVar[bool] = False  # OpenVINO's ONNX graph is not; `bf16` is ensured of the IR

    type: Literal["bf16"] = "bf16"
    runtime: Literal["openvino", "tensorrt"] = "openvino"

    @property
    def arithmetic(self) -> Literal["fp32", "bf16"]:
        return "bf16"


@build.register
def _(config: Bf16, model: Artifact, out: Path, progress: Progress, statistics: Statistics | None) -> Artifact:
    """Raises `StageError` if a graph for TensorRT has no 32-bit weights, or is quantised."""
    graph = read_graph(model)
    bytes_before = weight_bytes(graph)
    if config.runtime == "openvino":
        progress.update("writing OpenVINO's form of the graph")
        return write_variant(graph, model, out, config, bytes_before)
    progress.update("converting to BF16")
    converted = in_bfloat16(graph, exclude=config.exclude)
    if weight_bytes(converted) >= bytes_before:
        raise StageError(f"{config.name} found nothing to convert: the model has no 32-bit weights")
    return write_variant(converted, model, out, config, bytes_before)
