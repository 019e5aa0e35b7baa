"""What a configuration says of NVIDIA GPUs: instances on them, plans by compute capability, profiles, accelerators."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from model_repository.errors import RepositoryError
from model_repository.signature import Signature

__all__ = ["GpuOptions", "describe_gpu"]


class GpuOptions(BaseModel):
    """How Triton is to run a model on GPUs.

    `plans`: by compute capability ("9.0") the file of the engine for it. `profiles`: of how many optimisation profiles
    of the engine each instance makes a context; Triton takes the one that fits a request.
    `tensorrt_provider`: for the backend `onnxruntime`, parameters of ONNX Runtime's TensorRT provider (`precision_mode`
    and others, by the names that Triton's backend knows); None leaves the graph to its CUDA provider. What the provider
    builds on the first request takes minutes: give it a cache (`trt_engine_cache_enable`, `trt_engine_cache_path`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plans: dict[str, str] = Field(default_factory=dict)
    profiles: int = Field(default=1, ge=1)
    tensorrt_provider: dict[str, str] | None = None


def describe_gpu(config: Any, signature: Signature, options: GpuOptions, instances: int) -> None:
    """Write into a `ModelConfig` that has its backend, inputs and outputs.

    A TensorRT engine whose shapes are fixed, the batch aside, is run from CUDA graphs. Raises `RepositoryError` for
    options that the backend does not have.
    """
    if config.backend != "tensorrt" and (options.plans or options.profiles > 1):
        raise RepositoryError(f"plans and profiles are those of TensorRT engines; the backend is {config.backend}")
    if config.backend != "onnxruntime" and options.tensorrt_provider is not None:
        raise RepositoryError(f"the TensorRT provider is ONNX Runtime's; the backend is {config.backend}")
    group = config.instance_group.add(count=instances, kind="KIND_GPU")
    if options.profiles > 1:
        group.profile.extend(str(index) for index in range(options.profiles))
    for capability, file in sorted(options.plans.items()):
        config.cc_model_filenames[capability] = file
    if config.backend == "tensorrt" and _fixed(signature):
        config.optimization.cuda.graphs = True
    if options.tensorrt_provider is not None:
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        for key, value in sorted(options.tensorrt_provider.items()):
            accelerator.parameters[key] = value


def _fixed(signature: Signature) -> bool:
    return all(
        isinstance(size, int)
        for tensor in (*signature.inputs, *signature.outputs)
        for size in tensor.shape[1 if signature.batched else 0 :]
    )
