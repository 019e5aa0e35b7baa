"""The weights of a checkpoint from its safetensors headers, and what other forms of it would hold.

A form is planned tensor by tensor, under the names and in the shapes that its format stores, so that a plan can be held
against a real checkpoint: `gptq` and `awq` as GPTQModel 7.6 writes them, the others as llm-compressor 0.14 does.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from stages.errors import InputError

__all__ = ["FORMS", "Form", "Tensor", "parse_form", "planned", "read_tensors", "why_not"]

_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I64": 64, "U64": 64, "I32": 32, "U32": 32,
    "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Bits of an element, by the names that safetensors has for data types."""

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_IN_A_LAYER = re.compile(r"\.\d+\..*\.weight$")
_ROUTER = re.compile(r"\.(gate|router)\.weight$")
_MOST_HEADER = 100 * 1024 * 1024
_GROUP_SIZES = (32, 64, 128)

FORMS = ("original", "bf16", "fp8", "int8-w8a8", "gptq", "awq", "w4a16")
"""The forms that are planned; those in INT4 also with a group size behind them: `gptq-g32`."""
_IN_GROUPS = ("gptq", "awq", "w4a16")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a safetensors file: its data type by safetensors' name for it, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * _BITS[self.dtype] // 8

    @property
    def loaded_bytes(self) -> int:
        """What it takes in a server that holds FP32 weights in 16 bits, as vLLM does (`dtype: auto`)."""
        return prod(self.shape) * min(_BITS[self.dtype], 16 if self.dtype in _FLOATS else 64) // 8


@dataclass(frozen=True)
class Form:
    """A form of the weights. `group_size`: values along the input that share a scale; None: a scale a channel."""

    kind: str
    group_size: int | None = None

    @property
    def name(self) -> str:
        return f"{self.kind}-g{self.group_size}" if self.group_size else self.kind


def parse_form(name: str) -> Form:
    """A form by name; INT4 without a group size has 128. Raises `InputError` for a name that is none."""
    kind, _, group = name.partition("-g")
    if kind in FORMS and kind not in _IN_GROUPS and not group:
        return Form(kind)
    if kind in _IN_GROUPS and group in ("", *map(str, _GROUP_SIZES)):
        return Form(kind, int(group or 128))
    raise InputError(
        f"{name!r} is not a form that can be planned; there are {', '.join(FORMS)}, and for {', '.join(_IN_GROUPS)} "
        f"the group sizes {', '.join(map(str, _GROUP_SIZES))} ({_IN_GROUPS[0]}-g{_GROUP_SIZES[0]})"
    )


def read_tensors(directory: Path) -> tuple[Tensor, ...]:
    """The tensors of a checkpoint, from the headers of `model.safetensors` or of the shards that its index names.

    Raises `InputError` if there are none, a shard is missing, or a file is damaged.
    """
    return tuple(tensor for file in _files(directory) for tensor in _header(file))


def _files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        file = directory / "model.safetensors"
        if not file.is_file():
            raise InputError(f"{directory} has no weights: expected model.safetensors, or its index with its shards")
        return [file]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} cannot be read ({error!r})") from error
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise InputError(f"{index} names the shard {name!r}, which is not beside it; copy all shards")
    return [directory / name for name in names]


def _header(file: Path) -> Iterator[Tensor]:
    with file.open("rb") as stream:
        start = stream.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
        text = stream.read(length) if 0 < length <= _MOST_HEADER else b""
    try:
        described: dict[str, Any] = json.loads(text)
        tensors = [
            Tensor(name, about["dtype"], tuple(about["shape"]))
            for name, about in described.items()
            if name != "__metadata__"
        ]
        end = max((about["data_offsets"][1] for name, about in described.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not a safetensors file, or is damaged") from error
    if unknown := next((tensor for tensor in tensors if tensor.dtype not in _BITS), None):
        raise InputError(f"{file}: {unknown.name} is {unknown.dtype}, a data type that is not known here")
    if file.stat().st_size != 8 + length + end:
        raise InputError(f"{file} is cut short: its header promises {8 + length + end} bytes; copy it again")
    yield from tensors


def _is_linear(tensor: Tensor) -> bool:
    """Whether quantisers take it: the matrix [output, input] of a linear layer within a block, routers aside."""
    return (
        len(tensor.shape) == 2
        and tensor.dtype in _FLOATS
        and _IN_A_LAYER.search(tensor.name) is not None
        and _ROUTER.search(tensor.name) is None
    )


def planned(tensors: Iterable[Tensor], form: Form) -> tuple[Tensor, ...]:
    """What `form` would store in place of the tensors of the original. Ask `why_not` before."""
    return tuple(piece for tensor in tensors for piece in _pieces(tensor, form))


def _pieces(tensor: Tensor, form: Form) -> list[Tensor]:
    if form.kind == "bf16" and tensor.dtype in _FLOATS:
        return [Tensor(tensor.name, "BF16", tensor.shape)]
    if form.kind in ("original", "bf16") or not _is_linear(tensor):
        return [tensor]
    layer = tensor.name.removesuffix(".weight")
    rows, columns = tensor.shape
    scales = tensor.dtype

    def piece(name: str, dtype: str, *shape: int) -> Tensor:
        return Tensor(f"{layer}.{name}", dtype, shape)

    if form.group_size is None:
        data = "F8_E4M3" if form.kind == "fp8" else "I8"
        return [piece("weight", data, rows, columns), piece("weight_scale", scales, rows, 1)]
    groups = columns // form.group_size
    if form.kind == "gptq":
        return [
            piece("qweight", "I32", columns // 8, rows),
            piece("qzeros", "I32", groups, rows // 8),
            piece("scales", "F16", groups, rows),
            piece("g_idx", "I32", columns),
        ]
    if form.kind == "awq":
        return [
            piece("qweight", "I32", columns, rows // 8),
            piece("qzeros", "I32", groups, rows // 8),
            piece("scales", scales if scales == "BF16" else "F16", groups, rows),
        ]
    return [
        piece("weight_packed", "I32", rows, columns // 8),
        piece("weight_scale", scales, rows, groups),
        piece("weight_shape", "I64", 2),
    ]


def why_not(tensors: Iterable[Tensor], form: Form) -> str | None:
    """Why these tensors have no such form, None if they have."""
    if form.kind in ("original", "bf16"):
        return None
    for tensor in tensors:
        if tensor.dtype not in _FLOATS and tensor.dtype not in ("I64", "BOOL"):
            return f"the checkpoint is quantised already ({tensor.name} is {tensor.dtype}); plan it from the original"
        if len(tensor.shape) > 2 and _IN_A_LAYER.search(f"{tensor.name}.weight"):
            return f"{tensor.name} has {len(tensor.shape)} axes; what a quantiser makes of it is not understood"
        if form.group_size and _is_linear(tensor):
            rows, columns = tensor.shape
            if columns % form.group_size:
                return f"the input of {tensor.name}, {columns}, is not a multiple of the group size {form.group_size}"
            if rows % 8:
                return f"the output of {tensor.name}, {rows}, is not a multiple of 8"
    return None
