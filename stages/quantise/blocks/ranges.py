"""Scales and zero points of blocks, from the values that they have to hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stages.quantise.blocks.form import BlockFormat, BlockMatrix, in_blocks

__all__ = ["Loss", "best_range", "full_range", "levels_of", "rtn", "squared_error"]

Loss = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""What errors [blocks, block_size, out] cost: [blocks, out]."""

_VALUES_AT_ONCE = 2**22


def rtn(weight: NDArray[np.float32], format: BlockFormat) -> BlockMatrix:
    """Round to nearest, over the full range of each block. `weight`: [in, out]."""
    blocks = in_blocks(weight, format.block_size)
    scales, zero_points = full_range(blocks, format)
    return BlockMatrix.of(format, levels_of(blocks, scales, zero_points, format), scales, zero_points, len(weight))


def full_range(
    blocks: NDArray[np.float32], format: BlockFormat, shrink: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scales and zero points [blocks, out], float32, of the range from the smallest to the largest value of
    [blocks, block_size, out] and 0, or of `shrink` times that.

    A symmetric block gives its value of the largest magnitude the lowest integer, which lies one step farther from the
    middle than the highest; where that value is positive, the scale is negative.
    """
    low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
    if format.symmetric:
        if format.positive:
            scales = np.maximum(low / -format.middle, high / (format.middle - 1)) * np.float32(shrink)
        else:
            scales = np.where(-low >= high, low, high) * np.float32(shrink / -format.middle)
        return np.where(scales == 0, np.float32(1), scales), np.full_like(scales, format.middle)
    scales = (high - low) * np.float32(shrink / format.largest)
    scales = np.where(scales == 0, np.float32(1), scales)
    return scales, np.rint(-low * np.float32(shrink) / scales)


def best_range(
    blocks: NDArray[np.float32], format: BlockFormat, loss: Loss, shrinks: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the ranges that `shrinks` gives each block, the one whose rounding and clipping costs least: its scales and
    zero points [blocks, out]."""
    count, size, outputs = blocks.shape
    scales = np.empty((count, outputs), np.float32)
    zero_points = np.empty((count, outputs), np.float32)
    width = max(1, _VALUES_AT_ONCE // (count * size))
    for start in range(0, outputs, width):
        part = np.s_[:, start : start + width]
        values = blocks[:, :, start : start + width]
        least = np.full(scales[part].shape, np.inf, np.float32)
        for shrink in shrinks:
            scale, zero = full_range(values, format, shrink)
            error = (levels_of(values, scale, zero, format) - zero[:, None]) * scale[:, None] - values
            cost = loss(error)
            better = cost < least
            least = np.where(better, cost, least)
            scales[part] = np.where(better, scale, scales[part])
            zero_points[part] = np.where(better, zero, zero_points[part])
    return scales, zero_points


def levels_of(
    blocks: NDArray[np.float32],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.float32],
    format: BlockFormat,
) -> NDArray[np.float32]:
    """The nearest integers, as floats, to the values of blocks."""
    levels: NDArray[np.float32] = np.rint(blocks / scales[:, None] + zero_points[:, None]).clip(0, format.largest)
    return levels


def squared_error(error: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sum of squares of each block."""
    squares: NDArray[np.float32] = np.einsum("bio,bio->bo", error, error)
    return squares
