"""Extractive question answering as SQuAD scores it (Rajpurkar et al. 2016, section 6.1, and their script)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["answer_f1", "best_span", "exact_match", "normalised"]

MAX_ANSWER_TOKENS = 30

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1.0 if `answer` is one of the right ones after normalisation. No right answer: the question has none."""
    return float(any(normalised(answer) == normalised(one) for one in right or [""]))


def answer_f1(answer: str, right: Sequence[str]) -> float:
    """The F1 of the words that `answer` shares with the right answer that it is nearest to."""
    return max(_shared(normalised(answer).split(), normalised(one).split()) for one in right or [""])


def _shared(answer: list[str], right: list[str]) -> float:
    if not answer or not right:
        return float(answer == right)
    common = sum((Counter(answer) & Counter(right)).values())
    return 2 * common / (len(answer) + len(right))


def best_span(
    start: NDArray[Any], end: NDArray[Any], allowed: NDArray[np.bool_] | None = None, may_refuse: bool = False
) -> tuple[int, int]:
    """The first and last token (inclusive) of the best answer.

    `start`, `end`: [tokens] logits; `allowed`: [tokens], which tokens may be in an answer (all if None). A span runs
    forwards and has at most 30 tokens. With `may_refuse`, (0, 0) means "no answer" where token 0 scores best.
    """
    tokens = len(start)
    if allowed is None or not allowed.any():
        allowed = np.ones(tokens, dtype=bool)
    scores = np.where(allowed, start, -np.inf)[:, None] + np.where(allowed, end, -np.inf)[None, :]
    scores = np.where(np.triu(np.ones_like(scores, dtype=bool)), scores, -np.inf)
    scores = np.where(np.tril(np.ones_like(scores, dtype=bool), MAX_ANSWER_TOKENS - 1), scores, -np.inf)
    first, last = divmod(int(scores.argmax()), tokens)
    if may_refuse and start[0] + end[0] >= scores[first, last]:
        return 0, 0
    return first, last
