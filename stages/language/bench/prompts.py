"""What a server is asked: pieces of real text, as long as real texts are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.builtin import builtin_rows
from calibration.dataset import read_rows
from calibration.language import load_language_tokenizer, token_stream
from stages.language.profile.prompts import mixed_lengths

__all__ = ["Prompt", "Text", "read_prompts"]

Prompt = list[int] | str
"""Tokens, or text where the server's tokenizer is not at hand."""

_ROWS = 10_000
_PARAGRAPHS = 512
_CHARACTERS = 3
"""Fewer characters than a token of most texts has, so that what is cut by them is not too long."""


@dataclass(frozen=True)
class Text:
    """Documents one after the other, to cut prompts from.

    `units`: [n] tokens or characters. `lengths`: [documents], how many each has. `begin`: the tokens that are put
    before every prompt. `tokenizer`: None for characters. `source`: where they are from, in words.
    """

    units: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]
    begin: tuple[int, ...]
    tokenizer: Any
    source: str

    def prompts(self, count: int, longest: int, random: np.random.Generator) -> list[Prompt]:
        """`count` prompts with the mix of lengths of the documents, in random order, none longer than `longest` tokens.

        Each begins somewhere else, so that no server has the beginning of one in its cache from another.
        """
        most = longest - len(self.begin) if self.tokenizer is not None else _CHARACTERS * longest
        lengths = random.permutation(mixed_lengths(self.lengths, count, most))
        starts = random.integers(len(self.units), size=count)
        cut = (
            self.units.take(np.arange(start, start + length), mode="wrap")
            for start, length in zip(starts, lengths, strict=True)
        )
        if self.tokenizer is None:
            return ["".join(piece) for piece in cut]
        return [[*self.begin, *piece.tolist()] for piece in cut]

    def as_text(self, prompt: Prompt) -> str:
        """A prompt as a server takes it that takes no tokens."""
        if isinstance(prompt, str):
            return prompt
        text: str = self.tokenizer.decode(prompt[len(self.begin) :], skip_special_tokens=True)
        return text


def read_prompts(data: Path | None, tokenizer: Path | None, seed: int, enough: int) -> Text:
    """The text of a data set, or that which Python brings along, in tokens of a tokenizer's directory or in characters.

    `enough`: after so many tokens no more is read. Raises `DataError` for data or a tokenizer that cannot be read.
    """
    rows = (
        builtin_rows("text-generation", _PARAGRAPHS, seed, "evaluation")
        if data is None
        else read_rows(data, limit=_ROWS, seed=seed)
    )
    if tokenizer is None:
        texts = rows.texts("text")
        characters = np.array(list("\n\n".join(texts)[: _CHARACTERS * enough]))
        return Text(characters, np.array([len(text) for text in texts]), (), None, rows.source)
    loaded = load_language_tokenizer(tokenizer)
    stream = token_stream(rows, loaded, seed=seed, enough=enough)
    return Text(stream.tokens, stream.lengths, stream.prefix, loaded, rows.source)
