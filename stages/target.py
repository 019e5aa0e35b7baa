"""Targets: where a result is to run, what runs it there, and what this machine lacks for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import ValidationError

from stages.errors import InputError
from stages.gpu import NEEDS_GPU, gpus
from stages.host import versions
from stages.quantise.variant import Runtime, VariantConfig
from stages.variant import Variant

__all__ = ["RUNTIME_LIBRARIES", "TARGET_RUNTIMES", "USUAL_VARIANTS", "Target", "for_target", "lacking"]

Target = Literal["cpu", "cuda", "tensorrt"]

TARGET_RUNTIMES: Mapping[Target, tuple[Runtime, ...]] = {
    "cpu": ("onnxruntime", "openvino"),
    "cuda": ("onnxruntime-cuda",),
    "tensorrt": ("tensorrt",),
}
"""What runs graphs on each target, the usual one first."""

RUNTIME_LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("onnxruntime", "openvino"),
    "onnxruntime-cuda": ("onnxruntime", "onnxruntime-gpu", "cuda-bindings"),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "cuda-bindings"),
}
"""The distributions that are a runtime, under the names that they come by: those installed decide what it does."""

USUAL_VARIANTS: Mapping[Target, tuple[str, ...]] = {
    "cpu": ("fp16", "int8-dynamic"),
    "cuda": ("fp16",),
    "tensorrt": ("fp16", "int8-static"),
}
"""What is made beside the baseline where a recipe does not say."""

_Variant = TypeVar("_Variant", bound=Variant)


def for_target(variant: _Variant, target: Target) -> _Variant:
    """The variant with the target's runtime, unless it names one. Raises `InputError` if it cannot be made for it.

    Variants of language models are left as they are: nothing of theirs follows the target.
    """
    if not isinstance(variant, VariantConfig):
        return variant
    if target not in variant.targets:
        raise InputError(
            f"{variant.name} is not made for the target {target}; it is made for {', '.join(variant.targets)}"
        )
    runtimes = TARGET_RUNTIMES[target]
    if variant.runtime in runtimes:
        return variant
    if "runtime" in variant.model_fields_set:
        raise InputError(
            f"the runtime {variant.runtime} of {variant.name} is not for the target {target}, where {runtimes[0]} runs "
            "graphs"
        )
    try:
        return type(variant).model_validate(variant.model_dump(exclude_unset=True) | {"runtime": runtimes[0]})
    except ValidationError as error:
        faults = "; ".join(fault["msg"] for fault in error.errors())
        raise InputError(f"{variant.name} cannot be made like this for the target {target}: {faults}") from error


def lacking(target: Target) -> str | None:
    """Why what is made for `target` cannot run on this machine; None if it can."""
    if target == "cpu":
        return None
    if not gpus():
        return NEEDS_GPU
    if not versions(["cuda-bindings"]):
        return "needs cuda-bindings: `pip install 'optimize-pipeline[gpu]'`"
    if target == "tensorrt" and importlib.util.find_spec("tensorrt") is None:
        return "needs TensorRT's Python package: `pip install 'optimize-pipeline[tensorrt]'`"
    if target == "cuda" and not versions(["onnxruntime-gpu"]):
        return (
            "needs onnxruntime-gpu in place of onnxruntime: `pip uninstall onnxruntime`, then "
            "`pip install 'optimize-pipeline[gpu]'`"
        )
    return None
