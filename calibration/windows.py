"""Windows over text: the sequences of tokens that a language model is calibrated with and judged on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError

__all__ = ["Windows"]

_FILE = "windows.npz"


@dataclass(frozen=True)
class Windows:
    """Sequences of one length.

    `tokens`: [windows, length] int64. `first`: [windows] int64, the first position of each whose token counts where
    a prediction is judged (at least 1: nothing predicts the first). The positions before it are context: they were
    judged in the window before, or are the token that the tokenizer puts before every text.
    `lengths`: [documents] int64, how many tokens the documents have from which the windows were cut.
    """

    tokens: NDArray[np.int64]
    first: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def counted(self) -> int:
        """How many predictions are judged in all."""
        return int((self.length - self.first).sum())

    def save(self, folder: Path) -> None:
        np.savez_compressed(folder / _FILE, tokens=self.tokens, first=self.first, lengths=self.lengths)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises `DataError` if there are no windows in `folder`."""
        try:
            with np.load(folder / _FILE, allow_pickle=False) as arrays:
                return cls(arrays["tokens"], arrays["first"], arrays["lengths"])
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{folder} holds no windows of text: {error}") from error
