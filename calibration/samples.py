"""Samples: model inputs ready to be fed, ragged where lengths differ, with the truth beside them where it is known."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from calibration.stored import StoredArrays, read_stored, write_stored

__all__ = ["Samples"]

_ARRAYS = "samples.npz"
_ABOUT = "samples.json"


@dataclass(frozen=True)
class Samples:
    """`inputs[name][i]` is input `name` of sample `i`, without a batch axis. What `load` gives reads it from the file
    when it is asked for, so that memory does not grow with the number of samples.

    `padding[name]` is the value that fills a sample's first axis up to the longest of its batch; an input that is not
    in `padding` has the same shape in every sample. `cut` is how many texts were longer than the model reads.
    `truth` is what the samples should give. Its form depends on its `kind`:

    - `{"kind": "label", "label": [N ints]}`: a class for each sample
    - `{"kind": "labels", "labels": [N lists of ints]}`: a class for each position of the sample, -100 = not counted
    - `{"kind": "answers", "answers": [N lists of str], "contexts": [N str], "offsets": [N lists of [start, end]]}`:
      `offsets` has one pair of character positions in the context for each token, [0, 0] for tokens outside it
    - `{"kind": "mask", "position": [N ints], "label": [N ints]}`: the right token at one position
    - `{"kind": "retrieval", "queries": Q, "documents": D, "relevant": [Q ints]}`: the first Q samples are queries, the
      other D are documents, and document `relevant[i]` (counted from 0) answers query `i`
    - `{"kind": "similarity", "pairs": P, "score": [P floats]}`: samples 2i and 2i+1 belong together
    """

    inputs: Mapping[str, Sequence[NDArray[Any]]]
    padding: Mapping[str, float] = field(default_factory=dict)
    truth: Mapping[str, Any] | None = None
    cut: int = 0

    def __post_init__(self) -> None:
        counts = {name: len(values) for name, values in self.inputs.items()}
        if not counts or len(set(counts.values())) != 1:
            raise DataError(f"every input needs the same number of samples, got {counts or 'no inputs'}")

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def lengths(self) -> NDArray[Any]:
        """[N] int64: the first axis of each sample's padded inputs; 1 where nothing is padded."""
        for name in self.padding:
            values = self.inputs[name]
            if isinstance(values, StoredArrays):
                return values.shapes[:, 0]
            return np.array([len(value) for value in values], dtype=np.int64)
        return np.ones(len(self), dtype=np.int64)

    def batch(self, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The samples at `indices` put together, padded to the longest of them."""
        arrays = {}
        for name, values in self.inputs.items():
            chosen = [values[i] for i in indices]
            if name in self.padding:
                longest = max(len(value) for value in chosen)
                stacked = np.full(
                    (len(chosen), longest, *chosen[0].shape[1:]), self.padding[name], dtype=chosen[0].dtype
                )
                for row, value in enumerate(chosen):
                    stacked[row, : len(value)] = value
                arrays[name] = stacked
            else:
                arrays[name] = np.stack(chosen)
        return arrays

    def batches(self, size: int) -> Iterator[tuple[list[int], dict[str, NDArray[Any]]]]:
        """All samples in batches of at most `size`, of like length (so that little is padded), with their indices."""
        order = np.argsort(self.lengths(), kind="stable").tolist()
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            yield indices, self.batch(indices)

    def take(self, indices: Sequence[int]) -> Samples:
        """Some of the samples, without their truth."""
        return Samples({name: [values[i] for i in indices] for name, values in self.inputs.items()}, self.padding)

    def save(self, directory: Path) -> None:
        """Write `samples.npz` (values and shapes) and `samples.json` into `directory`, the same bytes each time."""
        write_stored(directory / _ARRAYS, self.inputs)
        about = {"inputs": list(self.inputs), "padding": dict(self.padding), "truth": self.truth, "cut": self.cut}
        (directory / _ABOUT).write_text(json.dumps(about, sort_keys=True))

    @classmethod
    def load(cls, directory: Path) -> Samples:
        """Read what `save` wrote. Raises `DataError` if it is not there or damaged."""
        try:
            about = json.loads((directory / _ABOUT).read_text())
            inputs = read_stored(directory / _ARRAYS, about["inputs"])
            return cls(inputs, about["padding"], about["truth"], about.get("cut", 0))
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(f"{directory} holds no readable samples ({error})") from error
