"""What every quantised checkpoint is held to, whatever made it: read from the files as they were written.

The promised layers are quantised and no others; every other tensor says what it said; `quantization_config` tells
readers the truth, and the rest of `config.json` is the original's; the tokenizer makes the same tokens; transformers
loads it and it answers with finite scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.language.checkpoint import Checkpoint
from stages.language.quantise.parity import ensure_same_tokenizer
from stages.language.runtime.transformers import open_language
from stages.language.shape import read_config
from stages.language.weights import Tensor, read_tensors

__all__ = ["Form", "Promise", "ensure_quantised"]

Form = Literal["gptq", "awq", "pack-quantized", "int-quantized", "float-quantized"]
"""How the tensors of a layer are stored; the last three are those of compressed-tensors, by its own names."""

_OPTIONAL = {"bias", "input_scale", "input_zero_point", "weight_g_idx", "weight_shape", "weight_zero_point"}
_WORD = 32
"""Bits of the integers that smaller ones are packed into."""

_PROBE_LENGTH = 16
_NOT_COMPARED = {
    "_name_or_path",
    "architectures",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
}


@dataclass(frozen=True)
class Promise:
    """What was asked for.

    `form`: how a quantised layer is stored. `layers`: the bits of each quantised layer, by its module's name.
    `shapes`: (outputs, inputs) of these layers. `group_size`: inputs that share a scale; None: a scale an output.
    `config`: what `quantization_config` must say, among other things. `may_change` says of a tensor that belongs to
    no quantised layer whether it may have other values than before, as norms do into which factors were folded.
    """

    form: Form
    layers: Mapping[str, int]
    shapes: Mapping[str, tuple[int, int]]
    group_size: int | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    may_change: Callable[[str], bool] = lambda name: False


def ensure_quantised(before: Artifact, after: Artifact, promise: Promise) -> None:
    """Hold the checkpoint `after` against the one that it was made from and against what was promised of it.

    Raises `StageError` for the first thing that is not so, with what was found; `RequirementError` if a library that
    transformers takes to load it is not installed.
    """
    try:
        tensors = {tensor.name: tensor for tensor in read_tensors(after.path)}
    except InputError as error:
        raise StageError(f"the checkpoint was not written whole: {error}") from error
    _ensure_layers(after.path, tensors, promise)
    _ensure_untouched(before, after, promise)
    _ensure_config(before, after, promise)
    _ensure_smaller(before.path, tensors)
    ensure_same_tokenizer(before.path, after.path, trust_remote_code=Checkpoint.of(before).trust_remote_code)
    _ensure_answers(after)


def _ensure_layers(path: Path, tensors: Mapping[str, Tensor], promise: Promise) -> None:
    """Every promised layer has the tensors of its form, in the shapes that follow from its bits and groups."""
    stored: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors.values():
        layer, _, part = tensor.name.rpartition(".")
        stored.setdefault(layer, {})[part] = tensor
    wrong = []
    for layer, bits in promise.layers.items():
        parts = stored.get(layer, {})
        expected = _expected(promise, promise.shapes[layer], bits)
        found = {name: (tensor.dtype, tensor.shape) for name, tensor in parts.items()}
        fits = all(name in found and _fits(found[name], wanted) for name, wanted in expected.items())
        if not fits or found.keys() - expected.keys() - _OPTIONAL:
            wrong.append(f"{layer} holds {_told(found)} instead of {_told(expected)}")
    if wrong:
        raise StageError(
            f"{len(wrong)} of {len(promise.layers)} layers in {path} are not quantised as promised: {wrong[0]}"
        )


_Stored = tuple[str | None, tuple[int, ...] | None]
"""A data type and a shape; None: any."""


def _expected(promise: Promise, shape: tuple[int, int], bits: int) -> dict[str, _Stored]:
    outputs, inputs = shape
    groups = inputs // promise.group_size if promise.group_size else 1
    packed_outputs = outputs * bits // _WORD
    match promise.form:
        case "gptq":  # `QuantLinear` of AutoGPTQ 0.7.1: integers lie one under the other, along the inputs
            return {
                "qweight": ("I32", (inputs * bits // _WORD, outputs)),
                "qzeros": ("I32", (groups, packed_outputs)),
                "scales": ("F16", (groups, outputs)),
                "g_idx": ("I32", (inputs,)),
            }
        case "awq":  # `WQLinear_GEMM` of AutoAWQ 0.2.9: side by side, along the outputs
            return {
                "qweight": ("I32", (inputs, packed_outputs)),
                "qzeros": ("I32", (groups, packed_outputs)),
                "scales": (None, (groups, outputs)),
            }
        case "pack-quantized":
            words = -(-inputs * bits // _WORD)
            return {"weight_packed": ("I32", (outputs, words)), "weight_scale": (None, (outputs, groups))}
        case "int-quantized":
            return {"weight": ("I8", (outputs, inputs)), "weight_scale": (None, None)}
        case "float-quantized":
            return {"weight": ("F8_E4M3", (outputs, inputs)), "weight_scale": (None, None)}


def _fits(found: _Stored, wanted: _Stored) -> bool:
    return all(want is None or have == want for have, want in zip(found, wanted, strict=True))


def _told(parts: Mapping[str, _Stored]) -> str:
    return ", ".join(f"{name} {kind or ''}{list(shape or ())}" for name, (kind, shape) in sorted(parts.items())) or "—"


def _ensure_untouched(before: Artifact, after: Artifact, promise: Promise) -> None:
    """Tensors that belong to no promised layer are the original's, with its values in the dtype that they have now."""
    import torch

    old, new = _Reader(before.path), _Reader(after.path)
    for name in new.files:
        layer, _, part = name.rpartition(".")
        if layer in promise.layers and part != "bias":
            continue
        value = new.read(name)
        if name in old.files:
            same = promise.may_change(name) or torch.equal(old.read(name).to(value.dtype), value)
        elif Checkpoint.of(before).tied_head:  # it has two names, and a file may leave out either
            twins = (twin for twin in old.files if old.shape(twin) == list(value.shape))
            same = any(torch.equal(old.read(twin).to(value.dtype), value) for twin in twins)
        else:
            raise StageError(f"{after.path} holds {name}, which neither the original has nor a quantised layer needs")
        if not same:
            raise StageError(f"{name} is not to be quantised, and has other values in {after.path} than before")
        if not torch.isfinite(value).all():
            raise StageError(f"{name} in {after.path} is not finite: the model's values do not fit {value.dtype}")


