"""A batch of outputs taken apart sample by sample, and the baseline's outputs kept on disk for the variants."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from calibration.samples import Samples
from model_repository.signature import Signature
from stages.artifact import Artifact
from stages.errors import InputError, StageError

__all__ = ["Answer", "OutputSplitter", "ReferenceReader", "ReferenceWriter", "thinned"]

Answer = Mapping[str, NDArray[Any]]
"""One sample's outputs by name, without a batch axis and without padded positions."""

_MASK = "attention_mask"
_INDEX = "outputs/index.npz"


class OutputSplitter:
    """Takes batches of outputs apart, leaving out what belongs to padding.

    An output has positions (tokens) if its second axis bears the same name as that of a padded input, or, where the
    names say nothing, if it is dynamic and as long as the padded input. A position is valid if it lies within the
    sample's own length and, where there is an `attention_mask`, if that is not 0 there.
    """

    def __init__(self, signature: Signature, samples: Samples) -> None:
        self._samples = samples
        padded = next((tensor.name for tensor in signature.inputs if tensor.name in samples.padding), None)
        sequence = padded or (_MASK if _MASK in samples.inputs else None)
        self._sequence = sequence
        axes = {tensor.name: tensor.shape[1] for tensor in signature.inputs if len(tensor.shape) > 1}
        self._axis = axes.get(sequence) if sequence else None
        self._second = {tensor.name: tensor.shape[1] for tensor in signature.outputs if len(tensor.shape) > 1}
        self._per_position: dict[str, bool] = {}

    def has_positions(self, name: str) -> bool:
        """Whether output `name` has one row a position; known once the first batch was taken apart."""
        return self._per_position[name]

    def valid(self, sample: int) -> NDArray[np.int64] | None:
        """The valid positions of a sample, or None where the model's inputs have no positions."""
        if self._sequence is None:
            return None
        inputs = self._samples.inputs
        if _MASK in inputs:
            return np.flatnonzero(inputs[_MASK][sample])
        return np.arange(len(inputs[self._sequence][sample]))

    def split(self, indices: Sequence[int], outputs: Mapping[str, NDArray[Any]]) -> Iterator[tuple[int, Answer]]:
        """Each sample of a batch with its answer. Raises `StageError` naming a sample and an output with NaN or Inf."""
        longest = max(len(self._samples.inputs[self._sequence][i]) for i in indices) if self._sequence else None
        arrays = {name: _plain(array) for name, array in outputs.items()}
        for name, array in arrays.items():
            if array.ndim == 0 or len(array) < len(indices):
                raise StageError(f"output {name} of shape {array.shape} has no row for each of {len(indices)} samples")
            if name not in self._per_position:
                self._per_position[name] = self._follows(name, array, longest)
        for row, sample in enumerate(indices):
            valid = self.valid(sample)
            answer = {}
            for name, array in arrays.items():
                answer[name] = array[row][valid] if self._per_position[name] and valid is not None else array[row]
                _refuse_nan(name, sample, answer[name])
            yield sample, answer

    def _follows(self, name: str, array: NDArray[Any], longest: int | None) -> bool:
        axis = self._second.get(name)
        if longest is None or array.ndim < 2 or array.shape[1] != longest or axis is None:
            return False
        return axis == self._axis or isinstance(axis, str)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Arrays that numpy itself can compute with: bfloat16 becomes float32, strings become 64-bit hashes."""
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array.dtype.kind in "OSU":
        hashes = [hashlib.blake2b(str(text).encode(), digest_size=8).digest() for text in array.ravel()]
        return np.frombuffer(b"".join(hashes), dtype=np.int64).reshape(array.shape)
    return array


def _refuse_nan(name: str, sample: int, array: NDArray[Any]) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    found = "NaN" if np.isnan(array).any() else "Inf"
    raise StageError(f"output {name} holds {found} for sample {sample}")


def thinned(array: NDArray[Any], per_position: bool, most: int) -> NDArray[Any]:
    """At most about `most` values of a sample's output, evenly spaced; always the same ones for the same shape.

    With positions, whole positions are kept, at least one. The order is kept.
    """
    if per_position and array.ndim > 1 and len(array):
        keep = max(1, most // max(1, array[0].size))
        return array if keep >= len(array) else array[_spread(len(array), keep)]
    return array if array.size <= most else array.ravel()[_spread(array.size, most)]


def _spread(count: int, keep: int) -> NDArray[np.int64]:
    return np.linspace(0, count - 1, keep).round().astype(np.int64)


class ReferenceWriter:
    """Writes the baseline's answers: for each output one flat, memory-mappable `.npy`, and an index of where what is.

    The samples come in any order. `most` bounds the values kept of one output of one sample (see `thinned`).
    """

    def __init__(self, out: Path, samples: int, most: int) -> None:
        self._out, self._samples, self._most = out, samples, most
        self._files: dict[str, _GrowingArray] = {}
        self._starts: dict[str, NDArray[np.int64]] = {}
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._squares: dict[str, float] = {}

    def add(self, sample: int, answer: Answer, per_position: Mapping[str, bool]) -> None:
        for name, array in answer.items():
            kept = thinned(array, per_position[name], self._most)
            if name not in self._files:
                (self._out / "outputs").mkdir(exist_ok=True)
                self._files[name] = _GrowingArray(self._out / _file_of(len(self._files)), kept.dtype)
                self._starts[name] = np.zeros(self._samples, dtype=np.int64)
                self._counts[name] = np.zeros(self._samples, dtype=np.int64)
                self._squares[name] = 0.0
            self._starts[name][sample] = self._files[name].append(kept)
            self._counts[name][sample] = kept.size
            if kept.dtype.kind == "f":
                self._squares[name] += float(np.square(kept, dtype=np.float64).sum())

    def finish(self) -> dict[str, Any]:
        """Finish the files. Returns what `ReferenceReader` needs of the metadata."""
        index = {}
        described = []
        for number, (name, file) in enumerate(self._files.items()):
            file.finish()
            index[f"{number}/start"], index[f"{number}/count"] = self._starts[name], self._counts[name]
            scale = float(np.sqrt(self._squares[name] / self._samples))
            described.append({"name": name, "file": _file_of(number), "scale": scale})
        np.savez(self._out / _INDEX, **index)  # type: ignore[arg-type]
        return {"most_values": self._most, "arrays": described}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.stream.close()


class ReferenceReader:
    """The answers that `ReferenceWriter` wrote, memory-mapped."""

    def __init__(self, reference: Artifact) -> None:
        described = reference.metadata.get("outputs")
        if described is None:
            raise InputError(f"{reference.path} keeps no outputs: it is not the evaluation of a baseline")
        self.most: int = described["most_values"]
        self.scales: dict[str, float] = {one["name"]: one["scale"] for one in described["arrays"]}
        self._values = {
            one["name"]: np.load(reference.path / one["file"], mmap_mode="r") for one in described["arrays"]
        }
        with np.load(reference.path / _INDEX) as index:
            self._where = {
                one["name"]: (index[f"{number}/start"], index[f"{number}/count"])
                for number, one in enumerate(described["arrays"])
            }

    def answer(self, sample: int) -> dict[str, NDArray[Any]]:
        """The kept values of each output of one sample, flat."""
        found = {}
        for name, values in self._values.items():
            starts, counts = self._where[name]
            found[name] = np.asarray(values[starts[sample] : starts[sample] + counts[sample]])
        return found


def _file_of(number: int) -> str:
    # Names of outputs may hold slashes and worse; they stand in the metadata.
    return f"outputs/{number}.npy"


class _GrowingArray:
    """A flat `.npy` file that grows: the header is written again at the end, in the room that numpy leaves for that."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._dtype, self._size = dtype, 0
        self.stream: BinaryIO = path.open("wb")
        self._header()
        self._start = self.stream.tell()

    def append(self, array: NDArray[Any]) -> int:
        """Write the values of `array`; returns where they begin."""
        begin = self._size
        self.stream.write(np.ascontiguousarray(array, dtype=self._dtype).tobytes())
        self._size += array.size
        return begin

    def finish(self) -> None:
        self.stream.seek(0)
        self._header()
        assert self.stream.tell() == self._start, "numpy left no room for a longer shape"
        self.stream.flush()

    def _header(self) -> None:
        header = {"shape": (self._size,), "fortran_order": False, "descr": self._dtype.str}
        np.lib.format.write_array_header_1_0(self.stream, header)  # type: ignore[no-untyped-call]
