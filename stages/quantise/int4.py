"""INT4: weights in 4 bits, in blocks of some tens that share a scale and a zero point; activations in floats.

There are four ways to choose the integers. On all-MiniLM-L6-v2 each keeps more of the model than the one before, and
the last far more:

- `rtn` rounds to nearest;
- `hqq` fits the zero points to the weights, and needs no data. They lie between integers then, with which ONNX
  Runtime multiplies more slowly;
- `awq-clip` clips ranges where that costs the outputs least, and needs some activations;
- `gptq` lets each input make up for the rounding of those before it, and needs the activations' second moments.

The last two also add to the bias what the rounding takes from the mean of each output. GPTQ then works with the
covariance: what the mean contributes is no longer its concern.

AWQ's other half, factors for channels that are taken back behind the rounding, is left out: added to GPTQ it gained
nothing, and it would cost a multiplication in front of every product.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from calibration.statistics import ActivationStatistics, Statistics
from stages.artifact import Artifact
from stages.progress import Progress
from stages.quantise.blocks.awq import awq_clip
from stages.quantise.blocks.form import BlockFormat, BlockMatrix
from stages.quantise.blocks.gptq import gptq
from stages.quantise.blocks.hqq import hqq
from stages.quantise.blocks.ranges import rtn
from stages.quantise.int4_blocks import make_int4_blocks
from stages.quantise.variant import build
from stages.quantise.weight_only import WeightOnly, make_weight_only

__all__ = ["Int4"]


class Int4(WeightOnly):
    """4-bit weights of products, in blocks; embedding tables in 4 bits, convolutions in 8.

    `method` chooses the integers (see above). `block_size`: how many inputs of one output share a scale.
    `symmetric`: without zero points, which saves little and costs some accuracy. For TensorRT blocks are symmetric and
    hold 128. `bias_correction`: where there are
    data. `embedding_bits`: 4-bit tables cost MiniLM a cosine of 0.001 and save a quarter of the file. `damping` and
    `act_order` are GPTQ's; so much damping costs little where there are many data, and saves much where there are few.
    """

    precision: ClassVar[str] = "int4"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "tensorrt")

    type: Literal["int4"] = "int4"
    runtime: Literal["onnxruntime", "openvino", "tensorrt"] = "onnxruntime"
    method: Literal["gptq", "awq-clip", "hqq", "rtn"] = "gptq"
    block_size: Literal[16, 32, 64, 128] = Field(default_factory=lambda data: 128 if _for_tensorrt(data) else 32)
    symmetric: bool = Field(default_factory=lambda data: _for_tensorrt(data))
    bias_correction: bool = True
    embedding_bits: Literal[4, 8] = 4
    damping: float = Field(default=0.1, gt=0, le=1)
    act_order: bool = True

    @model_validator(mode="after")
    def _zero_points_to_choose(self) -> Self:
        if self.method == "hqq" and self.symmetric:
            raise ValueError("hqq chooses zero points, and symmetric blocks have none")
        if self.runtime == "tensorrt" and (self.block_size != 128 or not self.symmetric):
            raise ValueError("TensorRT takes symmetric blocks of 128")
        return self

    @property
    def needs_data(self) -> bool:
        return self.method in ("gptq", "awq-clip")

    @property
    def needs_gram(self) -> bool:
        return self.method == "gptq"


@build.register
def _(config: Int4, model: Artifact, out: Path, progress: Progress, statistics: Statistics | None) -> Artifact:
    """Raises `StageError` if the model has no matrix product with constant weights."""
    format = BlockFormat(4, config.block_size, config.symmetric, positive=config.runtime == "tensorrt")
    quantise = partial(_quantise, config, format, statistics or {})
    if config.runtime == "tensorrt":
        return make_int4_blocks(config, model, out, progress, quantise)
    return make_weight_only(
        config, model, out, progress, format=format, table_bits=config.embedding_bits, quantise=quantise
    )


def _quantise(
    config: Int4,
    format: BlockFormat,
    statistics: Statistics | dict[str, ActivationStatistics],
    weight: NDArray[np.float32],
    activations: list[str],
) -> tuple[BlockMatrix, list[NDArray[np.float32] | None]]:
    # An activation that no calibration sample reached has no statistics.
    seen = {name: statistics[name] for name in activations if config.needs_data and name in statistics}
    matrix = _in_blocks(config, format, weight, list(seen.values()))
    if not config.bias_correction:
        return matrix, [None] * len(activations)
    lost = weight - matrix.restored()
    return matrix, [seen[name].mean @ lost if name in seen else None for name in activations]


def _in_blocks(
    config: Int4, format: BlockFormat, weight: NDArray[np.float32], seen: list[ActivationStatistics]
) -> BlockMatrix:
    if config.method == "hqq":
        return hqq(weight, format)
    if config.method == "rtn" or not seen:
        return rtn(weight, format)
    if config.method == "awq-clip":
        return awq_clip(weight, format, np.concatenate([each.rows for each in seen]))
    moments = _moments(seen, centred=config.bias_correction)
    return gptq(weight, format, moments, damping=config.damping, act_order=config.act_order)


def _moments(seen: list[ActivationStatistics], centred: bool) -> NDArray[np.float32]:
    """The second moments, or the covariances, of the activations of all products that share a matrix: [in, in].

    Their diagonal makes up for single precision: where means are large, a covariance is a difference of large numbers,
    and would not be positive definite by as much as these were rounded.
    """
    total = np.zeros((seen[0].mean.size,) * 2, np.float32)
    for each in seen:
        assert each.gram is not None
        moments = each.gram - np.outer(each.mean, each.mean) if centred else each.gram
        rounding = 4 * np.finfo(np.float32).eps * np.trace(each.gram)
        share = each.count / sum(other.count for other in seen)
        total += (moments + rounding * np.eye(len(moments), dtype=np.float32)) * np.float32(share)
    return total


def _for_tensorrt(data: dict[str, Any]) -> bool:
    return data.get("runtime") == "tensorrt"
