"""A Hugging Face checkpoint as a program: the right head, in float32, with examples that need no tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifact import Artifact
from stages.convert.program import Program
from stages.convert.sentence import Transformer, sentence_modules
from stages.errors import InputError
from stages.runtime import Arrays
from stages.source.huggingface import check_safetensors, read_json
from stages.source.pickles import refuse_pickle

__all__ = ["load"]

_CLASSES = {
    "feature-extraction": ("AutoModel", ("last_hidden_state",)),
    "sentence-embedding": ("AutoModel", ("sentence_embedding",)),
    "text-classification": ("AutoModelForSequenceClassification", ("logits",)),
    "token-classification": ("AutoModelForTokenClassification", ("logits",)),
    "question-answering": ("AutoModelForQuestionAnswering", ("start_logits", "end_logits")),
    "fill-mask": ("AutoModelForMaskedLM", ("logits",)),
    "image-classification": ("AutoModelForImageClassification", ("logits",)),
    "image-feature-extraction": ("AutoModel", ("last_hidden_state",)),
}
"""The class that loads a checkpoint for a task, and the outputs that are served."""

_EXAMPLE = (2, 6)
_TRIALS = ((1, 9), (3, 21), (4, 2))
"""Batch sizes and lengths: one that is traced, and others that the graph must answer for too."""


def load(source: Artifact, allow_pickle: bool, trust_remote_code: bool) -> Program:
    """Load a checkpoint for its task.

    Raises `InputError` for damaged or mismatched weights (by name), remote code that was not allowed, and tasks and
    modules that cannot be had from it. Weights that were not found are `Program.missing`.
    """
    task = source.metadata["task"]
    if task not in _CLASSES:
        raise InputError(
            f"a Hugging Face model cannot be converted for the task {task!r}: one of {', '.join(_CLASSES)}"
        )
    for name in source.files:
        if name.endswith(".safetensors"):
            check_safetensors(source.path / name)
        elif name.endswith(".bin") and not allow_pickle:
            raise refuse_pickle(str(source.path / name))
    modules = read_json(source.path / "modules.json") if "modules.json" in source.files else []
    place, after = sentence_modules(source.path, modules, allow_pickle) if modules else ("", None)
    if task == "sentence-embedding" and after is None:
        raise InputError(f"{source.path} has no modules.json with a Pooling module: what would pool its tokens?")

    model, missing = _model(source.path / place, task, trust_remote_code, allow_pickle)
    outputs = _CLASSES[task][1]
    labels: tuple[str, ...] = ()
    if task.endswith("classification"):
        named = model.config.id2label
        labels = tuple(str(named[index]) for index in sorted(named))
    if task.startswith("image-"):
        shape = _image_shape(source.path / place, model.config)
        sizes, axes = (2, 1, 3), {"pixel_values": {0: "batch"}}
        batches = [_images(size, shape) for size in sizes]
    else:
        names = _text_inputs(source.path / place, model)
        longest = _longest(model.config)
        axes = {name: {0: "batch", 1: "sequence"} for name in names}
        batches = [_texts(size, min(length, longest), names, model.config) for size, length in (_EXAMPLE, *_TRIALS)]
    return Program(
        module=Transformer(model, outputs, after if task == "sentence-embedding" else None).eval(),
        examples=batches[0],
        axes=axes,
        outputs=outputs,
        trials=tuple(batches[1:]),
        origin=str(source.metadata["architecture"]),
        missing=frozenset(f"model.{name}" for name in missing),
        labels=labels,
    )


def _model(path: Path, task: str, trust_remote_code: bool, allow_pickle: bool) -> tuple[Any, set[str]]:
    from safetensors import SafetensorError

    from stages.convert.preload import torch, transformers

    with _quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(
                path, local_files_only=True, trust_remote_code=trust_remote_code
            )
            if getattr(config, "is_encoder_decoder", False):
                raise InputError(
                    f"{config.model_type} is an encoder with a decoder, which this flow does not handle yet"
                )
            model, info = getattr(transformers, _CLASSES[task][0]).from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                # Eager attention exports to plain MatMul and Softmax, without the guards against empty rows that
                # scaled_dot_product_attention brings; it fuses all the same.
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are told by name, below
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                use_safetensors=None if allow_pickle else True,
            )
        except SafetensorError as error:
            raise InputError(f"the weights in {path} are damaged: {error}") from error
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            if "trust_remote_code" in str(error):
                raise InputError(
                    f"{path} brings code of its own, which is not run unless you trust it: --trust-remote-code"
                ) from error
            raise InputError(f"{path} cannot be loaded for {task}: {error}") from error
    mismatched = [f"{name} {tuple(found)} ≠ {tuple(wanted)}" for name, found, wanted in info["mismatched_keys"]]
    if mismatched or info["error_msgs"]:
        said = "; ".join([*sorted(mismatched), *info["error_msgs"]])
        raise InputError(f"the weights in {path} have other shapes than its config.json says: {said}")
    return model.requires_grad_(False), set(info["missing_keys"])


def _text_inputs(path: Path, model: Any) -> list[str]:
    """Those inputs that the tokenizer gives and the model takes, in the model's order."""
    import inspect

    from stages.convert.preload import transformers

    given = ["input_ids", "attention_mask"]
    if (path / "tokenizer_config.json").is_file() or (path / "tokenizer.json").is_file():
        with _quiet_transformers():
            try:
                given = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True).model_input_names
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise InputError(f"the tokenizer in {path} cannot be loaded: {error}") from error
    taken = inspect.signature(model.forward).parameters
    return [
        name
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in taken and (name in given or name == "attention_mask")
    ]


