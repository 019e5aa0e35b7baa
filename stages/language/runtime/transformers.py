"""Checkpoints as transformers loads them, unquantised or in the formats of GPTQ, AWQ and compressed-tensors.

On a GPU where there is one, else on the CPU. A checkpoint computes in the dtype that it is kept in, with one exception:
float16 on a CPU is computed in float32. Most CPUs have no arithmetic of 16 bits, and float32 holds every float16
exactly, which bfloat16, with three bits less, does not.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np

from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.language.checkpoint import Checkpoint
from stages.language.runtime.silence import silence
from stages.language.session import Floats, Tokens, check_tokens
from stages.source.huggingface import check_safetensors, read_json

__all__ = ["TransformersSession", "open_language"]

_INSTALL = "`pip install 'optimize-pipeline[llm]'`"

_NEEDED = {
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel", "accelerate"),
    "compressed-tensors": ("compressed_tensors",),
}
"""What transformers takes to read a format; it says so itself for some, and for others that there is no GPU."""


def open_language(artifact: Artifact, threads: int = 0) -> TransformersSession:
    """Load a checkpoint artifact, from its own directory and nowhere else, and run it once, so that what is compiled or
    unpacked at the first call is not waited for later.

    `threads`: of PyTorch, which has one number for the process: it is the session's until that is closed.

    Raises `InputError` if the checkpoint is damaged, incomplete or unknown to transformers, or brings code that was not
    allowed; `RequirementError` if a library for its format is not installed; `StageError` if a GPU is too small for it.
    """
    checkpoint = Checkpoint.of(artifact)
    for name in artifact.files:
        if name.endswith(".safetensors"):
            check_safetensors(artifact.path / name)
    from stages.language.runtime.preload import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_num_threads()
    try:
        with silence():
            model = _load(artifact, checkpoint, device)
            torch.set_num_threads(threads or len(os.sched_getaffinity(0)))  # not before: what is imported sets it, too
            session = TransformersSession(model, checkpoint, device, before)
            session.logits(np.zeros((1, 1), dtype=np.int64))
    except BaseException:
        torch.set_num_threads(before)
        raise
    return session


class TransformersSession:
    """A causal language model in inference mode. See `stages.language.session.LanguageSession`.

    Raises `InputError` for tokens that the model does not have and for sequences longer than it was made for, and
    `StageError` where a GPU's memory does not suffice, or once it is closed.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint, device: str, threads_before: int) -> None:
        self._model: Any | None = model
        self._checkpoint, self._device, self._threads_before = checkpoint, device, threads_before
        # All but a few architectures can leave out the scores that nobody asks for: a prompt needs those of its end.
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if keeps else {}

    @property
    def module(self) -> Any:
        """The model in PyTorch. Raises `StageError` once the session is closed."""
        if self._model is None:
            raise StageError("the session was closed")
        return self._model

    def logits(self, tokens: Tokens) -> Floats:
        check_tokens(self._checkpoint, tokens)
        scores: Floats = self._forward(tokens, use_cache=False).logits.cpu().float().numpy()
        return scores

    def generate(self, prompts: Tokens, count: int) -> Iterator[Tokens]:
        check_tokens(self._checkpoint, prompts, count)
        return self._decode(prompts, count)

    def _decode(self, prompts: Tokens, count: int) -> Iterator[Tokens]:
        cache, given = None, prompts
        for _ in range(count):
            answer = self._forward(given, use_cache=True, past_key_values=cache, **self._last_only)
            cache = answer.get("past_key_values")
            if cache is None:
                raise StageError(f"{self._checkpoint.architecture} keeps no key-value cache to generate from")
            best: Tokens = answer.logits[:, -1].argmax(dim=-1).cpu().numpy()
            yield best
            given = best[:, None]

    def close(self) -> None:
        from stages.language.runtime.preload import torch

        if self._model is None:
            return
        self._model = None
        torch.set_num_threads(self._threads_before)
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forward(self, tokens: Tokens, **asked: Any) -> Any:
        """One call. The mode does not outlast it: a generator would leave it on for who takes its values."""
        from stages.language.runtime.preload import torch

        if self._model is None:
            raise StageError("the session was closed")
        with torch.inference_mode():
            try:
                return self._model(input_ids=torch.from_numpy(tokens).to(self._device), **asked)
            except torch.OutOfMemoryError as error:
                shape = f"{tokens.shape[0]} sequences of {tokens.shape[1]} tokens"
                raise StageError(f"the GPU's memory does not hold {shape} at once: ask for fewer ({error})") from error


def _load(artifact: Artifact, checkpoint: Checkpoint, device: str) -> Any:
    """The model, whole and ready on `device`."""
    path = artifact.path
    stored = str((read_json(path / "config.json").get("quantization_config") or {}).get("quant_method"))
    needed = (*_NEEDED.get(stored, ()), *(("accelerate",) if device == "cuda" else ()))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        what = f"a checkpoint in the format {stored}" if stored in _NEEDED else "a GPU"
        raise RequirementError(f"{' and '.join(missing)} is not installed, which {what} takes: {_INSTALL}")
    if "gptqmodel" in needed and (os.cpu_count() or 1) <= 2:
        # Its pool of loaders wants two workers, of which it has but one on so small a machine, and does not start.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from safetensors import SafetensorError

    from stages.language.runtime.preload import torch, transformers

    dtype = "float32" if (checkpoint.dtype, device) == ("float16", "cpu") else checkpoint.dtype
    try:
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            device_map={"": "cuda:0"} if device == "cuda" else None,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=checkpoint.trust_remote_code,
        )
    except ImportError as error:
        raise RequirementError(f"{path} takes a library that is not installed ({error}): {_INSTALL}") from error
    except SafetensorError as error:
        raise InputError(f"the weights in {path} are damaged: {error}") from error
    except torch.OutOfMemoryError as error:
        raise StageError(f"{path} does not fit the GPU's memory ({error})") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{path} brings code of its own, which is not run unless you trust it: --trust-remote-code"
            ) from error
        raise InputError(f"{path} cannot be loaded as a language model: {error}") from error
    if told["missing_keys"]:
        names = sorted(told["missing_keys"])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(f"the weights in {path} lack {', '.join(names[:3])}{more}: is it a whole checkpoint?")
    return model.eval()
