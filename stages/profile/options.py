"""How speed is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.runtime.provider import CudaOptions

__all__ = ["ProfileOptions", "TurnOptions"]


class TurnOptions(BaseModel):
    """How variants are measured in turns, whatever they are.

    `threads`: 0 is every usable core. `inputs`: how many different batches of each size are cycled through; odd, so
    that the median is one of them. A batch size is settled when every variant has `min_calls` and the 95 % interval of
    its median is narrower than `relative_interval` of it; with `until="decided"`, when each variant is known to be
    faster or slower than the baseline (or not to differ by 2 %). `budget_s` ends the measuring in any case, after one
    round of each batch size; warming up is part of it. A variant that does not answer in `timeout_s` is ended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    baseline: str = "fp32"
    batch_sizes: tuple[int, ...] = Field(default=(1, 8, 32), min_length=1)
    budget_s: float = Field(default=10.0, gt=0)
    threads: int = Field(default=0, ge=0)
    inputs: int = Field(default=7, ge=1)
    relative_interval: float = Field(default=0.05, gt=0)
    min_calls: int = Field(default=30, ge=1)
    until: Literal["settled", "decided"] = "settled"
    timeout_s: float = Field(default=120.0, gt=0)
    seed: int = 0


class ProfileOptions(TurnOptions):
    """How speed is measured. `runtime`: None measures each model in the one that it was made for. `cuda`: of ONNX
    Runtime on a GPU."""

    runtime: Literal["onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt"] | None = None
    cuda: CudaOptions = CudaOptions()
