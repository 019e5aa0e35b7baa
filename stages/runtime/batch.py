"""Batches held against a signature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from calibration.samples import Samples
from model_repository.signature import DType, Signature
from stages.errors import InputError
from stages.runtime import Arrays

__all__ = ["batches", "ensure_shapes", "fixed_shapes", "mismatch", "numpy_dtype"]


def batches(samples: Samples, signature: Signature, size: int) -> Iterator[tuple[list[int], Arrays]]:
    """All samples in batches of at most `size`, of like length together, with their indices. A graph whose batch axis
    is fixed gets exactly that many: the last sample again for each that is missing."""
    fixed = signature.inputs[0].shape[0] if signature.inputs[0].shape else 1
    if not isinstance(fixed, int):
        yield from samples.batches(size)
        return
    for indices, _ in samples.batches(fixed):
        yield indices, samples.batch([*indices, *indices[-1:] * (fixed - len(indices))])


def numpy_dtype(dtype: DType) -> Any:
    """The NumPy dtype of a tensor's elements; text is `object`."""
    if dtype == "string":
        return np.dtype(object)
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


def mismatch(batch: Arrays, signature: Signature) -> str:
    """What is wrong with the names or dtypes of a batch, in words."""
    wanted = {tensor.name: tensor.dtype for tensor in signature.inputs}
    missing = [name for name in wanted if name not in batch]
    unknown = [name for name in batch if name not in wanted]
    if missing or unknown:
        said = [f"lacks {', '.join(missing)}"] if missing else []
        said += [f"has {', '.join(unknown)} that the model does not know"] if unknown else []
        return f"the batch {' and '.join(said)}; the model's inputs are {', '.join(wanted)}"
    wrong = [
        f"{name} is {batch[name].dtype}, the model takes {dtype}"
        for name, dtype in wanted.items()
        if batch[name].dtype != numpy_dtype(dtype)
    ]
    return "; ".join(wrong)


def fixed_shapes(signature: Signature) -> bool:
    """Whether no axis of an input or output is dynamic, so that a call can be captured as a CUDA graph."""
    return all(isinstance(size, int) for tensor in (*signature.inputs, *signature.outputs) for size in tensor.shape)


def ensure_shapes(batch: Arrays, signature: Signature) -> None:
    """Raises `InputError` unless the arrays have the very shapes of a signature without dynamic axes.

    A captured CUDA graph does not look: it would compute with what lies in its memory.
    """
    for tensor in signature.inputs:
        if batch[tensor.name].shape != tensor.shape:
            raise InputError(
                f"{tensor.name} has the shape {list(batch[tensor.name].shape)}; the model takes {list(tensor.shape)}"
            )
