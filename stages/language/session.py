"""One way to run a language model: `open_language(artifact)`, then `logits` and `generate`. One file an engine."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.checkpoint import Checkpoint, LanguageRuntime

__all__ = ["Floats", "LanguageSession", "Tokens", "check_tokens", "open_language"]

Tokens = NDArray[np.int64]
Floats = NDArray[np.float32]


class LanguageSession(Protocol):
    """An opened model. Leaving the `with` frees it."""

    def logits(self, tokens: Tokens) -> Floats:
        """[sequences, length] → [sequences, length, vocabulary]: scores of the token after each position."""

    def generate(self, prompts: Tokens, count: int) -> Iterator[Tokens]:
        """The likeliest next tokens ([sequences] a step, `count` steps, whatever they are), as soon as they are known.

        `prompts`: [sequences, length], all of one length. The first comes after the prompt is read (prefill), the
        others one by one, from the key-value cache (decode).
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_RUNTIMES: Mapping[LanguageRuntime, str] = {
    "transformers": "stages.language.runtime.transformers",
    "onnxruntime-genai": "stages.language.runtime.genai",
}
"""Where each is implemented: a module with `open_language(artifact, threads) -> LanguageSession`."""


def open_language(artifact: Artifact, threads: int = 0) -> LanguageSession:
    """Open a checkpoint artifact in what it was made for, on `threads` threads (0: every core of the process).

    Raises `InputError` if it cannot be loaded, `RequirementError` if a library for it is not installed.
    """
    runtime = Checkpoint.of(artifact).runtime
    session: LanguageSession = importlib.import_module(_RUNTIMES[runtime]).open_language(artifact, threads)
    return session


def check_tokens(checkpoint: Checkpoint, tokens: Tokens, more: int = 0) -> None:
    """Raise `InputError` unless the model can read `tokens` ([sequences, length]) and has room for so many `more`."""
    if tokens.ndim != 2 or not tokens.size:
        raise InputError(f"tokens come as [sequences, length], none of them empty; these are {tokens.shape}")
    longest, vocabulary = checkpoint.positions, checkpoint.vocabulary
    if tokens.shape[1] + more > longest:
        wanted = f"{tokens.shape[1]} tokens" + (f" and {more} more" if more else "")
        raise InputError(f"{wanted} are too long for a model that was made for sequences of {longest}")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        outside = tokens.min() if tokens.min() < 0 else tokens.max()
        raise InputError(f"the token {outside} is none of the model's {vocabulary}: another tokenizer made it")
