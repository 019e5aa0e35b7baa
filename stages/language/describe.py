"""What the files of an unquantised checkpoint say of it, without its weights being loaded."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any, Literal

from calibration.language import load_language_tokenizer, put_before
from stages.errors import InputError
from stages.language.checkpoint import Attention, Checkpoint
from stages.language.configuration import load_configuration
from stages.language.runtime.silence import silence
from stages.language.shape import read_attention
from stages.language.weights import Tensor, read_tensors
from stages.source.huggingface import read_json
from stages.source.task import architecture_of

__all__ = ["describe_checkpoint"]

_Dtype = Literal["float32", "bfloat16", "float16"]
_DTYPES: dict[str, tuple[_Dtype, str]] = {
    "F32": ("float32", "fp32"),
    "BF16": ("bfloat16", "bf16"),
    "F16": ("float16", "fp16"),
}
_NO_WEIGHTS = frozenset({"I64", "BOOL"})
"""Of buffers that some models keep: masks and positions."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def describe_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Describe the checkpoint that lies in `folder` as `save_pretrained` writes it, tokenizer and all.

    Parameters are counted, and their dtype told, from the headers of the safetensors files. Where it is not known what
    a model keeps in its cache (`stages.language.shape.read_attention`), `attention` has the heads that its
    configuration names.

    Raises `InputError` for a configuration that `load_configuration` refuses or that lacks a size, a shard that is
    missing or damaged, weights that are quantised or in a dtype that is not handled, no tokenizer, and one with ids
    that the model lacks; `DataError` if the tokenizer cannot be loaded.
    """
    config = load_configuration(folder, trust_remote_code=trust_remote_code)
    raw = read_json(folder / "config.json")
    text = config.get_text_config(decoder=True)
    tensors = read_tensors(folder)
    dtype, precision = _dtype(tensors, folder)
    vocabulary = _size(text, folder, "vocab_size")
    architecture = architecture_of(raw) or _architecture(raw["model_type"])
    return Checkpoint(
        architecture=architecture,
        model_type=raw["model_type"],
        precision=precision,
        dtype=dtype,
        parameters=sum(prod(tensor.shape) for tensor in tensors if tensor.dtype not in _NO_WEIGHTS),
        vocabulary=vocabulary,
        hidden_size=_size(text, folder, "hidden_size"),
        positions=_size(text, folder, "max_position_embeddings", "max_seq_len"),
        attention=_attention(raw, text),
        tied_head=bool(getattr(text, "tie_word_embeddings", False)),
        begins_with=_begins_with(folder, vocabulary, trust_remote_code),
        trust_remote_code=trust_remote_code,
    )


def _dtype(tensors: tuple[Tensor, ...], folder: Path) -> tuple[_Dtype, str]:
    """That of most weights: a few (of routers, say) may be kept in a wider one."""
    counted: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in _DTYPES:
            counted[tensor.dtype] += prod(tensor.shape)
        elif tensor.dtype not in _NO_WEIGHTS:
            raise InputError(
                f"{folder}: {tensor.name} is stored as {tensor.dtype}, and weights are taken in FP32, BF16 and FP16. "
                "If it is quantised already, start from the original checkpoint"
            )
    if not counted:
        raise InputError(f"{folder}: its safetensors files hold no weights")
    return _DTYPES[counted.most_common(1)[0][0]]


def _size(text: Any, folder: Path, *names: str) -> int:
    """A size by the names that configurations have for it."""
    found = next((value for name in names if (value := getattr(text, name, None))), None)
    if found is None:
        raise InputError(f"{folder / 'config.json'} does not give {names[0]}, which is needed: write it there")
    return int(found)


def _attention(raw: dict[str, Any], text: Any) -> Attention:
    try:
        return read_attention(raw)
    except InputError:
        # Of a cache that is not understood nothing is planned (`plan-memory` says so), but the model can be quantised
        # and judged all the same.
        kinds = getattr(text, "layer_types", None) or ["attention"] * int(text.num_hidden_layers)
        layers = sum("attention" in kind for kind in kinds)
        heads = int(getattr(text, "num_attention_heads", None) or 0)
        return Attention(
            layers=layers if heads else 0,
            heads=heads,
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            head_size=int(getattr(text, "head_dim", None) or (int(text.hidden_size) // heads if heads else 0)),
            windows=(None,) * (layers if heads else 0),
        )


def _architecture(model_type: str) -> str:
    """The class that transformers loads for a configuration that names none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return known if isinstance(known, str) else str(known[0])


def _begins_with(folder: Path, vocabulary: int, trust_remote_code: bool) -> int | None:
    """The token that the tokenizer puts before a text. Raises `InputError` if it knows tokens that the model lacks."""
    own = any(folder.glob("tokenization_*.py")) and trust_remote_code
    if not own and not any((folder / name).is_file() for name in _TOKENIZERS):
        raise InputError(
            f"{folder} has no tokenizer: copy tokenizer.json and tokenizer_config.json (or tokenizer.model) beside it"
        )
    with silence():
        tokenizer = load_language_tokenizer(folder, trust_remote_code=trust_remote_code)
        most = max(tokenizer.get_vocab().values())
        before = put_before(tokenizer)
    if most >= vocabulary:
        raise InputError(
            f"{folder}: its tokenizer knows tokens up to number {most}, and the model only {vocabulary} (vocab_size): "
            "they do not belong together, or the embeddings were not resized when tokens were added"
        )
    return before[0] if before else None
