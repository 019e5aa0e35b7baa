"""INT8, weights only: in 8 bits and in blocks, while activations stay floats and need no calibration.

Rounding to nearest is enough: 8 bits leave an error so small that a better method would not show.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.statistics import Statistics
from stages.artifact import Artifact
from stages.progress import Progress
from stages.quantise.blocks.form import BlockFormat, BlockMatrix
from stages.quantise.blocks.ranges import rtn
from stages.quantise.variant import build
from stages.quantise.weight_only import WeightOnly, make_weight_only

__all__ = ["Int8WeightOnly"]


class Int8WeightOnly(WeightOnly):
    """8-bit weights of products, tables and convolutions.

    `block_size`: how many inputs of one output share a scale. At `accuracy_level` 4 ONNX Runtime rounds the activations
    in blocks of that size, too, where most of the error comes from; at 1 it keeps them as they are, and takes longer
    for a short input than FP32 does.
    """

    precision: ClassVar[str] = "int8"

    type: Literal["int8-weight-only"] = "int8-weight-only"
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    block_size: Literal[16, 32, 64, 128] = 64


@build.register
def _(
    config: Int8WeightOnly, model: Artifact, out: Path, progress: Progress, statistics: Statistics | None
) -> Artifact:
    """Raises `StageError` if the model has no matrix product or convolution with constant weights."""
    format = BlockFormat(8, config.block_size, symmetric=True)

    def quantise(
        weight: NDArray[np.float32], activations: list[str]
    ) -> tuple[BlockMatrix, list[NDArray[np.float32] | None]]:
        return rtn(weight, format), [None] * len(activations)

    return make_weight_only(config, model, out, progress, format=format, table_bits=8, quantise=quantise)
