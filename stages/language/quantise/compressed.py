"""Variants in the compressed-tensors format, made by llm-compressor: what vLLM and SGLang load without being told.

The head stays as it is, since servers expect that, and so do the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.checkpoint import Checkpoint, Quantisation
from stages.language.quantise.ensure import Form, Promise, ensure_quantised
from stages.language.quantise.linear_layers import LinearLayers, linear_layers
from stages.language.quantise.one_shot import apply, calibration_windows, load, require_library, save
from stages.language.quantise.smoothing import ensure_known, smooth
from stages.language.variant import LanguageVariant, build_checkpoint
from stages.progress import Progress

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier

__all__ = ["W4A16", "W8A8", "Fp8"]

_FORMAT = "compressed-tensors"
_LIBRARY = "llmcompressor"


class _Compressed(LanguageVariant):
    """What the three have in common. Where servers hold layers as one (q, k and v; gate and up) and one of them is
    excluded, all of them are."""

    libraries: ClassVar[tuple[str, ...]] = (_LIBRARY, "compressed-tensors", "transformers", "torch")

    runtime: Literal["transformers"] = "transformers"


class W8A8(_Compressed):
    """INT8 for weights and activations: a scale for each output of a layer, and one for each token when it comes.

    `smoothing_strength`: how much of the activations' range SmoothQuant moves into the weights; 0 leaves it out. The
    weights are then rounded by GPTQ. `damping`: GPTQ's, relative to the mean second moment of a layer's inputs.
    """

    precision: ClassVar[str] = "int8"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "vllm")

    type: Literal["int8-w8a8"] = "int8-w8a8"
    smoothing_strength: float = Field(default=0.8, ge=0, le=1)
    damping: float = Field(default=0.01, gt=0, le=1)

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def can_fall_back(self) -> bool:
        """Smoothed layers cannot be tried one by one in the original, whose norms lack the factors."""
        return not self.smoothing_strength


class Fp8(_Compressed):
    """FP8 (E4M3) for weights and activations.

    `activations`: `dynamic` has a scale for each token, made when it comes, and one for each output of a layer, and
    needs no data; `static` has one for a whole activation, learnt from data, and one for a layer's weights.
    """

    precision: ClassVar[str] = "fp8"
    targets: ClassVar[tuple[str, ...]] = ("vllm",)

    type: Literal["fp8"] = "fp8"
    activations: Literal["dynamic", "static"] = "dynamic"

    @property
    def needs_data(self) -> bool:
        return self.activations == "static"

    @property
    def can_fall_back(self) -> bool:
        return True


class W4A16(_Compressed):
    """INT4 weights in groups along a layer's inputs, symmetric; activations as they are.

    `method`: `gptq` lets each input make up for the rounding of those before it; `rtn` rounds to nearest and needs no
    data: what the other is measured against. `act_order`: GPTQ takes the inputs with the largest activations first,
    which costs nothing when it is served. `more_bits` names layers that take 8 bits, and with each of them those that
    servers hold together with it. vLLM has kernels for these on GPUs, and none on a CPU (0.32): `exclude` serves there.
    """

    precision: ClassVar[str] = "int4"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "vllm")

    type: Literal["w4a16"] = "w4a16"
    method: Literal["gptq", "rtn"] = "gptq"
    group_size: Literal[32, 64, 128] = 128
    act_order: bool = True
    damping: float = Field(default=0.01, gt=0, le=1)
    more_bits: tuple[str, ...] = ()

    @property
    def needs_data(self) -> bool:
        return self.method == "gptq"

    @property
    def can_fall_back(self) -> bool:
        return True


@build_checkpoint.register
def _(config: W8A8, model: Artifact, out: Path, progress: Progress, data: Artifact | None) -> Artifact:
    """Raises `StageError` for an architecture of which llm-compressor does not know how to smooth it."""
    require_library()
    if config.smoothing_strength:
        ensure_known(Checkpoint.of(model).architecture)
    job = _Job(config, model, data, progress)
    scheme = {
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
        "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    }
    return job.finish(
        out,
        _gptq({"group_0": {"targets": ["Linear"], **scheme}}, job.ignored, config.damping, act_order=True),
        "int-quantized",
        smoothing_strength=config.smoothing_strength,
        method="smoothquant+gptq" if config.smoothing_strength else "gptq",
        weight_bits=8,
        activation_bits=8,
        act_order=True,
    )


@build_checkpoint.register
def _(config: Fp8, model: Artifact, out: Path, progress: Progress, data: Artifact | None) -> Artifact:
    require_library()
    job = _Job(config, model, data, progress)
    weights, activations = {"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "float"}
    if config.activations == "dynamic":
        weights |= {"strategy": "channel"}
        activations |= {"strategy": "token", "dynamic": True}
    else:
        weights |= {"strategy": "tensor"}
        # Over all windows; the usual observer forgets, and its range depends on which came last.
        activations |= {"strategy": "tensor", "observer": "static_minmax"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    modifier = _rounding({"group_0": group}, job.ignored)
    return job.finish(out, modifier, "float-quantized", method="rtn", weight_bits=8, activation_bits=8)


@build_checkpoint.register
def _(config: W4A16, model: Artifact, out: Path, progress: Progress, data: Artifact | None) -> Artifact:
    """Raises `InputError` if a layer's inputs cannot be cut into the groups."""
    require_library()
    job = _Job(config, model, data, progress)
    layers = job.layers
    layers.ensure_divisible(config.group_size, job.quantised, _smaller_group(layers, job.quantised))
    eight = [name for name in layers.chosen(config.more_bits, "more_bits") if name in job.quantised]
    four = [name for name in job.quantised if name not in eight]
    if not four:
        raise InputError(f"more_bits of {config.name} names every layer, and leaves none with 4 bits")
    groups = {
        f"group_{index}": {
            # By name where there are two sorts: vLLM before 0.32 finds "Linear" before it looks at the parts of qkv.
            "targets": names if eight else ["Linear"],
            "weights": {"num_bits": bits, "type": "int", "strategy": "group", "group_size": config.group_size},
        }
        for index, (bits, names) in enumerate(((4, four), (8, eight)))
        if names
    }
    gptq = config.method == "gptq"
    act_order = gptq and config.act_order
    return job.finish(
        out,
        _gptq(groups, job.ignored, config.damping, act_order) if gptq else _rounding(groups, job.ignored),
        "pack-quantized",
        bits=dict.fromkeys(eight, 8),
        method=config.method,
        weight_bits=4,
        group_size=config.group_size,
        act_order=act_order,
    )


