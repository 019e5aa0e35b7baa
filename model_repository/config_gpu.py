"""What a configuration says of NVIDIA GPUs: instances on them, plans by compute capability, profiles, accelerators."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from model_repository.errors import RepositoryError
from model_repository.signature import Signature

__all__ = ["GpuOptions", "describe_gpu"]


_PROVIDER_KEYS = frozenset((
    "precision_mode", "max_workspace_size_bytes", "int8_calibration_table_name", "int8_use_native_calibration_table",
    "trt_max_partition_iterations", "trt_min_subgraph_size", "trt_dla_enable", "trt_dla_core",
    "trt_engine_cache_enable", "trt_engine_cache_path", "trt_engine_cache_prefix", "trt_dump_subgraphs",
    "trt_force_sequential_engine_build", "trt_context_memory_sharing_enable", "trt_layer_norm_fp32_fallback",
    "trt_timing_cache_enable", "trt_timing_cache_path", "trt_force_timing_cache", "trt_detailed_build_log",
    "trt_build_heuristics_enable", "trt_sparsity_enable", "trt_builder_optimization_level", "trt_auxiliary_streams",
    "trt_tactic_sources", "trt_extra_plugin_lib_paths", "trt_profile_min_shapes", "trt_profile_max_shapes",
    "trt_profile_opt_shapes", "trt_cuda_graph_enable", "trt_dump_ep_context_model", "trt_ep_context_file_path",
    "trt_ep_context_embed_mode",
))  # fmt: skip
"""All that Triton's backend reads for it (triton-inference-server/onnxruntime_backend, `src/onnxruntime.cc`, June
2026). With any other it refuses to load the model."""


_GRAPHS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Batch sizes that a CUDA graph is captured for: those that Triton takes for a model that it does not batch
(triton-inference-server/tensorrt_backend, `InitializeGraphSpecs` in `src/instance_state.cc`)."""


class GpuOptions(BaseModel):
    """How Triton is to run a model on GPUs.

    `plans`: by compute capability ("9.0") the file of the engine for it. `profiles`: of how many optimisation profiles
    of the engine each instance makes a context; Triton takes the one that fits a request.
    `tensorrt_provider`: for the backend `onnxruntime`, parameters of ONNX Runtime's TensorRT provider (`precision_mode`
    and others, by the names that Triton's backend knows); None leaves the graph to its CUDA provider. What the provider
    builds on the first request takes minutes: give it a cache (`trt_engine_cache_enable`, `trt_engine_cache_path`).
    `tf32`: for the same backend, whether its CUDA provider may round the inputs of FP32 products to TF32; None leaves
    that to ONNX Runtime, which does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plans: dict[str, str] = Field(default_factory=dict)
    profiles: int = Field(default=1, ge=1)
    tensorrt_provider: dict[str, str] | None = None
    tf32: bool | None = None


def describe_gpu(config: Any, signature: Signature, options: GpuOptions, instances: int) -> None:
    """Write into a `ModelConfig` that has its backend, inputs and outputs.

    A TensorRT engine whose shapes are fixed, the batch aside, is run from CUDA graphs. Raises `RepositoryError` for
    options that the backend does not have.
    """
    if config.backend != "tensorrt" and (options.plans or options.profiles > 1):
        raise RepositoryError(f"plans and profiles are those of TensorRT engines; the backend is {config.backend}")
    if config.backend != "onnxruntime" and (options.tensorrt_provider, options.tf32) != (None, None):
        raise RepositoryError(f"a provider is ONNX Runtime's; the backend is {config.backend}")
    if unknown := sorted(set(options.tensorrt_provider or {}) - _PROVIDER_KEYS):
        raise RepositoryError(f"Triton's backend knows no parameter {unknown[0]!r} of ONNX Runtime's TensorRT provider")
    group = config.instance_group.add(count=instances, kind="KIND_GPU")
    if options.profiles > 1:
        group.profile.extend(str(index) for index in range(options.profiles))
    for capability, file in sorted(options.plans.items()):
        config.cc_model_filenames[capability] = file
    if config.backend == "tensorrt" and _fixed(signature):
        config.optimization.cuda.graphs = True
        # Unless they are named, a server that puts batches together captures them for 1 and the largest only.
        for size in sorted({size for size in (*_GRAPHS, config.max_batch_size) if size <= config.max_batch_size} - {0}):
            config.optimization.cuda.graph_spec.add(batch_size=size)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if options.tensorrt_provider is not None:
        # In front of CUDA's, which takes what TensorRT leaves.
        tensorrt = accelerators.add(name="tensorrt")
        for key, value in sorted(options.tensorrt_provider.items()):
            tensorrt.parameters[key] = value
    if options.tf32 is not None:
        accelerators.add(name="cuda").parameters["use_tf32"] = str(int(options.tf32))


def _fixed(signature: Signature) -> bool:
    return all(
        isinstance(size, int)
        for tensor in (*signature.inputs, *signature.outputs)
        for size in tensor.shape[1 if signature.batched else 0 :]
    )
