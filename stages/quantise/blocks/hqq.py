"""Half-quadratic quantisation: zero points that make the error sparse.

Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (Mobius Labs, 2023), and its code
(`hqq/core/optimize.py`), whose constants these are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.quantise.blocks.form import BlockFormat, BlockMatrix, in_blocks
from stages.quantise.blocks.ranges import full_range, levels_of

__all__ = ["NORM", "hqq"]

NORM = 0.7
"""The p of the error Σ|e|ᵖ that is minimised: below 1 it forgives few large errors for many small ones."""

_BETA = 10.0
_GROWTH = 1.01
_STEPS = 20


def hqq(weight: NDArray[np.float32], format: BlockFormat) -> BlockMatrix:
    """`weight` [in, out] with the range of each block as it is and a zero point that need not be an integer.

    Half-quadratic splitting of Σ|e|ᵖ: the error is shrunk towards the sparse one that is wanted, then the zero point
    fitted to what remains. Each block keeps its best zero point, so that none is worse than plain rounding. Raises
    `ValueError` for a symmetric format, which has no zero points to choose.
    """
    if format.symmetric:
        raise ValueError("HQQ chooses zero points, and a symmetric format has none")
    blocks = in_blocks(weight, format.block_size)
    scales, zero = full_range(blocks, format)
    best, least = zero, np.full(zero.shape, np.inf, np.float32)
    beta = _BETA
    for _ in range(_STEPS):
        levels = levels_of(blocks, scales, zero, format)
        error = blocks - (levels - zero[:, None]) * scales[:, None]
        magnitude = np.abs(error)
        cost = (magnitude**NORM).sum(axis=1)
        better = cost < least
        best, least = np.where(better, zero, best), np.where(better, cost, least)
        sparse = np.sign(error) * np.maximum(magnitude - np.maximum(magnitude, 1e-12) ** (NORM - 1) / beta, 0)
        zero = (levels - (blocks - sparse) / scales[:, None]).mean(axis=1)
        beta *= _GROWTH
    return BlockMatrix.of(format, levels_of(blocks, scales, best, format), scales, best, len(weight))
