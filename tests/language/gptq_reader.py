"""The formats of AutoGPTQ and AutoAWQ, read with numpy alone, by the rules of the packages that defined them."""

from __future__ import annotations

from typing import Any

import numpy as np
from compressed_reader import Floats, Stored
from numpy.typing import NDArray

__all__ = ["awq_matrix", "floats", "gptq_matrix"]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs is at each place of a word, the lowest bits first."""


def floats(tensors: Stored, name: str) -> Floats:
    """A tensor of floats; BF16 is stored as raw bits."""
    dtype, values = tensors[name]
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def gptq_matrix(tensors: Stored, layer: str, bits: int = 4) -> Floats:
    """The weights of a layer, [outputs, inputs], as `QuantLinear` of AutoGPTQ 0.7.1 (`qlinear_cuda_old.py`) reads them.

    Words of int32: `qweight` [inputs * bits / 32, outputs] with inputs one under the other, the first of them in the
    lowest bits; `qzeros` [groups, outputs * bits / 32] with outputs side by side, each zero point less one. `g_idx`
    says of each input to which group it belongs, a row of `scales` [groups, outputs].
    """
    words = tensors[f"{layer}.qweight"][1].view(np.uint32)
    integers = _fields(words.T, bits).T
    zeros = _fields(tensors[f"{layer}.qzeros"][1].view(np.uint32), bits) + 1
    scales = floats(tensors, f"{layer}.scales")
    groups = tensors[f"{layer}.g_idx"][1]
    return np.asarray(scales[groups] * (integers - zeros[groups]), np.float32).T


def awq_matrix(tensors: Stored, layer: str) -> Floats:
    """The weights of a layer, [outputs, inputs], as `WQLinear_GEMM` of AutoAWQ 0.2.9 (`gemm.py`) reads them.

    `qweight` [inputs, outputs / 8] and `qzeros` [groups, outputs / 8], eight outputs a word in the order that its
    kernel takes them; `scales` [groups, outputs]; groups are of neighbouring inputs.
    """
    integers, zeros = (_reordered(tensors[f"{layer}.{part}"][1]) for part in ("qweight", "qzeros"))
    scales = floats(tensors, f"{layer}.scales")
    size = len(integers) // len(scales)
    return np.asarray(np.repeat(scales, size, axis=0) * (integers - np.repeat(zeros, size, axis=0)), np.float32).T


def _fields(words: NDArray[np.uint32], bits: int) -> NDArray[np.int64]:
    """[rows, words] → [rows, fields]: the unsigned integers in words, those in the lowest bits first."""
    shifts = np.arange(32 // bits, dtype=np.uint32) * bits
    fields = words[:, :, None] >> shifts & ((1 << bits) - 1)
    return fields.reshape(len(words), -1).astype(np.int64)


def _reordered(words: NDArray[Any]) -> NDArray[np.int64]:
    fields = _fields(words.view(np.uint32), 4).reshape(len(words), -1, 8)
    ordered = np.empty_like(fields)
    ordered[:, :, list(_AWQ_ORDER)] = fields
    return ordered.reshape(len(words), -1)
