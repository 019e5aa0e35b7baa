"""Arrays in a NumPy archive: one for every model input, the first axis the samples."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from calibration.rows import Row

__all__ = ["read_header", "read_npz", "write_npz"]

_SUFFIX = ".npy"


def read_npz(path: Path) -> Iterator[tuple[int, Row]]:
    """The samples of an `.npz`, numbered from 1, a sample in memory at a time: row `i` holds `array[i]` of every array.

    An array `labels` (or `label`) with one integer a sample becomes the column `label`; with more axes, the column
    `labels`. Raises `DataError` for a damaged archive, one with Python objects in it (they would be unpickled), and
    arrays that differ in their number of samples.
    """
    try:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            columns: dict[str, Iterator[NDArray[Any]]] = {}
            counts: dict[str, int] = {}
            for entry in archive.namelist():
                name = entry.removesuffix(_SUFFIX)
                if name == entry:
                    continue
                stream = stack.enter_context(archive.open(entry))
                shape, dtype, fortran = read_header(stream)
                _check(path, name, shape, dtype)
                counts[name] = shape[0]
                if name in ("label", "labels"):
                    name = "label" if len(shape) == 1 else "labels"
                if name in columns:
                    raise DataError(f"{path.name} holds {name!r} twice")
                # Where the last axis comes first in the file, a sample is all over it.
                columns[name] = _whole(archive, entry) if fortran else _row_by_row(stream, shape, dtype)
            if len(set(counts.values())) > 1:
                shown = ", ".join(f"{name} {count}" for name, count in counts.items())
                raise DataError(f"{path.name}: the arrays have different numbers of samples ({shown})")
            for index in range(next(iter(counts.values()), 0)):
                yield index + 1, {name: next(column) for name, column in columns.items()}
    except DataError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path.name} is not a readable .npz: {error}") from error


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, dtype and Fortran order of the `.npy` at whose start `stream` stands; then it stands at the values.

    Raises `ValueError` if there is no `.npy`.
    """
    version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {'.'.join(map(str, version))} of the .npy format is not known")
    shape, fortran, dtype = readers[version](stream)  # type: ignore[no-untyped-call]
    return shape, dtype, fortran


def _check(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise DataError(
            f"{path.name}: {name!r} holds Python objects, not plain arrays, and is not unpickled: save arrays of "
            "numbers (rows of unequal length have to be padded)"
        )
    if dtype.kind not in "biufSU":
        raise DataError(f"{path.name}: {name!r} is of dtype {dtype}; numbers and text can be read")
    if not shape:
        raise DataError(f"{path.name}: {name!r} is a single number; the first axis counts the samples")


def _row_by_row(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    size = dtype.itemsize * math.prod(shape[1:])
    for _ in range(shape[0]):
        values = stream.read(size)
        if len(values) < size:
            raise EOFError("it ends before its last sample")
        yield np.frombuffer(values, dtype).reshape(shape[1:])


def _whole(archive: zipfile.ZipFile, entry: str) -> Iterator[NDArray[Any]]:
    with archive.open(entry) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]
    yield from array


def write_npz(path: Path, arrays: Mapping[str, tuple[tuple[int, ...], Sequence[NDArray[Any]]]]) -> None:
    """Write an uncompressed `.npz`: for each name the shape of an array, and parts whose values make it up in order.

    Unlike `numpy.savez` it needs no memory for the arrays as a whole, and a name may be anything (there `file` is
    taken). The same arrays give the same bytes: entries carry no date.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, (shape, parts) in arrays.items():
            dtype = np.result_type(*{part.dtype for part in parts})
            described = np.lib.format.dtype_to_descr(dtype)  # type: ignore[no-untyped-call]
            header = {"descr": described, "fortran_order": False, "shape": shape}
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, header)  # type: ignore[no-untyped-call]
                for part in parts:
                    entry.write(part.astype(dtype, copy=False).tobytes())
