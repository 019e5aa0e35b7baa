"""BF16: weights stored in 16 bits, arithmetic in BF16, inputs and outputs as they were.

ONNX Runtime's CPU provider computes nothing in BF16; OpenVINO does on processors that can (AVX-512 BF16, AMX), and
takes FP32 on others. The weights lie in the file as FP16, which has more digits; OpenVINO keeps those beyond its range
in FP32. BF16 has the range of FP32, so that nothing can overflow while it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from calibration.statistics import Statistics
from stages.artifact import Artifact
from stages.onnx_model import read_graph, weight_bytes
from stages.progress import Progress
from stages.quantise.variant import VariantConfig, build, write_variant

__all__ = ["Bf16"]


class Bf16(VariantConfig):
    """16-bit floats with the range of FP32, in OpenVINO."""

    precision: ClassVar[str] = "bf16"
    targets: ClassVar[tuple[str, ...]] = ("cpu",)
    smaller: ClassVar[bool] = False  # the ONNX graph is not; `bf16` is ensured of the IR

    type: Literal["bf16"] = "bf16"
    runtime: Literal["openvino"] = "openvino"

    @property
    def arithmetic(self) -> Literal["fp32", "bf16"]:
        return "bf16"


@build.register
def _(config: Bf16, model: Artifact, out: Path, progress: Progress, statistics: Statistics | None) -> Artifact:
    progress.update("writing OpenVINO's form of the graph")
    graph = read_graph(model)
    return write_variant(graph, model, out, config, weight_bytes(graph))