def _gptq(groups: Mapping[str, Any], ignored: list[str], damping: float, act_order: bool) -> Modifier:
    from llmcompressor.modifiers.gptq import GPTQModifier

    order = "static" if act_order else None  # the groups stay those of neighbours: nothing to look up when it is served
    return GPTQModifier(config_groups=groups, ignore=ignored, dampening_frac=damping, actorder=order)


def _rounding(groups: Mapping[str, Any], ignored: list[str]) -> Modifier:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(config_groups=groups, ignore=ignored)


def _smaller_group(layers: LinearLayers, names: tuple[str, ...]) -> str:
    sizes = [size for size in (64, 32) if not any(layers.shapes[name][1] % size for name in names)]
    return f"a group_size of {sizes[0]} suits all" if sizes else "exclude what cannot be cut"


class _Job:
    """What the three have in common in the making: the layers before, the network and the record after.

    Raises `InputError` if a name that the config gives is no layer's, if nothing is left to quantise, or if the
    calibration data are not for this model.
    """

    def __init__(self, config: _Compressed, model: Artifact, data: Artifact | None, progress: Progress) -> None:
        self._config, self._model, self._progress = config, model, progress
        progress.update("reading the layers")
        self.layers = linear_layers(model)
        if Checkpoint.of(model).quantisation is not None:
            raise InputError(f"{model.path} is already quantised; {config.name} is made of what it was quantised from")
        if self.layers.stacks:
            raise InputError(
                f"{model.path} is a mixture of experts ({self.layers.stacks[0]}), which {config.type} is not for: "
                "llm-compressor writes experts under names that transformers does not find again"
            )
        excluded = self.layers.chosen(config.exclude, "exclude")
        self.quantised = tuple(name for name in self.layers.shapes if name not in excluded)
        if not self.quantised:
            raise InputError(f"{config.name} leaves no linear layer of {model.path} to quantise")
        self.ignored = [*excluded, *filter(None, [self.layers.head])]
        self._data = data if config.needs_data else None
        self._windows = calibration_windows(model, data) if data is not None and config.needs_data else None

    def finish(
        self,
        out: Path,
        modifier: Modifier,
        form: Form,
        *,
        weight_bits: int,
        bits: Mapping[str, int] | None = None,
        smoothing_strength: float = 0,
        **how: Any,
    ) -> Artifact:
        """Compress the network with `modifier`, write the checkpoint and hold it to its promise.

        `bits` of the layers that have others than `weight_bits`. `how` says what else `Quantisation` records.
        """
        smoothed = self._compress(out, modifier, smoothing_strength)
        quantisation = Quantisation(
            format=_FORMAT,
            weight_bits=weight_bits,
            layers=len(self.quantised),
            linear_layers=len(self.layers),
            library=_LIBRARY,
            version=version(_LIBRARY),
            **how,
        )
        about = Checkpoint.of(self._model).model_copy(
            update={"precision": self._config.precision, "quantisation": quantisation}
        )
        origins = {"model": self._model, **({"data": self._data} if self._data is not None else {})}
        written = Artifact.write(out, "checkpoint", about.metadata(), origins)
        self._progress.update("reading it back")
        promise = Promise(
            form=form,
            layers={**dict.fromkeys(self.quantised, weight_bits), **(bits or {})},
            shapes=self.layers.shapes,
            group_size=quantisation.group_size,
            config={"quant_method": _FORMAT, "format": form, "quantization_status": "compressed"},
            may_change=lambda tensor: tensor.rpartition(".")[0] in smoothed,
        )
        ensure_quantised(self._model, written, promise)
        return written

    def _compress(self, out: Path, modifier: Modifier, smoothing_strength: float) -> frozenset[str]:
        """Returns the names of the modules that were smoothed. The network is gone then: it is not the only one."""
        self._progress.update("reading the weights")
        network = load(self._model)
        smoothed: frozenset[str] = frozenset()
        if smoothing_strength and self._windows is not None:
            smoothed = smooth(network, smoothing_strength, self._windows, self._progress)
        apply(network, modifier, self._windows, self._progress, "quantising the layers")
        self._progress.update("writing the checkpoint")
        save(network, self._model, out)
        return smoothed
