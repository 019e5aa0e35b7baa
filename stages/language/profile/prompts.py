"""Prompts of real text and of real lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.windows import Windows
from stages.language.session import Tokens

__all__ = ["SHORTEST", "cut_prompts", "mixed_lengths"]

SHORTEST = 8
"""A document of fewer tokens is no request."""


def mixed_lengths(lengths: NDArray[np.int64], count: int, longest: int) -> list[int]:
    """`count` lengths in tokens that have the mix of `lengths` ([documents]): a systematic sample of them in order."""
    places = ((np.arange(count) + 0.5) / count * len(lengths)).astype(np.int64)
    chosen: list[int] = np.clip(np.sort(lengths)[places], SHORTEST, longest).tolist()
    return chosen


def cut_prompts(windows: Windows, batch_size: int, length: int, random: np.random.Generator) -> Tokens:
    """[batch_size, length]: each prompt begins with a window of its own, drawn at random, and goes on into the next."""
    starts = random.choice(len(windows), batch_size, replace=batch_size > len(windows)) * windows.length
    prompts: Tokens = windows.tokens.ravel().take(starts[:, None] + np.arange(length), mode="wrap")
    return prompts
