"""AWQ: weights in 4 bits with zero points, in the format that AutoAWQ defined, made by GPTQModel.

Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration",
arXiv:2306.00978: the inputs that carry the most are scaled up before rounding and down again before the layer, in the
norm or in the layer that they come from; then ranges are clipped where that costs the outputs least.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from calibration.windows import Windows
from stages.artifact import Artifact
from stages.language.checkpoint import Checkpoint, Quantisation
from stages.language.quantise.ensure import Promise, ensure_quantised
from stages.language.quantise.gptqmodel import LIBRARY, prepare, quantise, rules_to_leave_out
from stages.language.quantise.linear_layers import LinearLayers
from stages.language.variant import LanguageVariant, build_checkpoint
from stages.progress import Progress

__all__ = ["Awq"]

_OUTPUTS = 64
"""GPTQModel looks for the best clipping of so many outputs at a time, and of no fewer."""

_IN_BLOCK = re.compile(r".*?\.\d+(?=\.)")


class Awq(LanguageVariant):
    """Weights as integers with zero points, in groups along a layer's inputs; activations as they are.

    `group_size`: inputs that share a scale. `windows`: how many of the calibration windows are looked at, evenly
    spaced; the factors need fewer of them than GPTQ's second moments (section 5.3 of the paper), and what all the
    layers of a block see in them is held in memory. `exclude` is taken further than by other variants: with one layer
    its whole module stays as it is, a block's attention or its MLP, because GPTQModel loses track of what it has
    scaled where only some layers of one are left out.

    A checkpoint in float32 becomes one in bfloat16: the format's makers and readers know no other than 16 bits.

    `backend` is the name that a recipe gives to the format's maker. `autoawq` is accepted and means this format:
    GPTQModel makes it in either case, and the record says so. AutoAWQ itself is no longer maintained.
    """

    precision: ClassVar[str] = "int4"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "vllm")
    libraries: ClassVar[tuple[str, ...]] = (LIBRARY, "transformers", "torch")

    type: Literal["awq"] = "awq"
    runtime: Literal["transformers"] = "transformers"
    group_size: Literal[32, 64, 128] = 128
    windows: int = Field(default=32, ge=1)
    backend: Literal["gptqmodel", "autoawq"] = "gptqmodel"

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def can_fall_back(self) -> bool:
        return True


@build_checkpoint.register
def _(config: Awq, model: Artifact, out: Path, progress: Progress, data: Artifact | None) -> Artifact:
    """Raises as `prepare` and `quantise` in `stages.language.quantise.gptqmodel`, and `ensure_quantised`."""
    assert data is not None
    progress.update("reading the layers")
    job = prepare(
        model, data, config.exclude, group_size=config.group_size, outputs=_OUTPUTS, together=_of_the_same_modules
    )
    about = Checkpoint.of(model)
    dtype: Literal["bfloat16", "float16"] = "bfloat16" if about.dtype == "float32" else about.dtype
    also = {"modules_to_not_convert": list(job.excluded)} if job.excluded else {}
    quantise(
        replace(job, windows=_spread(job.windows, config.windows)),
        lambda library, common: library.AWQConfig(
            **common, bits=4, group_size=config.group_size, sym=False, dynamic=rules_to_leave_out(job.excluded)
        ),
        out,
        progress,
        dtype=dtype,
        also=also,
    )
    done = Quantisation(
        format="awq",
        method="awq",
        weight_bits=4,
        group_size=config.group_size,
        symmetric=False,
        layers=len(job.quantised),
        linear_layers=len(job.layers),
        library=LIBRARY,
        version=version(LIBRARY),
        asked_for=config.backend,
    )
    described = about.model_copy(update={"precision": config.precision, "dtype": dtype, "quantisation": done})
    written = Artifact.write(out, "checkpoint", described.metadata(), {"model": model, "data": data})
    progress.update("reading it back")
    blocks = {_block(name) for name in job.quantised}
    ensure_quantised(
        model,
        written,
        Promise(
            form="awq",
            layers=dict.fromkeys(job.quantised, 4),
            shapes=job.layers.shapes,
            group_size=config.group_size,
            config={
                "quant_method": "awq",
                "version": "gemm",
                "bits": 4,
                "group_size": config.group_size,
                "zero_point": True,
                **also,
            },
            # The norms of a block take up the factors of the layers behind them.
            may_change=lambda name: name.rpartition(".")[0] not in job.layers.shapes and _block(name) in blocks,
        ),
    )
    return written


def _of_the_same_modules(layers: LinearLayers, names: Iterable[str]) -> tuple[str, ...]:
    modules = {name.rpartition(".")[0] for name in names}
    return tuple(name for name in layers.shapes if name.rpartition(".")[0] in modules)


def _spread(windows: Windows, count: int) -> Windows:
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(count, len(windows))).round().astype(int))
    return replace(windows, tokens=windows.tokens[chosen], first=windows.first[chosen])


def _block(name: str) -> str | None:
    """The block that a tensor or a layer belongs to: its name as far as its number."""
    found = _IN_BLOCK.match(name)
    return found and found.group()
