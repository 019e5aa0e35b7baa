"""What calibration data say of a model's activations: collected in one pass, in memory that does not grow with it."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.archives import write_npz
from calibration.errors import DataError

__all__ = ["ActivationStatistics", "Collector", "Statistics"]

_ARRAYS = "statistics.npz"
_ABOUT = "statistics.json"
_FIELDS = ("low", "high", "average_low", "average_high", "mean", "rows", "gram")

_MOMENTUM = 0.9

_ENOUGH = 2
"""Times C vectors, evenly drawn, make the second moments of C channels. Four times as many would bring the cosine of
MiniLM in INT4 from 0.987 to 0.988, and add half of the time to calibration."""
_TOGETHER = 512


@dataclass(frozen=True)
class ActivationStatistics:
    """Of one tensor, C channels wide, over all calibration data.

    - `count`: how many vectors of C values there were
    - `low`, `high`: [C] float32, the smallest and the largest value of each channel
    - `average_low`, `average_high`: [C] float32, moving averages over the batches of a batch's smallest and largest
      value (Jacob et al., arXiv:1712.05877, section 3.1)
    - `mean`: [C] float32
    - `rows`: [R, C] float32, vectors drawn evenly from all of them
    - `gram`: [C, C] float32, the mean of x·xᵀ: the covariance of many vectors x, and mean·meanᵀ; None if it was not
      asked for
    """

    count: int
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    average_low: NDArray[np.float32]
    average_high: NDArray[np.float32]
    mean: NDArray[np.float32]
    rows: NDArray[np.float32]
    gram: NDArray[np.float32] | None = None


class Statistics(Mapping[str, ActivationStatistics]):
    """Statistics by the name of the tensor. Those of one tensor are read when they are asked for."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], counts: Mapping[str, int]) -> None:
        self._arrays = arrays
        self._counts = counts

    def __getitem__(self, name: str) -> ActivationStatistics:
        count = self._counts[name]
        fields = {field: self._arrays[f"{name}/{field}"] for field in _FIELDS if f"{name}/{field}" in self._arrays}
        return ActivationStatistics(count, **fields)

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    @classmethod
    def load(cls, directory: Path) -> Statistics:
        """Read what `Collector.save` wrote. Raises `DataError` if it is not there or damaged."""
        try:
            counts = json.loads((directory / _ABOUT).read_text())["counts"]
            return cls(np.load(directory / _ARRAYS, allow_pickle=False), counts)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(f"{directory} holds no readable statistics ({error})") from error


class Collector:
    """Takes in the activations of one batch after the other.

    `rows`: how many vectors of each tensor are kept; `gram`: whether second moments are summed up, in C² values a
    tensor. The same batches and `seed` give the same statistics.
    """

    def __init__(self, *, rows: int = 512, gram: bool = False, seed: int = 0) -> None:
        self._rows = rows
        self._gram = gram
        self._seed = seed
        self._tensors: dict[str, _Running] = {}

    def add(self, name: str, vectors: NDArray[np.float32], part: float | None = None) -> None:
        """One batch of a tensor: [vectors, channels]. Raises `DataError` if it holds NaN or infinity.

        `part`: which part of all data the batch is. Knowing it, second moments are taken over an even sample of the
        vectors that is large enough; not knowing it, over all of them.
        """
        if not len(vectors):
            return
        if name not in self._tensors:
            generator = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
            self._tensors[name] = _Running(vectors.shape[1], self._rows, self._gram, generator)
        self._tensors[name].add(name, vectors, part)

    def finish(self) -> Statistics:
        """What was collected."""
        arrays = {
            f"{name}/{field}": array
            for name, running in self._tensors.items()
            for field, array in running.fields().items()
        }
        return Statistics(arrays, {name: running.count for name, running in self._tensors.items()})

    def save(self, directory: Path) -> None:
        """Write what was collected into `directory`, the same bytes each time."""
        arrays: dict[str, tuple[tuple[int, ...], Sequence[NDArray[Any]]]] = {}
        for name, running in self._tensors.items():
            for field, array in running.fields().items():
                arrays[f"{name}/{field}"] = (array.shape, [array])
        write_npz(directory / _ARRAYS, arrays)
        counts = {name: running.count for name, running in self._tensors.items()}
        (directory / _ABOUT).write_text(json.dumps({"counts": counts}, sort_keys=True))


