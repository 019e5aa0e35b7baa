"""What goes into a model and what comes out: names, dtypes and shapes of its tensors."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

DType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64", "string",
]  # fmt: skip

__all__ = ["DType", "Signature", "TensorSpec"]


class TensorSpec(BaseModel):
    """One named tensor. `shape` holds an integer for a fixed axis and a name for a dynamic one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


class Signature(BaseModel):
    """The inputs and outputs of a model, in the model's own order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batched(self) -> bool:
        """Whether the first axis of every input and output is dynamic, so that requests can be put together."""
        return all(tensor.shape and isinstance(tensor.shape[0], str) for tensor in (*self.inputs, *self.outputs))
