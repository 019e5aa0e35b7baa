"""Arrays in a NumPy archive: one for every model input, the first axis the samples."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from calibration.rows import Row

__all__ = ["read_npz", "write_npz"]


def read_npz(path: Path) -> Iterator[tuple[int, Row]]:
    """The samples of an `.npz`, numbered from 1: row `i` holds `array[i]` for every array.

    An array `labels` (or `label`) with one integer a sample becomes the column `label`; with more axes, the column
    `labels`. Raises `DataError` for a damaged archive, one with Python objects in it (they would be unpickled), and
    arrays that differ in their number of samples.
    """
    arrays = _arrays(path)
    for name, array in arrays.items():
        if array.ndim == 0:
            raise DataError(f"{path.name}: {name!r} is a single number; the first axis counts the samples")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"{path.name}: the arrays have different numbers of samples ({shown})")
    for name in ("labels", "label"):
        if name in arrays:
            labels = arrays.pop(name)
            arrays["label" if labels.ndim == 1 else "labels"] = labels
            break
    for index in range(next(iter(counts.values()), 0)):
        yield index + 1, {name: array[index] for name, array in arrays.items()}


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path.name} is not a readable .npz: it is a single array (.npy)")
        with archive:
            return {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path.name} holds Python objects, not plain arrays, and is not unpickled: save arrays of numbers "
                "(rows of unequal length have to be padded)"
            ) from error
        raise DataError(f"{path.name} is not a readable .npz: {error}") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise DataError(f"{path.name} is not a readable .npz: {error}") from error


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
