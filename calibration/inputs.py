"""What a model takes, and arrays made to fit it without losing anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError

__all__ = ["InputSpec", "common_shape", "fitted"]


@dataclass(frozen=True)
class InputSpec:
    """One input of a model. `shape` includes the batch axis and holds a name for an axis of any size.

    `choices`: where its integers choose rows of a table (token ids, of the embeddings), how many rows there are.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    choices: int | None = None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Raises `DataError` for a dtype that NumPy does not have."""
        if self.dtype == "bfloat16":  # NumPy knows it only after some library has added it
            raise DataError(f"input {self.name!r} is of dtype {self.dtype}, for which no data can be read")
        return np.dtype(np.str_ if self.dtype == "string" else self.dtype)

    @property
    def sample_shape(self) -> tuple[int | str, ...]:
        """The shape without the batch axis. Raises `DataError` if there is none."""
        if not self.shape:
            raise DataError(f"input {self.name!r} is a single number: it has no batch axis, so no samples can be fed")
        return self.shape[1:]

    @property
    def integer(self) -> bool:
        return self.dtype.startswith(("int", "uint"))

    @property
    def floating(self) -> bool:
        return self.dtype.startswith(("float", "bfloat"))


def fitted(value: Any, spec: InputSpec, where: str) -> NDArray[Any]:
    """One sample of an input as an array of its dtype and shape (without the batch axis).

    A value may change its dtype only where it stays the same number (float64 to a narrower float may round). Raises
    `DataError` naming the row and the axis for NaN and infinity, another shape, numbers that the dtype cannot hold, and
    integers that choose no row of their table.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{where}: {spec.name!r} is not an array of one shape ({error})") from error
    if array.dtype == object or (array.dtype.kind in "US") != (spec.dtype == "string"):
        raise DataError(f"{where}: {spec.name!r} should be numbers of dtype {spec.dtype}, it is {_short(value)}")
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        what, found = ("NaN", np.isnan(array)) if np.isnan(array).any() else ("infinity", np.isinf(array))
        raise DataError(f"{where}: {spec.name!r} has {what}{_first(found)}")
    _check_shape(array, spec, where)
    fitting = _cast(array, spec, where)
    if spec.choices is not None and fitting.size:
        outside = (fitting < 0) | (fitting >= spec.choices)
        if outside.any():
            raise DataError(
                f"{where}: {spec.name!r} has {int(fitting[outside][0])}{_first(outside)}; the model's table for it has "
                f"{spec.choices} rows, 0 to {spec.choices - 1}"
            )
    return fitting


def _first(found: NDArray[np.bool_]) -> str:
    """Where the first of what was found stands, for a message."""
    place = [int(axis) for axis in np.argwhere(found)[0]]
    return f" at {place}" if place else ""


def _check_shape(array: NDArray[Any], spec: InputSpec, where: str) -> None:
    wanted = spec.sample_shape
    shown = f"[{', '.join(map(str, wanted))}]"
    if array.ndim != len(wanted):
        raise DataError(
            f"{where}: {spec.name!r} has shape {list(array.shape)}, the model takes {shown} a sample "
            f"({len(wanted)} axes, not {array.ndim})"
        )
    for axis, (size, expected) in enumerate(zip(array.shape, wanted, strict=True)):
        if isinstance(expected, int) and size != expected:
            raise DataError(
                f"{where}: {spec.name!r} has shape {list(array.shape)}, the model takes {shown} a sample "
                f"(axis {axis} is {size}, not {expected})"
            )
    if 0 in array.shape and 0 not in wanted:
        raise DataError(f"{where}: {spec.name!r} has shape {list(array.shape)}: there is nothing in it")


def _cast(array: NDArray[Any], spec: InputSpec, where: str) -> NDArray[Any]:
    dtype = spec.numpy_dtype
    if array.dtype == dtype or spec.dtype == "string":
        return np.ascontiguousarray(array).reshape(array.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
        if array.dtype.kind == "f" and dtype.kind == "f":
            kept = bool((np.isfinite(cast) == np.isfinite(array)).all())
        else:
            # The signs are compared too: -1 as uint64 and back is -1 again.
            kept = bool(((cast.astype(array.dtype) == array) & ((cast < 0) == (array < 0))).all())
    if not kept:
        raise DataError(
            f"{where}: {spec.name!r} holds {array.dtype} values that the model's {spec.dtype} cannot: {_short(array)}"
        )
    return cast


def common_shape(arrays: Sequence[NDArray[Any]], spec: InputSpec, where: Iterable[str], remedy: str) -> None:
    """Raises `DataError` naming the first sample whose shape differs from the first one's, and the remedy."""
    for array, place in zip(arrays, where, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"{place}: {spec.name!r} has shape {list(array.shape)}, the first sample has "
                f"{list(arrays[0].shape)}; {remedy}"
            )


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
