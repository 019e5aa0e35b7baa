"""A matrix in blocks: so many neighbouring inputs of one output share a scale and a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

_Number = TypeVar("_Number", np.uint8, np.float32)

__all__ = ["BlockFormat", "BlockMatrix", "in_blocks"]


@dataclass(frozen=True)
class BlockFormat:
    """`bits`: of one weight. `block_size`: how many inputs of an output share a scale and a zero point.
    `symmetric`: all zero points are in the middle, and none are stored. `positive`: no scale of a symmetric block is
    below 0, which takes half a step of its range."""

    bits: Literal[4, 8] = 4
    block_size: int = 32
    symmetric: bool = False
    positive: bool = False

    @property
    def largest(self) -> int:
        """The largest integer; the smallest is 0."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix [in, out] as (integer - zero point) · scale.

    - `integers`: [in, out] uint8, from 0 to `format.largest`
    - `scales`: [blocks, out] float32, which may be negative; the last block has fewer inputs where `block_size` does
      not divide their number
    - `zero_points`: [blocks, out], uint8, or float32 where the method chooses them between integers
    """

    format: BlockFormat
    integers: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | NDArray[np.float32]

    def restored(self) -> NDArray[np.float32]:
        """[in, out]: the numbers that the integers stand for."""
        levels = in_blocks(self.integers.astype(np.float32), self.format.block_size)
        restored = (levels - self.zero_points[:, None].astype(np.float32)) * self.scales[:, None]
        return restored.reshape(-1, self.integers.shape[1])[: len(self.integers)]

    @classmethod
    def of(
        cls,
        format: BlockFormat,
        levels: NDArray[np.float32],
        scales: NDArray[np.float32],
        zero_points: NDArray[np.float32],
        inputs: int,
    ) -> BlockMatrix:
        """From levels [blocks, block_size, out] or [blocks · block_size, out], of which `inputs` are no padding."""
        integers = levels.reshape(-1, levels.shape[-1])[:inputs].astype(np.uint8)
        whole = np.array_equal(zero_points, np.rint(zero_points))
        return cls(format, integers, scales.astype(np.float32), zero_points.astype(np.uint8) if whole else zero_points)


def in_blocks(matrix: NDArray[_Number], block_size: int) -> NDArray[_Number]:
    """[in, out] as [blocks, block_size, out]; what is missing of the last block is zeros."""
    missing = -len(matrix) % block_size
    padded = np.pad(matrix, ((0, missing), (0, 0))) if missing else matrix
    return padded.reshape(-1, block_size, matrix.shape[1])
