"""GPTQ: weights in 4 or 8 bits, in the format that AutoGPTQ defined, made by its maintained successor GPTQModel.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv:2210.17323:
each input of a layer makes up for the rounding of those before it, by the second moments of the layer's inputs.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.artifact import Artifact
from stages.language.checkpoint import Checkpoint, Quantisation
from stages.language.quantise.ensure import Promise, ensure_quantised
from stages.language.quantise.gptqmodel import LIBRARY, prepare, quantise, rules_to_leave_out
from stages.language.variant import LanguageVariant, build_checkpoint
from stages.progress import Progress

__all__ = ["Gptq"]


class Gptq(LanguageVariant):
    """Weights as symmetric integers in groups along a layer's inputs; activations as they are.

    `bits` of a weight. `group_size`: inputs that share a scale; -1: one scale for each output. `act_order`: the inputs
    with the largest activations first, which is a little nearer to the original, and slower in servers, since groups
    are then no neighbours. Without it the same is done within groups and among them, which costs nothing. `damping`:
    relative to the mean second moment of a layer's inputs. With a layer in `exclude` stay those that servers hold
    together with it. More bits for some layers are not offered: of the readers only vLLM and SGLang understand that,
    and what transformers cannot load cannot be checked.

    `backend` is the name that a recipe gives to the format's maker. `auto-gptq` is accepted and means this format:
    GPTQModel makes it in either case, and the record says so. AutoGPTQ itself is no longer maintained and does not
    import with current transformers.
    """

    precision: ClassVar[str] = "int4"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "vllm")
    libraries: ClassVar[tuple[str, ...]] = (LIBRARY, "optimum", "transformers", "torch")

    type: Literal["gptq"] = "gptq"
    runtime: Literal["transformers"] = "transformers"
    bits: Literal[4, 8] = 4
    group_size: Literal[32, 64, 128, -1] = 128
    act_order: bool = False
    damping: float = Field(default=0.05, gt=0, lt=1)
    backend: Literal["gptqmodel", "auto-gptq"] = "gptqmodel"

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def can_fall_back(self) -> bool:
        return True


@build_checkpoint.register
def _(config: Gptq, model: Artifact, out: Path, progress: Progress, data: Artifact | None) -> Artifact:
    """Raises as `prepare` and `quantise` in `stages.language.quantise.gptqmodel`, and `ensure_quantised`."""
    assert data is not None
    progress.update("reading the layers")
    group_size = config.group_size if config.group_size > 0 else None
    job = prepare(model, data, config.exclude, group_size=group_size)
    asked: dict[str, Any] = {
        "bits": config.bits,
        "group_size": config.group_size,
        "desc_act": config.act_order,
        "sym": True,
    }
    # Transformers looks nowhere else for what is not quantised.
    also = {"modules_in_block_to_quantize": [list(job.quantised)]} if job.excluded else {}
    about = Checkpoint.of(model)
    quantise(
        job,
        lambda library, common: library.GPTQConfig(
            **common,
            **asked,
            damp_percent=config.damping,
            dynamic=rules_to_leave_out(job.excluded),
            # The order of act_order within groups and among them, where there are groups: they stay neighbours.
            act_group_aware=group_size is not None and not config.act_order,
        ),
        out,
        progress,
        dtype=about.dtype,
        also=also,
    )
    done = Quantisation(
        format="gptq",
        method="gptq",
        weight_bits=config.bits,
        group_size=group_size,
        act_order=config.act_order,
        layers=len(job.quantised),
        linear_layers=len(job.layers),
        library=LIBRARY,
        version=version(LIBRARY),
        asked_for=config.backend,
    )
    described = about.model_copy(update={"precision": f"int{config.bits}", "quantisation": done})
    written = Artifact.write(out, "checkpoint", described.metadata(), {"model": model, "data": data})
    progress.update("reading it back")
    ensure_quantised(
        model,
        written,
        Promise(
            form="gptq",
            layers=dict.fromkeys(job.quantised, config.bits),
            shapes=job.layers.shapes,
            group_size=group_size,
            # The first version of the format: zero points are stored less one, as AutoGPTQ reads them.
            config={**asked, **also, "quant_method": "gptq", "checkpoint_format": "gptq", "lm_head": False},
        ),
    )
    return written