class _Running:
    """The sums of one tensor so far."""

    def __init__(self, channels: int, rows: int, gram: bool, generator: np.random.Generator) -> None:
        self.count = 0
        self._low = np.full(channels, np.inf, np.float32)
        self._high = np.full(channels, -np.inf, np.float32)
        self._average: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._sum = np.zeros(channels, np.float64)
        self._gram = np.zeros((channels, channels), np.float64) if gram else None
        self._summed = 0
        self._summed_mean: NDArray[np.float64] = np.zeros(channels, np.float64)
        self._pending: list[NDArray[np.float32]] = []
        self._generator = generator
        self._most = rows
        self._rows: NDArray[np.float32] = np.empty((0, channels), np.float32)
        self._keys: NDArray[np.float64] = np.empty(0)

    def add(self, name: str, vectors: NDArray[np.float32], part: float | None) -> None:
        low, high = vectors.min(axis=0), vectors.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise DataError(f"{name} holds NaN or infinity")
        self.count += len(vectors)
        np.minimum(self._low, low, out=self._low)
        np.maximum(self._high, high, out=self._high)
        if self._average is None:
            self._average = low, high
        else:
            self._average = (
                _MOMENTUM * self._average[0] + (1 - _MOMENTUM) * low,
                _MOMENTUM * self._average[1] + (1 - _MOMENTUM) * high,
            )
        self._sum += vectors.sum(axis=0, dtype=np.float64)
        if self._gram is not None:
            share = 1.0 if part is None else min(1.0, _ENOUGH * vectors.shape[1] * part / len(vectors))
            some = vectors if share == 1 else vectors[self._generator.random(len(vectors)) < share]
            self._pending.append(some)
            self._sum_up(at_least=_TOGETHER)
        self._draw(vectors)

    def _sum_up(self, at_least: int = 1) -> None:
        """Add the second moments of the vectors that wait for it: of many at once, as each addition goes over C²
        values."""
        waiting = sum(len(some) for some in self._pending)
        if self._gram is not None and waiting >= at_least:
            vectors = np.concatenate(self._pending)
            self._gram += vectors.T @ vectors
            self._summed_mean += vectors.sum(axis=0, dtype=np.float64)
            self._summed += waiting
            self._pending.clear()

    def _draw(self, vectors: NDArray[np.float32]) -> None:
        """Every vector gets a random key; those with the smallest are an even sample of all, however many come."""
        keys = self._generator.random(len(vectors))
        limit = self._keys.max() if len(self._keys) >= self._most else 1.0
        chosen = np.flatnonzero(keys < limit)
        keys = np.concatenate([self._keys, keys[chosen]])
        rows = np.concatenate([self._rows, vectors[chosen]])
        if len(keys) > self._most:
            smallest = np.argpartition(keys, self._most)[: self._most]
            keys, rows = keys[smallest], rows[smallest]
        self._keys, self._rows = keys, rows

    def fields(self) -> dict[str, NDArray[np.float32]]:
        assert self._average is not None
        self._sum_up()
        fields = {
            "low": self._low,
            "high": self._high,
            "average_low": self._average[0].astype(np.float32),
            "average_high": self._average[1].astype(np.float32),
            "mean": (self._sum / self.count).astype(np.float32),
            "rows": self._rows,
        }
        if self._gram is not None:
            # About the mean of all: that of the sample would leave no valid covariance when the other is taken away.
            drawn, mean = self._summed_mean / max(self._summed, 1), self._sum / self.count
            covariance = self._gram / max(self._summed, 1) - np.outer(drawn, drawn)
            fields["gram"] = (covariance + np.outer(mean, mean)).astype(np.float32)
        return fields
