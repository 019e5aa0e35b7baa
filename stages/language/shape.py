"""The sizes of a language model that its memory follows from, read from `config.json` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from stages.errors import InputError
from stages.language.checkpoint import Attention

__all__ = ["NotUnderstoodError", "Shape", "read_attention", "read_config", "read_shape"]

_UNDERSTOOD = frozenset(
    {
        "apertus", "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4",
        "gpt2", "gpt_neox", "gpt_oss", "granite", "granitemoe", "helium", "hunyuan_v1_dense", "llama", "ministral",
        "mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "qwen2",
        "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2",
    }
)  # fmt: skip
"""Models (`model_type` of the part that makes text) whose every layer caches a key and a value for each of its heads,
for all positions or for those of a window, and no layer shares another's. Others may cache something else (latent
vectors, states of a fixed size), and a figure for them would be wrong."""


class NotUnderstoodError(InputError):
    """The model is sound, but what it keeps in its cache is not known here."""


class Shape(BaseModel):
    """What a model's memory follows from, its weights aside.

    `dtype`: what the checkpoint says of its unquantised weights. `attention` is None where it is not understood, and
    `not_understood` says why. `positions`: the longest sequence, 0 if the configuration names none. `quantised`: the
    format (`gptq`, `awq`, …) of a checkpoint that is, and `group_size`: how many inputs share a scale; `cache_in_fp8`:
    it says itself that its cache is kept in 8 bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: str
    dtype: str
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    positions: int
    attention: Attention | None
    not_understood: str | None
    quantised: str | None
    group_size: int | None
    cache_in_fp8: bool


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json`. Raises `InputError` if it is missing or damaged."""
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{directory} is not a checkpoint: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{file} does not say which model it is of: model_type is missing")
    return config


def read_shape(directory: Path) -> Shape:
    """The shape of the checkpoint in a directory. Raises `InputError` if there is none."""
    config = read_config(directory)
    text = _text_config(config)
    attention, not_understood = None, None
    try:
        attention = read_attention(config)
    except NotUnderstoodError as error:
        not_understood = str(error)
    quantisation = config.get("quantization_config") or {}
    scheme = quantisation.get("kv_cache_scheme")
    hidden = int(text.hidden_size)
    return Shape(
        model_type=config["model_type"],
        dtype=_dtype(config),
        hidden_size=hidden,
        intermediate_size=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        vocabulary=int(text.vocab_size),
        positions=int(getattr(text, "max_position_embeddings", None) or 0),
        attention=attention,
        not_understood=not_understood,
        quantised=quantisation.get("quant_method"),
        group_size=_group_size(quantisation),
        cache_in_fp8=bool(scheme and scheme.get("num_bits") == 8),
    )


def read_attention(config: Mapping[str, Any]) -> Attention:
    """The attention of a model by its `config.json`, with what the model's own class takes where that says nothing.

    Layers whose kind the configuration names (`layer_types`) have the window or none; without that list
    `sliding_window` is every layer's. 0 means none, as in vLLM (`vllm/config/model.py`, 0.32).

    Raises `NotUnderstoodError` for a model whose cache is something else than keys and values of attention heads.
    """
    text = _text_config(config)
    if text.model_type not in _UNDERSTOOD:
        raise NotUnderstoodError(
            f"what {text.model_type!r} keeps in its cache is not understood: latent attention, state-space layers and "
            "layers that share a cache need other memory than keys and values for each head"
        )
    if getattr(text, "is_heterogeneous", False):
        raise NotUnderstoodError(f"the layers of this {text.model_type!r} differ in size, which is not understood")
    layers, heads = int(text.num_hidden_layers), int(text.num_attention_heads)
    window = getattr(text, "sliding_window", None) or None
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        windows: list[int | None] = [window] * layers
    elif unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise NotUnderstoodError(f"{text.model_type!r} has layers of the kind {unknown[0]!r}, which is not understood")
    elif window is None and "sliding_attention" in kinds:
        raise NotUnderstoodError(f"{text.model_type!r} has layers with a window, and its configuration names no window")
    else:
        windows = [window if kind == "sliding_attention" else None for kind in kinds]
    return Attention(
        layers=layers,
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        windows=tuple(windows),
    )


def _group_size(quantisation: Mapping[str, Any]) -> int | None:
    """Of GPTQ and AWQ, or of the first group of layers that compressed-tensors has; -1 and None are one a channel."""
    groups = [group.get("weights") or {} for group in (quantisation.get("config_groups") or {}).values()]
    size = next((part["group_size"] for part in (quantisation, *groups) if part.get("group_size")), None)
    return size if isinstance(size, int) and size > 0 else None


def _text_config(config: Mapping[str, Any]) -> Any:
    """The configuration of the part that makes text, as an object of its own class."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise InputError(
            f"transformers does not know the model type {model_type!r}: it is newer than the installed version, or has "
            "code of its own"
        )
    # Token numbers outside the vocabulary are of no interest here, and are warned about at length.
    sizes = {key: value for key, value in config.items() if not key.endswith("_token_id")}
    try:
        text = CONFIG_MAPPING[model_type].from_dict(sizes).get_text_config(decoder=True)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"config.json does not describe a {model_type!r}: {reason}") from error
    if getattr(text, "is_heterogeneous", False):  # what its layers have in common may be read, too
        text.allow_global_per_layer_attribute_access = True
    return text


def _dtype(config: Mapping[str, Any]) -> str:
    """What transformers 5 calls `dtype` and earlier ones `torch_dtype`; float32 if neither is there."""
    parts = (config, config.get("text_config") or {})
    named = next((part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), "float32")
    return str(named)
