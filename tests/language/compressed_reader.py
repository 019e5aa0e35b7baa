"""The compressed-tensors format, read with numpy alone: what the format says, not what a library makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Stored", "float8_e4m3", "matrix", "stored"]

Floats = NDArray[np.float32]
Stored = dict[str, tuple[str, NDArray[Any]]]
"""By its name, each tensor's dtype as safetensors spells it, and its values (of F8_E4M3 and BF16 the raw bits)."""

_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "<i1", "I32": "<i4", "I64": "<i8", "F8_E4M3": "<u1"}


def stored(folder: Path) -> Stored:
    """Every tensor of `model.safetensors`."""
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in about["data_offsets"])
            values = np.frombuffer(content[begin:end], _DTYPES[about["dtype"]]).reshape(about["shape"])
            tensors[name] = (about["dtype"], values)
    return tensors


def float8_e4m3(bits: NDArray[np.uint8]) -> Floats:
    """S.EEEE.MMM with a bias of 7, no infinities, and subnormals where the exponent is 0 (arXiv:2209.05433)."""
    sign = np.where(bits & 0x80, -1.0, 1.0)
    exponent, mantissa = (bits >> 3 & 0xF).astype(np.int64), (bits & 0x7).astype(np.float64)
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    assert not np.any((bits & 0x7F) == 0x7F), "NaN"
    return np.asarray(sign * size, np.float32)


def matrix(tensors: Stored, layer: str, bits: int = 4) -> Floats:
    """The weights of a quantised layer, [outputs, inputs].

    Packed: in int32 words, the first of the inputs in the lowest bits, each with 2^(bits-1) added. `weight_scale` has a
    column for each group of neighbouring inputs, or one for all of them, or one value for the whole matrix.
    """
    scale = tensors[f"{layer}.weight_scale"][1]
    if f"{layer}.weight_packed" in tensors:
        words = tensors[f"{layer}.weight_packed"][1].view(np.uint32)
        rows, inputs = tensors[f"{layer}.weight_shape"][1]
        shifts = np.arange(32 // bits, dtype=np.uint32) * bits
        fields = (words[:, :, None] >> shifts & ((1 << bits) - 1)).reshape(rows, -1)[:, :inputs]
        values = fields.astype(np.int64) - (1 << bits - 1)
    else:
        dtype, raw = tensors[f"{layer}.weight"]
        values = float8_e4m3(raw) if dtype == "F8_E4M3" else raw.astype(np.int64)
    if scale.size == 1:
        return np.asarray(values * scale.item(), np.float32)
    return np.asarray(values * np.repeat(scale, values.shape[1] // scale.shape[1], axis=1), np.float32)
