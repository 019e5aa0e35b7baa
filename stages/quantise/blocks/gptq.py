"""GPTQ: round one input after the other, and let those that follow make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv:2210.17323),
section 3 and, for the order by activation and the ranges fixed in advance, its code (`--act-order`, `--static-groups`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.quantise.blocks.form import BlockFormat, BlockMatrix, in_blocks
from stages.quantise.blocks.ranges import best_range, squared_error

__all__ = ["gptq"]

_SHRINKS = tuple(1 - step / 40 for step in range(17))
_ROWS_AT_ONCE = 128
_RIDGE = 1e-4


def gptq(
    weight: NDArray[np.float32],
    format: BlockFormat,
    moments: NDArray[np.float32],
    *,
    damping: float = 0.1,
    act_order: bool = True,
) -> BlockMatrix:
    """`weight` W [in, out] as Q, chosen for a small tr((W - Q)ᵀ·H·(W - Q)), the error of the outputs.

    `moments`: H [in, in], the second moments of the activations (or their covariance, if the error of the mean is
    corrected elsewhere). `damping`: what is added to its diagonal, as a share of the diagonal's mean. `act_order`:
    inputs in the order of their moments, largest first, which no other one can then disturb; else as they lie.

    The range of a block is the one with the least squared error of its weights. In the end the scales are fitted to the
    integers, by least squares under H. Where H is zero, there is nothing to learn and the weights are rounded.
    """
    blocks = in_blocks(weight, format.block_size)
    inputs = blocks.shape[0] * blocks.shape[1]
    hessian = np.zeros((inputs, inputs))
    hessian[: len(moments), : len(moments)] = moments
    mean = float(np.trace(hessian)) / len(moments)
    hessian[np.diag_indices(inputs)] += damping * mean if mean > 0 else 1.0
    scales, zero_points = best_range(blocks, format, squared_error, _SHRINKS)
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(inputs)
    levels = np.empty((inputs, weight.shape[1]), np.float32)
    levels[order] = _rounded(
        blocks.reshape(inputs, -1)[order],
        hessian[np.ix_(order, order)],
        scales[order // format.block_size],
        zero_points[order // format.block_size],
        format.largest,
    )
    scales = _fitted_scales(blocks, levels, scales, zero_points, hessian)
    return BlockMatrix.of(format, levels, scales, zero_points, len(weight))


def _rounded(
    weight: NDArray[np.float32],
    hessian: NDArray[np.float64],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.float32],
    largest: int,
) -> NDArray[np.float32]:
    """The levels [in, out] of `weight` [in, out], whose every value has its scale and zero point, from the first input
    to the last.

    GPTQ updates the remaining weights with the Cholesky factor of H⁻¹. The same comes, without an inverse, of
    H = U·D·Uᵀ with a unit upper triangle U: input k is rounded from w_k + Σ_{j<k} U[j, k]·(w_j - q_j) (Chee et al.,
    "QuIP", arXiv:2307.13304, section 3.1 and theorem 6). What many inputs give those far behind is added at once.
    """
    upper = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    feedback = (upper / np.diag(upper)).astype(np.float32)
    wanted = weight.copy()
    levels = np.empty_like(weight)
    errors = np.empty_like(weight)
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, len(weight))
        for row in range(start, end):
            levels[row] = np.rint(wanted[row] / scales[row] + zero_points[row]).clip(0, largest)
            errors[row] = weight[row] - (levels[row] - zero_points[row]) * scales[row]
            wanted[row + 1 : end] += feedback[row, row + 1 : end, None] * errors[row]
        wanted[end:] += feedback[start:end, end:].T @ errors[start:end]
    return levels


def _fitted_scales(
    blocks: NDArray[np.float32],
    levels: NDArray[np.float32],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.float32],
    hessian: NDArray[np.float64],
) -> NDArray[np.float32]:
    """The scales [blocks, out] that minimise the error for given levels.

    With u the integers of an output without their zero points, split by blocks, the error is quadratic in its scales:
    its normal equations are A·s = b with A[g, h] = u_gᵀ·H_gh·u_h and b[g] = u_gᵀ·(H·w)_g. A small pull towards the
    scales that there were keeps those of blocks that are all zero.
    """
    count, size, outputs = blocks.shape
    units = levels.reshape(blocks.shape) - zero_points[:, None]
    single = hessian.astype(np.float32)
    wanted = (single @ blocks.reshape(count * size, outputs)).reshape(blocks.shape)
    right = np.einsum("gio,gio->og", units, wanted).astype(np.float64)
    normal = np.empty((outputs, count, count))
    for block in range(count):
        effect = single[:, block * size : (block + 1) * size] @ units[block]
        normal[:, block] = np.einsum("gio,gio->og", units, effect.reshape(blocks.shape))
    pull = _RIDGE * np.trace(normal, axis1=1, axis2=2) / count
    pull = np.maximum(pull, np.finfo(np.float32).tiny)[:, None]
    normal[:, np.arange(count), np.arange(count)] += pull
    fitted = np.linalg.solve(normal, (right + pull * scales.T)[..., None])[..., 0].T
    return fitted.astype(np.float32)
