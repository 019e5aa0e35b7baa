"""From samples back to what a person knows of them: the row of the data that a sample came from, and its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.samples import Samples
from calibration.tokenizer import has_tokenizer, load_tokenizer

__all__ = ["TextReader", "row_of"]

_TOKENS = "input_ids"


def row_of(samples: Samples, sample: int, rows: int | None) -> int | None:
    """The row, counted from 1, that a sample came from; `rows` is how many there were in all.

    None where that is not known: where only some rows were drawn, or the samples are no rows.
    """
    truth: Any = samples.truth or {}
    kind = truth.get("kind")
    if kind == "retrieval":
        if truth["queries"] != rows:
            return None
        document = sample - truth["queries"]
        return 1 + (sample if document < 0 else truth["relevant"].index(document))
    if kind == "similarity":
        return 1 + sample // 2 if truth["pairs"] == rows else None
    return 1 + sample if len(samples) == rows else None


class TextReader:
    """Reads the text in token ids, with the tokenizer in `directory`: as the model sees it, without special tokens."""

    def __init__(self, directory: Path) -> None:
        self._backend = load_tokenizer(directory).backend if has_tokenizer(directory) else None

    def text_of(self, samples: Samples, sample: int) -> str | None:
        """None if there is no tokenizer or the samples are no texts. Raises `DataError` for a damaged tokenizer."""
        if self._backend is None or _TOKENS not in samples.inputs:
            return None
        return str(self._backend.decode(samples.inputs[_TOKENS][sample].tolist(), skip_special_tokens=True))
