"""What a checkpoint is for, told from its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.errors import InputError
from stages.model import Task

__all__ = ["architecture_of", "infer_task"]

_HEADS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}
_OTHER_GENERATORS = ("ForConditionalGeneration", "ForSeq2SeqLM")


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The class that the checkpoint was saved from, or None where the configuration does not say."""
    architectures = config.get("architectures") or [None]
    name: str | None = architectures[0]
    return name


def infer_task(config: Mapping[str, Any], *, pooled: bool, vision: bool) -> Task:
    """The task of a checkpoint.

    `pooled`: a sentence-transformers `modules.json` with a Pooling module lies beside it. `vision`: it takes images.
    Raises `InputError` for models that generate otherwise than by continuing a text, and where nothing can be told.
    """
    if pooled:
        return "sentence-embedding"
    architecture = architecture_of(config)
    if architecture is None:
        raise InputError("config.json names no architecture, so the task cannot be told: give it with --task")
    task = next((task for ending, task in _HEADS.items() if architecture.endswith(ending)), None)
    if architecture.endswith(_OTHER_GENERATORS) or (task == "text-generation" and config.get("is_encoder_decoder")):
        raise InputError(
            f"{architecture} writes text about another text, an image or a sound. Of models that generate, only those "
            "that continue a text (…ForCausalLM, …LMHeadModel) are handled"
        )
    if task is not None:
        return task
    if architecture.endswith("Model") and not {"text_config", "vision_config"} <= config.keys():
        return "image-feature-extraction" if vision else "feature-extraction"
    known = ", ".join(dict.fromkeys(_HEADS.values()))
    raise InputError(
        f"the task of {architecture} cannot be told: give it with --task (one of {known}, feature-extraction, "
        "image-feature-extraction)"
    )
