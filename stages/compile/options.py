"""How an engine is built."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

__all__ = ["AxisRange", "CompileOptions", "TensorRtOptions", "TensorRtRecipe"]

_CAPABILITY = re.compile(r"[1-9][0-9]*\.[0-9]")


class AxisRange(BaseModel):
    """The sizes of one axis that an engine takes, and the one that it is fastest at. Written as `[min, opt, max]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: PositiveInt
    opt: PositiveInt
    max: PositiveInt

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            if len(value) != 3:
                raise ValueError(f"a range is [min, opt, max], got {list(value)}")
            return dict(zip(("min", "opt", "max"), value, strict=True))
        return value

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(
                f"a range goes from min over opt to max, and [{self.min}, {self.opt}, {self.max}] does not"
            )
        return self


class TensorRtOptions(BaseModel):
    """What a recipe may say of engines.

    `profiles`: optimisation profiles, each with the range of every dynamic axis by the axis' name
    (`[{sequence: [8, 32, 128]}]`); without them, the ranges come from the data. `optimisation_level`: 0 builds fast, 5
    searches longest. `workspace_mib`: scratch memory of the engine; by default all that the GPU has. `tf32`: whether
    FP32 products may round their inputs to TF32. `version_compatible`: an engine that later TensorRT versions load, at
    some cost; who loads it executes code from the file. `hardware_compatible`: an engine for other GPUs than this one.
    `weight_streaming`: weights may stay in the host's memory. `strip`: an engine without the weights, to be refitted
    from the graph; `refit`: one whose weights can be exchanged. `reproducible`: only tactics from the timing cache.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profiles: tuple[dict[str, AxisRange], ...] = ()
    optimisation_level: int = Field(default=3, ge=0, le=5)
    workspace_mib: PositiveInt | None = None
    tf32: bool = True
    version_compatible: bool = False
    hardware_compatible: Literal["none", "ampere-plus", "same-compute-capability"] = "none"
    weight_streaming: bool = False
    strip: bool = False
    refit: bool = False
    reproducible: bool = False


class TensorRtRecipe(TensorRtOptions):
    """`engines`: by compute capability (`"8.9"`) the file of an engine that was built for such a GPU elsewhere, to be
    published beside the one that is built here (`stages.compile.elsewhere`)."""

    engines: dict[str, str] = Field(default_factory=dict)

    @field_validator("engines", mode="before")
    @classmethod
    def _capabilities(cls, value: Any) -> Any:
        for capability, file in value.items() if isinstance(value, dict) else ():
            if not isinstance(capability, str):
                raise ValueError(f'write the compute capability {capability} in quotes: "{capability}"')
            if not _CAPABILITY.fullmatch(capability):
                raise ValueError(f'{capability!r} is no compute capability; one is written like "8.9"')
            if not str(file).endswith(".plan"):
                raise ValueError(f"the engine for {capability} is {file}; an engine is a .plan file")
        return value


class CompileOptions(TensorRtOptions):
    """`batch`: of the graph's first axis, where it is dynamic and no profile names it. `cache`: where timing caches are
    kept (default: the user's cache directory); it decides how long a build takes and is no part of a step's key."""

    batch: AxisRange = AxisRange(min=1, opt=8, max=32)
    cache: Path | None = Field(default=None, exclude=True)