def _texts(batch: int, length: int, names: list[str], config: Any) -> Arrays:
    """Random tokens, each sample but the first padded at its end, the second half of each of token type 1."""
    rng = np.random.default_rng(length)
    lengths = np.maximum(1, length - np.arange(batch) * max(1, length // 4))
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    pad = getattr(config, "pad_token_id", None) or 0
    # The special tokens have low numbers in most vocabularies; a padding token inside a text would shift positions.
    ids = rng.integers(min(pad + 5, config.vocab_size - 1), config.vocab_size, size=mask.shape)
    types = (np.arange(length) >= lengths[:, None] // 2) & (mask == 1) & (getattr(config, "type_vocab_size", 1) > 1)
    arrays = {
        "input_ids": np.where(mask == 1, ids, pad).astype(np.int64),
        "attention_mask": mask,
        "token_type_ids": types.astype(np.int64),
    }
    return {name: arrays[name] for name in names}


def _images(batch: int, shape: tuple[int, int, int]) -> Arrays:
    return {"pixel_values": np.random.default_rng(batch).standard_normal((batch, *shape), dtype=np.float32)}


def _longest(config: Any) -> int:
    positions = getattr(config, "max_position_embeddings", None) or 512
    # RoBERTa and its kin count positions from the padding index on.
    return max(2, int(positions) - (getattr(config, "pad_token_id", None) or 0) - 1)


def _image_shape(path: Path, config: Any) -> tuple[int, int, int]:
    """Channels, height and width as the preprocessor leaves them, else as the configuration says."""
    file = path / "preprocessor_config.json"
    said = read_json(file) if file.is_file() else {}
    size = said.get("crop_size") if said.get("do_center_crop") else None
    size = size or said.get("size") or getattr(config, "image_size", None) or 224
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    height, width = (size, size) if isinstance(size, int) else size
    if not (isinstance(height, int) and isinstance(width, int)):
        raise InputError(
            f"{file} gives no size of images that can be told (height and width, or shortest_edge): {size}"
        )
    return int(getattr(config, "num_channels", None) or 3), height, width


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars, and no advice on missing weights: what matters is raised."""
    from transformers.utils import logging as talk

    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity(logging.ERROR)
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()
