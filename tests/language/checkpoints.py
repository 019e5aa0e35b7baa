"""Checkpoints as artifacts, and windows of real text for them, made without the stages that are not under test."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from calibration.windows import Windows
from stages.artifact import Artifact
from stages.language.checkpoint import Attention, Checkpoint

__all__ = ["as_artifact", "changed_copy", "text_tokens", "window_data"]


def as_artifact(path: Path, **about: Any) -> Artifact:
    """A llama's directory, as `save_pretrained` writes it, where it lies."""
    config = json.loads((path / "config.json").read_text())
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    described: dict[str, Any] = {
        "architecture": config["architectures"][0],
        "model_type": config["model_type"],
        "precision": "fp32",
        "dtype": config["dtype"],
        "parameters": 1,
        "vocabulary": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "positions": config["max_position_embeddings"],
        "attention": Attention(
            layers=layers,
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head_size=config["hidden_size"] // heads,
            windows=(None,) * layers,
        ),
        "tied_head": config["tie_word_embeddings"],
        "begins_with": config["bos_token_id"],
    }
    return Artifact.of_files(path, "checkpoint", Checkpoint(**{**described, **about}).metadata())


def changed_copy(source: Path, target: Path, change: Any = lambda tensors: tensors, **config: Any) -> Path:
    """A copy of a checkpoint in which `change` was done to its tensors, and `config` to its configuration."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    file = target / "model.safetensors"
    tensors = change(load_file(file))
    file.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    said = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**said, **config}))
    return target


def text_tokens(checkpoint: Path, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """`count` tokens of a module of the standard library."""
    from tokenizers import Tokenizer

    text = Path(random.__file__).read_text()
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert len(ids) >= count
    return np.array(ids[:count], dtype=np.int64)


def window_data(path: Path, tokens: Any, length: int, stride: int | None = None, **about: Any) -> Artifact:
    """Windows of `length` over `tokens`, each `stride` further (default: `length`), in which every token but the first
    is counted once."""
    stride = stride or length
    starts = range(0, len(tokens) - length + 1, stride)
    cut = np.stack([tokens[start : start + length] for start in starts])
    first = np.full(len(cut), length - stride if stride < length else 1, dtype=np.int64)
    first[0] = 1
    path.mkdir()
    Windows(cut, first, np.array([len(tokens)])).save(path)
    return Artifact.write(path, "dataset", {"evidence": "the standard library", **about})
