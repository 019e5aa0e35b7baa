"""The layouts in which ONNX Runtime's block-wise operators take their constants.

Source: docs/ContribOperators.md of ONNX Runtime, `MatMulNBits` and `GatherBlockQuantized`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.quantise.blocks.form import BlockMatrix, in_blocks

__all__ = ["packed", "packed_matrix", "packed_zero_points"]


def packed(integers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """[…, n] integers of `bits` bits in […, ⌈n · bits / 8⌉] bytes, the first in the lowest bits of its byte."""
    if bits == 8:
        return integers
    assert bits == 4
    if integers.shape[-1] % 2:
        integers = np.concatenate([integers, np.zeros_like(integers[..., :1])], axis=-1)
    pairs: NDArray[np.uint8] = (integers[..., 0::2] | (integers[..., 1::2] << 4)).astype(np.uint8)
    return pairs


def packed_matrix(matrix: BlockMatrix) -> NDArray[np.uint8]:
    """The input `B` of `MatMulNBits`: [out, blocks, bytes of a block]."""
    blocks = in_blocks(matrix.integers, matrix.format.block_size)
    return np.ascontiguousarray(packed(blocks.transpose(2, 0, 1), matrix.format.bits))


def packed_zero_points(matrix: BlockMatrix) -> NDArray[Any] | None:
    """[out, bytes of all blocks] of integers, [out, blocks] of floats, or None where a symmetric format has none."""
    if matrix.format.symmetric:
        return None
    turned = np.ascontiguousarray(matrix.zero_points.T)
    if np.issubdtype(turned.dtype, np.floating):
        return turned
    return packed(turned.astype(np.uint8), matrix.format.bits)
