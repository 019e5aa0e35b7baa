"""Ranges clipped where that costs the outputs least.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv:2306.00978): the
search for clipping thresholds of its code (`awq/quantize/auto_clip.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.quantise.blocks.form import BlockFormat, BlockMatrix, in_blocks
from stages.quantise.blocks.ranges import best_range, levels_of

__all__ = ["awq_clip"]

_SHRINKS = tuple(1 - step / 20 for step in range(10))


def awq_clip(weight: NDArray[np.float32], format: BlockFormat, vectors: NDArray[np.float32]) -> BlockMatrix:
    """`weight` [in, out] rounded to nearest in the ranges that lower the error of each block's share in the outputs.

    `vectors`: [count, in] float32, activations that the matrix was multiplied by. The error of one block is
    Σ(x·e)² over them, taken from their second moments in that block.
    """
    blocks = in_blocks(weight, format.block_size)
    channels = in_blocks(vectors.T, format.block_size)
    moments = channels @ channels.transpose(0, 2, 1) / np.float32(len(vectors))

    def loss(error: NDArray[np.float32]) -> NDArray[np.float32]:
        shares: NDArray[np.float32] = np.einsum("bio,bio->bo", moments @ error, error)
        return shares

    scales, zero_points = best_range(blocks, format, loss, _SHRINKS)
    return BlockMatrix.of(format, levels_of(blocks, scales, zero_points, format), scales, zero_points, len(weight))