class _Reader:
    """Tensors of a checkpoint, one at a time: the files are mapped, not read whole."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        opened: list[Any] = [safe_open(file, framework="pt") for file in sorted(path.glob("*.safetensors"))]
        self.files = {str(name): file for file in opened for name in file.keys()}  # noqa: SIM118 - it is no mapping

    def shape(self, name: str) -> list[int]:
        return list(self.files[name].get_slice(name).get_shape())

    def read(self, name: str) -> Any:
        return self.files[name].get_tensor(name)


def _ensure_config(before: Artifact, after: Artifact, promise: Promise) -> None:
    from transformers import AutoConfig

    said = read_config(after.path).get("quantization_config") or {}
    for key, value in promise.config.items():
        if key not in said or said[key] != value:
            found = repr(said[key]) if key in said else "nothing"
            raise StageError(f"quantization_config in {after.path} says {found} of {key}, and {value!r} was asked for")
    trust = Checkpoint.of(before).trust_remote_code
    old, new = (
        AutoConfig.from_pretrained(artifact.path, local_files_only=True, trust_remote_code=trust).to_dict()
        for artifact in (before, after)
    )
    for key in sorted((old.keys() | new.keys()) - _NOT_COMPARED):
        if old.get(key) != new.get(key):
            raise StageError(
                f"{key} in {after.path / 'config.json'} is {new.get(key)!r}, and {old.get(key)!r} in the original"
            )


def _ensure_smaller(before: Path, tensors: Mapping[str, Tensor]) -> None:
    old = sum(tensor.size_bytes for tensor in read_tensors(before))
    new = sum(tensor.size_bytes for tensor in tensors.values())
    if new >= old:
        raise StageError(f"the weights are no smaller: {new:,} bytes, and {old:,} before")


def _ensure_answers(after: Artifact) -> None:
    """Load it as transformers does, with no tensor missing, and let it read some tokens."""
    from torch._dynamo.config import patch

    about = Checkpoint.of(after)
    length = min(_PROBE_LENGTH, about.positions)
    tokens = np.linspace(0, about.vocabulary - 1, length).round().astype(np.int64)[None]
    try:
        # GPTQModel's kernel for 8 bits on a CPU is compiled at the first call, which is not worth it for one.
        with patch(disable=True), open_language(after) as session:
            scores = session.logits(tokens)
    except InputError as error:
        raise StageError(f"transformers does not load back what was written: {error}") from error
    if scores.shape != (1, length, about.vocabulary):
        raise StageError(
            f"{after.path} answers {length} tokens with scores of the shape {scores.shape}, "
            f"instead of {(1, length, about.vocabulary)}"
        )
    if not np.isfinite(scores).all():
        count = prod(scores.shape) - int(np.isfinite(scores).sum())
        raise StageError(f"{count} of {prod(scores.shape)} scores with which {after.path} answers are not finite")
