"""Weights in 4 bits, in blocks, as a decoder in ONNX with its key-value cache, for ONNX Runtime GenAI."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tempfile
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stages.artifact import Artifact, link
from stages.errors import InputError
from stages.language.checkpoint import Checkpoint, Quantisation
from stages.language.quantise.genai_builder import build_decoder
from stages.language.quantise.gptq import Gptq
from stages.language.quantise.linear_layers import LinearLayers, linear_layers
from stages.language.quantise.onnx_decoder import (
    HEAD,
    ensure_cache,
    ensure_finite,
    ensure_layers,
    ensure_smaller,
)
from stages.language.quantise.parity import ensure_same_tokenizer
from stages.language.variant import LanguageVariant, build_checkpoint
from stages.progress import Progress

__all__ = ["Int4Onnx"]

_LIBRARY = "onnxruntime-genai"
_EMBEDDING = "/model/embed_tokens/Gather"
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)")
_JOINED = (".q_proj", ".k_proj", ".v_proj")
_HEAD_BITS = {"int4": 4, "int8": 8, "fp32": 32}


class Int4Onnx(LanguageVariant):
    """Linear layers in 4 bits with a scale for each block of `block_size` weights along the input, as ONNX Runtime's
    `MatMulNBits`, written by the model builder of ONNX Runtime GenAI.

    `algorithm`: `default` and `rtn` round to the nearest step (their scales differ), `k_quant` searches the scale and
    zero point of each block for the least error, as llama.cpp's K-quants do. `symmetric`: no zero points; not for
    `k_quant`, which always has them. With `source: gptq` the weights are GPTQ's, made first from the calibration data
    in groups of `block_size`, and the algorithm is only the head's.

    `head`: of the layer that scores the next token, which in a small model is a large part of all weights, and the part
    that 4 bits harm most. A head that is one matrix with the embedding takes that along to `int4`.

    `accuracy_level` 4 rounds activations to 8 bits, in blocks; 1 leaves them in FP32, which can take ten times as long
    at each token.
    """

    precision: ClassVar[str] = "int4"
    targets: ClassVar[tuple[str, ...]] = ("cpu",)
    libraries: ClassVar[tuple[str, ...]] = (_LIBRARY, "onnxruntime", "onnx-ir", "gptqmodel")

    type: Literal["int4-onnx"] = "int4-onnx"
    runtime: Literal["onnxruntime-genai"] = "onnxruntime-genai"
    block_size: Literal[16, 32, 64, 128] = 32
    algorithm: Literal["default", "rtn", "k_quant"] = "default"
    symmetric: bool = False
    head: Literal["int4", "int8", "fp32"] = "int8"
    accuracy_level: Literal[1, 4] = 4
    source: Literal["original", "gptq"] = "original"

    @model_validator(mode="after")
    def _what_gptq_does(self) -> Self:
        if self.source == "gptq" and self.block_size == 16:
            raise ValueError("GPTQ has no groups of 16: with source: gptq block_size is 32, 64 or 128")
        if self.source == "gptq" and self.exclude:
            raise ValueError("with source: gptq nothing can be excluded, since GenAI's builder cannot read it then")
        return self

    @property
    def needs_data(self) -> bool:
        return self.source == "gptq"

    @property
    def can_fall_back(self) -> bool:
        return self.source == "original"


@build_checkpoint.register
def _(config: Int4Onnx, model: Artifact, out: Path, progress: Progress, data: Artifact | None) -> Artifact:
    """Write the decoder (`model.onnx`, `model.onnx.data`), `genai_config.json` and the model's other files.

    GenAI's own tokenizer puts no token before a text: whoever reads with it adds `Checkpoint.begins_with` himself.

    Raises `InputError` if the builder does not know the architecture or the configuration does not suit the model, and
    `StageError` if what it wrote does not hold to `stages.language.quantise.onnx_decoder`, or the tokenizer changed.
    """
    about, layers = Checkpoint.of(model), linear_layers(model)
    if about.quantisation is not None:
        raise InputError(f"{model.path} is quantised already ({about.quantisation.method}): give the original")
    if layers.stacks:
        raise InputError(f"{model.path} is a mixture of experts ({layers.stacks[0]}), which {config.type} is not for")
    kept = layers.chosen(config.exclude, "exclude")
    promised = [name for name in layers.shapes if name not in kept]
    _ensure_zero_points(config, layers, promised, about)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        source = model if config.source == "original" else _gptq(config, model, Path(scratch), progress, data)
        build_decoder(
            source.path,
            out,
            _builder_options(config, kept, about),
            about.attention.layers,
            progress,
            trust=about.trust_remote_code,
        )
    _complete(model, out)
    progress.update("trying the decoder")
    ensure_layers(layers, dict.fromkeys(promised, 4), _HEAD_BITS[config.head], out)
    ensure_cache(about, out)
    ensure_smaller(model, out)
    ensure_same_tokenizer(model.path, out, trust_remote_code=about.trust_remote_code)
    described = about.model_copy(
        update={
            "runtime": config.runtime,
            "precision": config.precision,
            "dtype": "float32",
            "quantisation": _quantisation(config, len(promised), layers),
        }
    )
    origins = {"model": model} if data is None or not config.needs_data else {"model": model, "data": data}
    decoder = Artifact.write(out, "checkpoint", described.metadata(), origins)
    ensure_finite(decoder)
    return decoder


def _ensure_zero_points(config: Int4Onnx, layers: LinearLayers, promised: list[str], about: Checkpoint) -> None:
    """What the libraries make of zero points (GenAI 0.18, ONNX Runtime 1.31) does not suit every model.

    Two of 4 bits share a byte. For `rtn` and `k_quant` those of all outputs are packed without a gap, which then fails
    unless they make whole bytes for each output (`neural_compressor/weight_only.py`, `make_matmul_weight_only_node`).
    Those of `default` the builder loses where an embedding and a head share a matrix of 4 bits.
    """
    if config.algorithm != "k_quant" and config.symmetric:
        return
    if config.algorithm == "default":
        if config.head == "int4" and about.tied_head:
            raise InputError(
                "the head is one matrix with the embedding, which `head: int4` with the algorithm `default` does only "
                "with `symmetric: true`; `algorithm: k_quant` is the other way"
            )
        return
    inputs = {name: layers.shapes[name][1] for name in promised if config.source == "original"}
    if layers.head is not None and config.head == "int4":
        inputs[layers.head] = about.hidden_size
    for name, count in inputs.items():
        if -(-count // config.block_size) % 2:
            raise InputError(
                f"the {count} inputs of {name} are an odd number of blocks of {config.block_size}, which "
                f"{config.algorithm} cannot do with zero points: take smaller blocks, or `algorithm: default`"
            )


def _gptq(config: Int4Onnx, model: Artifact, out: Path, progress: Progress, data: Artifact | None) -> Artifact:
    return build_checkpoint(Gptq.model_validate({"group_size": config.block_size}), model, out, progress, data)


def _builder_options(config: Int4Onnx, kept: tuple[str, ...], about: Checkpoint) -> dict[str, str]:
    excluded = [_node(name) for name in kept]
    if config.head == "fp32":
        excluded.append(HEAD)
    if not (about.tied_head and config.head == "int4"):
        excluded.append(_EMBEDDING)  # else it would be rounded to 4 bits in every model with a tied head
    options = {
        "block_size": str(config.block_size),
        "algo_config": config.algorithm,
        "is_symmetric": str(config.symmetric).lower(),
        "accuracy_level": str(config.accuracy_level),
        "nodes_to_exclude": ",".join(excluded),
        # It joins q, k and v in one product, all layers' or none's: with some layers' it mixes up their inputs (0.18).
        "fuse_qkv": str(not any(name.endswith(_JOINED) for name in kept)).lower(),
    }
    if config.head == "int8":
        options["matmul_mixed_precision"] = "last_matmul:int8"
    return options


def _node(name: str) -> str:
    """What the builder calls the node of a linear layer."""
    found = _LAYER.fullmatch(name)
    if found is None:
        raise InputError(f"{name} cannot be excluded: GenAI's builder knows layers called model.layers.N.self_attn.…")
    return f"/model/layers.{found[1]}/{'attn' if found[2] == 'self_attn' else 'mlp'}/{found[3]}/MatMul"


def _complete(model: Artifact, out: Path) -> None:
    """Put the model's other files beside the decoder. The builder's own of the tokenizer stay (GenAI cannot read the
    numbers that some have for an endless length), without what they say of how it was loaded."""
    file = out / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only"):
        settings.pop(name, None)
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in model.files:
        if not name.endswith(_WEIGHTS) and not (out / name).exists():
            link(model.path / name, out / name)


def _quantisation(config: Int4Onnx, promised: int, layers: LinearLayers) -> Quantisation:
    return Quantisation(
        format="onnx",
        method="gptq" if config.source == "gptq" else config.algorithm,
        weight_bits=4,
        activation_bits=8 if config.accuracy_level == 4 else None,
        group_size=config.block_size,
        symmetric=config.source == "gptq" or (config.symmetric and config.algorithm != "k_quant"),
        layers=promised + (layers.head is not None and config.head != "fp32"),
        linear_layers=len(layers),
        library=_LIBRARY,
        version=importlib.metadata.version(_LIBRARY),
    )
