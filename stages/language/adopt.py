"""Take a language model as it came: the baseline that every other form of it is made from and judged by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from calibration.errors import DataError
from stages.artifact import Artifact, link
from stages.errors import InputError
from stages.language.checkpoint import Checkpoint
from stages.language.describe import describe_checkpoint
from stages.language.runtime.silence import silence
from stages.progress import SILENT, Progress
from stages.source.huggingface import check_safetensors
from stages.stage import Stage

__all__ = ["ADOPT", "AdoptOptions", "adopt", "describe_checkpoint"]

_TRIAL = 8
"""Tokens of the input on which the model must answer with numbers."""

_NAMED = 3


class AdoptOptions(BaseModel):
    """How a model is taken. `trust_remote_code`: code that the checkpoint brings may run, now and wherever it is opened
    later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trust_remote_code: bool = False


def adopt(*, source: Artifact, options: AdoptOptions, out: Path, progress: Progress = SILENT) -> Artifact:
    """Take a causal language model: an artifact of kind `checkpoint` that holds the source's files, unchanged.

    The model is loaded once, on the CPU and in its own dtype, so that what is wrong with it is told here and not by one
    of the steps that follow; its memory is that of the weights.

    Raises `InputError` for a source that is no Hugging Face directory or holds pickles, for whatever
    `describe_checkpoint` refuses, for weights that do not fit the architecture (by name), and for a model that answers
    with NaN or Inf.
    """
    if source.metadata.get("type") != "huggingface":
        raise InputError(
            f"a language model is taken from a Hugging Face directory, and {source.path} is "
            f"{source.metadata.get('type', source.kind)}"
        )
    if pickles := sorted(name for name in source.files if name.endswith(".bin")):
        raise InputError(
            f"{source.path / pickles[0]} is a pickle, and weights of language models are read from safetensors only: "
            "save the model again with `save_pretrained`"
        )
    for name in source.files:
        if name.endswith(".safetensors"):
            check_safetensors(source.path / name)
        link(source.path / name, out / name)
    with _named(source.path, out):
        progress.update("reading the checkpoint")
        about = describe_checkpoint(out, trust_remote_code=options.trust_remote_code)
        progress.update("loading the model once")
        _ensure_sound(out, about)
    return Artifact.write(out, "checkpoint", about.metadata(), {"source": source})


@contextmanager
def _named(source: Path, out: Path) -> Iterator[None]:
    """What is raised speaks of the user's folder. It is not the one that is loaded: there may be other files in it,
    which transformers would find, too (an adapter, say)."""
    try:
        yield
    except (InputError, DataError) as error:
        raise type(error)(str(error).replace(str(out), str(source))) from error


def _ensure_sound(folder: Path, about: Checkpoint) -> None:
    """Raises `InputError` unless the weights are those of the architecture and the answers finite."""
    from stages.language.runtime.preload import torch

    with silence():
        model, told = _load(folder, about)
    for kind, verb in (("missing_keys", "lack"), ("unexpected_keys", "hold more than the architecture takes:")):
        if names := sorted(told[kind]):
            raise InputError(f"the weights in {folder} {verb} {_shortly(names)}: they are not of {about.architecture}")
    if mismatched := sorted(told["mismatched_keys"]):
        sizes = [f"{name} {tuple(found)} ≠ {tuple(wanted)}" for name, found, wanted in mismatched]
        raise InputError(f"the weights in {folder} have other shapes than its config.json says: {_shortly(sizes)}")
    if told["error_msgs"]:
        raise InputError(f"the weights in {folder} cannot be loaded: {_shortly(told['error_msgs'])}")

    tokens = torch.arange(min(_TRIAL, about.positions)) % about.vocabulary
    with torch.inference_mode():
        logits = model(input_ids=tokens[None], use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise InputError(f"{folder} answers a short input with NaN or Inf: its weights are damaged or overflow")


def _load(folder: Path, about: Checkpoint) -> tuple[Any, dict[str, Any]]:
    from safetensors import SafetensorError

    from stages.language.runtime.preload import torch, transformers

    try:
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, about.dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are told by name
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=about.trust_remote_code,
        )
    except SafetensorError as error:
        raise InputError(f"the weights in {folder} are damaged: {error}") from error
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise InputError(f"{folder} cannot be loaded as a language model: {error}") from error
    return model.eval(), told


def _shortly(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


ADOPT = Stage(
    name="adopt",
    revision=1,
    function=adopt,
    libraries=("transformers", "torch", "tokenizers"),
    preload=("stages.language.runtime.preload",),
)
