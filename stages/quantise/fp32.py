"""FP32: the model as it was converted. In ONNX Runtime it is the baseline; in OpenVINO a variant like any other."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from calibration.statistics import Statistics
from stages.artifact import Artifact
from stages.onnx_model import copy_model, read_graph, weight_bytes
from stages.progress import Progress
from stages.quantise.variant import VariantConfig, build, write_variant

__all__ = ["Fp32"]


class Fp32(VariantConfig):
    """32-bit floats throughout, unchanged: what every other variant is compared with."""

    precision: ClassVar[str] = "fp32"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "tensorrt")
    smaller: ClassVar[bool] = False

    type: Literal["fp32"] = "fp32"


@build.register
def _(config: Fp32, model: Artifact, out: Path, progress: Progress, statistics: Statistics | None) -> Artifact:
    if config.runtime in ("onnxruntime", "tensorrt"):
        return copy_model(model, out)
    if config.runtime == "onnxruntime-cuda":
        return copy_model(model, out, runtime=config.runtime)
    progress.update("writing OpenVINO's form of the graph")
    graph = read_graph(model)
    return write_variant(graph, model, out, config, weight_bytes(graph))
