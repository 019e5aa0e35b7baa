"""The baseline: the model as it was converted."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from stages.artifact import Artifact
from stages.onnx_model import copy_model
from stages.progress import Progress
from stages.quantise.variant import VariantConfig, build

__all__ = ["Fp32"]


class Fp32(VariantConfig):
    """32-bit floats throughout, unchanged: what every other variant is compared with."""

    precision: ClassVar[str] = "fp32"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    type: Literal["fp32"] = "fp32"


@build.register
def _(config: Fp32, model: Artifact, out: Path, progress: Progress) -> Artifact:
    return copy_model(model, out)
