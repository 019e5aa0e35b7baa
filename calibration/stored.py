"""Arrays of different shapes in one `.npz`, each read from the file when it is asked for."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from calibration.archives import read_header, write_npz

__all__ = ["StoredArrays", "read_stored", "write_stored"]

_LOCAL_HEADER_BYTES = 30


class StoredArrays(Sequence[NDArray[Any]]):
    """The arrays of one name: `array[i]` reads no other than the one that it gives."""

    def __init__(self, path: Path, offset: int, dtype: np.dtype[Any], shapes: NDArray[np.int64]) -> None:
        self.shapes = shapes
        self._path = path
        self._dtype = dtype
        sizes = shapes.prod(axis=1)
        self._sizes = sizes.tolist()
        self._starts = (offset + dtype.itemsize * (np.cumsum(sizes) - sizes)).tolist()

    def __len__(self) -> int:
        return len(self.shapes)

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[Any]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | list[NDArray[Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        values: NDArray[Any] = np.fromfile(self._path, self._dtype, self._sizes[index], offset=self._starts[index])
        return values.reshape(self.shapes[index])


def write_stored(path: Path, arrays: Mapping[str, Sequence[NDArray[Any]]]) -> None:
    """Write arrays by name, the same bytes each time: `<name>/values` holds their values one after the other,
    `<name>/shapes` ([N, axes] int64) their shapes."""
    parts: dict[str, tuple[tuple[int, ...], Sequence[NDArray[Any]]]] = {}
    for name, values in arrays.items():
        shapes = np.array([value.shape for value in values], dtype=np.int64).reshape(len(values), -1)
        parts[f"{name}/values"] = ((int(shapes.prod(axis=1).sum()),), values)
        parts[f"{name}/shapes"] = (shapes.shape, [shapes])
    write_npz(path, parts)


def read_stored(path: Path, names: Sequence[str]) -> dict[str, StoredArrays]:
    """What `write_stored` wrote. Raises `OSError`, `ValueError`, `KeyError` or `zipfile.BadZipFile` if it is damaged.

    The values themselves are not looked at, so that a changed one is not noticed here.
    """
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for name in names:
            entry = archive.getinfo(f"{name}/values.npy")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER_BYTES)
            # The lengths of the name and of the extra field, which lie between the header and the content
            # (PKWARE's APPNOTE.TXT, section 4.3.7).
            skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            file.seek(entry.header_offset + _LOCAL_HEADER_BYTES + skipped)
            (count,), dtype, _ = read_header(file)
            with archive.open(f"{name}/shapes.npy") as stream:
                shapes = np.lib.format.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]
            if int(shapes.prod(axis=1).sum()) != count:
                raise ValueError(f"{name}: the shapes do not fit the values")
            found[name] = StoredArrays(path, file.tell(), dtype, shapes)
    return found
