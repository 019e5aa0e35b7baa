"""Optimisation profiles: the shapes that an engine takes, and those that it is tuned for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.samples import Samples
from model_repository.signature import Signature, TensorSpec
from stages.compile.options import AxisRange, CompileOptions
from stages.errors import InputError

__all__ = ["Profile", "Shapes", "lengths_of", "profiles_of", "ranges_of_lengths"]

_SPREAD = 4
"""Where the longest sample has so many times the tokens of the shortest, one profile serves neither well."""


@dataclass(frozen=True)
class Shapes:
    """The smallest, the usual and the largest shape of one input; equal where an axis is fixed."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Profile = Mapping[str, Shapes]
"""The shapes of every input with a dynamic axis, by its name."""


def profiles_of(
    signature: Signature, options: CompileOptions, lengths: Mapping[str, NDArray[np.int64]] | None = None
) -> list[Profile]:
    """The profiles of an engine; none where all shapes are fixed.

    `options.profiles` say the range of an axis first, then `options.batch` for the first axis, then `lengths`: by the
    name of an axis, how long each sample of the data is along it. Where these spread widely there are several profiles.

    Raises `InputError` for a dynamic axis without a range, and for a range of an axis that no input has.
    """
    dynamic = [tensor for tensor in signature.inputs if any(isinstance(size, str) for size in tensor.shape)]
    axes = {size for tensor in dynamic for size in tensor.shape if isinstance(size, str)}
    for given in options.profiles:
        if unknown := sorted(set(given) - axes):
            raise InputError(
                f"a profile names the axis {unknown[0]!r}; the dynamic axes of the model's inputs are "
                f"{', '.join(sorted(axes)) or 'none: its shapes are fixed'}"
            )
    if not dynamic:
        return []
    batch = {tensor.shape[0] for tensor in dynamic if isinstance(tensor.shape[0], str)}
    known = {str(axis): options.batch for axis in batch}
    chosen: Sequence[Mapping[str, AxisRange]] = options.profiles or _from_lengths(lengths or {}, axes - set(known))
    return [{tensor.name: _shapes(tensor, known | dict(ranges)) for tensor in dynamic} for ranges in chosen]


def lengths_of(samples: Samples, signature: Signature) -> dict[str, NDArray[np.int64]]:
    """How long each sample is along the axis that is padded, by the axis' name."""
    axes = {
        tensor.shape[1]
        for tensor in signature.inputs
        if tensor.name in samples.padding and len(tensor.shape) > 1 and isinstance(tensor.shape[1], str)
    }
    return {str(axis): samples.lengths() for axis in axes}


def ranges_of_lengths(lengths: NDArray[np.int64]) -> list[AxisRange]:
    """Ranges that hold all `lengths` [samples]: from the shortest over the most frequent to the longest.

    Where they spread widely, ranges one after the other: each ends at a power of two, the first at the one above the
    median.
    """
    shortest, longest = int(lengths.min()), int(lengths.max())
    if longest < _SPREAD * shortest:
        return [_around(lengths)]
    end = 1 << (max(int(np.median(lengths)), 1) - 1).bit_length()
    if end >= longest:
        return [_around(lengths)]
    short, long = _around(lengths[lengths <= end]), lengths[lengths > end]
    first = AxisRange(min=short.min, opt=short.opt, max=end)
    rest = ranges_of_lengths(long)
    # No length between the two may fall through.
    return [first, rest[0].model_copy(update={"min": end + 1}), *rest[1:]]


def _from_lengths(lengths: Mapping[str, NDArray[np.int64]], axes: set[str]) -> list[dict[str, AxisRange]]:
    found = {axis: ranges_of_lengths(lengths[axis]) for axis in axes if axis in lengths}
    if not found:
        return [{}]
    # Padded inputs have the same lengths, whatever the axis is called in each.
    count = len(next(iter(found.values())))
    return [{axis: ranges[index] for axis, ranges in found.items()} for index in range(count)]


def _around(lengths: NDArray[np.int64]) -> AxisRange:
    counts = np.bincount(lengths)
    usual = int(len(counts) - 1 - np.argmax(counts[::-1]))  # the longest of those that are equally frequent
    return AxisRange(min=int(lengths.min()), opt=usual, max=int(lengths.max()))


def _shapes(tensor: TensorSpec, ranges: Mapping[str, AxisRange]) -> Shapes:
    if lacking := [size for size in tensor.shape if isinstance(size, str) and size not in ranges]:
        raise InputError(
            f"the axis {lacking[0]!r} of the input {tensor.name!r} is dynamic, and nothing says which sizes an engine "
            f"must take: give `tensorrt: {{profiles: [{{{lacking[0]}: [min, opt, max]}}]}}` in the recipe"
        )
    sizes = [
        AxisRange(min=size, opt=size, max=size) if isinstance(size, int) else ranges[size] for size in tensor.shape
    ]
    return Shapes(
        min=tuple(size.min for size in sizes), opt=tuple(size.opt for size in sizes), max=tuple(s.max for s in sizes)
    )
