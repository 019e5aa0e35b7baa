"""Random inputs for a model of which nothing but its signature is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from calibration.inputs import InputSpec
from calibration.samples import Samples

__all__ = ["synthetic_samples"]

_AXIS, _IMAGE_AXIS = 16, 224


def synthetic_samples(
    specs: Sequence[InputSpec], count: int, seed: int = 0, axes: Mapping[str, int] | None = None
) -> Samples:
    """`count` random samples: floats from N(0, 1), integers 0 or 1 (valid as an index into anything), random booleans.

    An `attention_mask` is all ones and `token_type_ids` zeros. Dynamic axes take their size from `axes` by name, else
    224 for the last two of four (an image) and 16 for others. The same arguments give the same samples. What such
    samples say of a model's accuracy is little: they are not like anything that it was trained on.
    Raises `DataError` for an input of text or of a dtype that NumPy does not have.
    """
    sizes = dict(axes or {})
    generator = np.random.default_rng(seed)
    inputs: dict[str, list[NDArray[Any]]] = {}
    for spec in specs:
        if spec.dtype == "string":
            raise DataError(f"input {spec.name!r} takes text, which cannot be made up: give --evaluation")
        shape = spec.sample_shape
        image = len(spec.shape) == 4
        fixed = tuple(
            size if isinstance(size, int) else sizes.get(size, _IMAGE_AXIS if image and axis > 0 else _AXIS)
            for axis, size in enumerate(shape)
        )
        inputs[spec.name] = [_random(spec, fixed, generator) for _ in range(count)]
    return Samples(inputs)


def _random(spec: InputSpec, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
    dtype = spec.numpy_dtype
    if spec.name == "attention_mask":
        return np.ones(shape, dtype)
    if spec.name == "token_type_ids":
        return np.zeros(shape, dtype)
    if spec.floating:
        return np.asarray(generator.standard_normal(shape, np.float32)).astype(dtype)
    return np.asarray(generator.integers(0, 2, shape)).astype(dtype)
