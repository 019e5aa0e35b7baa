"""What is measured of a language model: requests, each a batch of prompts and the tokens that follow them."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from calibration.windows import Windows
from stages.artifact import Artifact
from stages.errors import StageError
from stages.language.checkpoint import LanguageRuntime
from stages.language.profile.prompts import cut_prompts
from stages.language.session import LanguageSession, Tokens, open_language
from stages.profile.measured import Served, Turn

__all__ = ["Requests"]

_ENGINES: Mapping[LanguageRuntime, str] = {
    "transformers": "stages.language.runtime.preload",
    "onnxruntime-genai": "onnxruntime_genai",
}
"""The module that is imported before the variants' processes are forked."""

Prompts = Mapping[Hashable, Sequence[Tokens]]


@dataclass(frozen=True)
class Requests:
    """Requests to models in one runtime. `asked`: for each size its batch size and the lengths of its prompts.

    `data` holds the windows that the prompts are cut from.
    """

    runtime: LanguageRuntime
    threads: int
    data: Path
    asked: Mapping[Hashable, tuple[int, Sequence[int]]]
    new_tokens: int
    seed: int

    @property
    def engine(self) -> str:
        return self.runtime

    def prepare(self) -> None:
        # PyTorch is asked for GPUs when others import it. By NVML it looks for them without opening CUDA, which could
        # not be used in a fork any more.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        # What is missing is said by each variant that needs it.
        with contextlib.suppress(ImportError):
            importlib.import_module(_ENGINES[self.runtime])

    def load(self) -> Prompts:
        windows = Windows.load(self.data)
        random = np.random.default_rng(self.seed)
        return {
            key: [cut_prompts(windows, batch_size, length, random) for length in lengths]
            for key, (batch_size, lengths) in self.asked.items()
        }

    def open(self, model: Artifact, inputs: Prompts) -> Served:
        session = open_language(model, self.threads)
        first = next(iter(inputs.values()))[0]
        for _ in session.generate(first, 1):
            pass
        return partial(_run, session, inputs, self.new_tokens)


def _run(
    session: LanguageSession, prompts: Prompts, new_tokens: int, size: Hashable, order: Sequence[int], lead_in: bool
) -> Turn:
    """One request for each batch of prompts in `order`: the milliseconds of all of it and those to its first token."""
    asked = prompts[size]
    if lead_in:
        _request(session, asked[order[0]], new_tokens)
    return [_request(session, asked[index], new_tokens) for index in order]


def _request(session: LanguageSession, prompts: Tokens, new_tokens: int) -> tuple[float, float]:
    started = time.perf_counter_ns()
    steps = session.generate(prompts, new_tokens)
    next(steps)
    first = time.perf_counter_ns()
    more = sum(1 for _ in steps)
    ended = time.perf_counter_ns()
    if more != new_tokens - 1:
        raise StageError(f"{more + 1} tokens were generated where {new_tokens} were asked for")
    return (ended - started) / 1e6, (first - started) / 1e6
