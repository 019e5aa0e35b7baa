"""What of TensorRT's Python package is used, and the package itself.

The list is looked through when TensorRT is imported, so that a version that lacks something is named before a build
begins; the contract tests hold the same list against the real bindings of TensorRT 10 and 11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.errors import RequirementError

__all__ = ["OLDEST", "SIGNATURES", "USED", "import_tensorrt", "version_of"]

OLDEST = (10, 12)
"""Before that a strongly typed network takes other calls."""

SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "Builder.build_serialized_network": ("network", "config"),
    "Builder.create_builder_config": (),
    "Builder.create_network": ("flags",),
    "Builder.create_optimization_profile": (),
    "EngineInspector.get_engine_information": ("format",),
    "IBuilderConfig.add_optimization_profile": ("profile",),
    "IBuilderConfig.clear_flag": ("flag",),
    "IBuilderConfig.create_timing_cache": ("serialized_timing_cache",),
    "IBuilderConfig.get_timing_cache": (),
    "IBuilderConfig.set_flag": ("flag",),
    "IBuilderConfig.set_memory_pool_limit": ("pool", "pool_size"),
    "IBuilderConfig.set_timing_cache": ("cache", "ignore_mismatch"),
    "ICudaEngine.create_engine_inspector": (),
    "ICudaEngine.create_execution_context": (),
    "ICudaEngine.get_tensor_dtype": ("name",),
    "ICudaEngine.get_tensor_mode": ("name",),
    "ICudaEngine.get_tensor_name": ("index",),
    "ICudaEngine.get_tensor_shape": ("name",),
    "ICudaEngine.get_weight_streaming_automatic_budget": (),
    "IExecutionContext.execute_async_v3": ("stream_handle",),
    "IExecutionContext.get_tensor_shape": ("name",),
    "IExecutionContext.infer_shapes": (),
    "IExecutionContext.set_input_shape": ("name", "shape"),
    "IExecutionContext.set_output_allocator": ("name", "output_allocator"),
    "IExecutionContext.set_optimization_profile_async": ("profile_index", "stream_handle"),
    "IExecutionContext.set_tensor_address": ("name", "memory"),
    "ILogger.log": ("severity", "msg"),
    "IOptimizationProfile.set_shape": ("input", "min", "opt", "max"),
    "IProgressMonitor.phase_finish": ("phase_name",),
    "IProgressMonitor.phase_start": ("phase_name", "parent_phase", "num_steps"),
    "IProgressMonitor.step_complete": ("phase_name", "step"),
    "ITimingCache.serialize": (),
    "OnnxParser.__init__": ("network", "logger"),
    "OnnxParser.get_error": ("index",),
    "OnnxParser.get_used_vc_plugin_libraries": (),
    "OnnxParser.parse_from_file": ("model",),
    "OnnxParserRefitter.__init__": ("refitter", "logger"),
    "OnnxParserRefitter.get_error": ("index",),
    "OnnxParserRefitter.refit_from_file": ("model",),
    "ParserError.code": (),
    "ParserError.desc": (),
    "ParserError.node": (),
    "ParserError.node_name": (),
    "ParserError.node_operator": (),
    "init_libnvinfer_plugins": ("logger", "namespace"),
    "Builder.__init__": ("logger",),
    "ILogger.__init__": (),
    "IOutputAllocator.__init__": (),
    "IProgressMonitor.__init__": (),
    "Refitter.__init__": ("engine", "logger"),
    "Refitter.refit_cuda_engine": (),
    "Runtime.__init__": ("logger",),
    "Runtime.deserialize_cuda_engine": ("serialized_engine",),
}
"""Methods, and the parameters that they are called with, in this order; what a method takes beyond has a default."""

USED: tuple[str, ...] = (
    *SIGNATURES,
    "BuilderFlag.EDITABLE_TIMING_CACHE",
    "BuilderFlag.ERROR_ON_TIMING_CACHE_MISS",
    "BuilderFlag.REFIT",
    "BuilderFlag.STRIP_PLAN",
    "BuilderFlag.TF32",
    "BuilderFlag.VERSION_COMPATIBLE",
    "BuilderFlag.WEIGHT_STREAMING",
    "DataType.BF16",
    "DataType.BOOL",
    "DataType.FLOAT",
    "DataType.HALF",
    "DataType.INT32",
    "DataType.INT64",
    "DataType.INT8",
    "DataType.UINT8",
    "HardwareCompatibilityLevel.AMPERE_PLUS",
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
    "EngineInspector.execution_context",
    "IBuilderConfig.builder_optimization_level",
    "IBuilderConfig.hardware_compatibility_level",
    "IBuilderConfig.plugins_to_serialize",
    "IBuilderConfig.profiling_verbosity",
    "IBuilderConfig.progress_monitor",
    "ICudaEngine.num_io_tensors",
    "ICudaEngine.weight_streaming_budget_v2",
    "ILogger.Severity.ERROR",
    "ILogger.Severity.INTERNAL_ERROR",
    "ILogger.Severity.WARNING",
    "LayerInformationFormat.JSON",
    "MemoryPoolType.WORKSPACE",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "OnnxParser.num_errors",
    "OnnxParserRefitter.num_errors",
    "ProfilingVerbosity.DETAILED",
    "Runtime.engine_host_code_allowed",
    "TensorIOMode.INPUT",
    "TensorIOMode.OUTPUT",
)
"""Every attribute that is used, as `Class.member`."""


def import_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises `RequirementError` if it is not installed, is older than `OLDEST`, or lacks something that is used.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # OSError: the bindings are there, the libraries behind them are not
        raise RequirementError(
            f"TensorRT's Python package cannot be imported ({error}): `pip install 'optimize-pipeline[tensorrt]'`"
        ) from error
    if version_of(tensorrt) < OLDEST:
        raise RequirementError(
            f"TensorRT {tensorrt.__version__} is older than {'.'.join(map(str, OLDEST))}, the first that is supported"
        )
    if lacking := [name for name in USED if not _has(tensorrt, name)]:
        raise RequirementError(f"TensorRT {tensorrt.__version__} lacks {', '.join(lacking)}, which is needed")
    return tensorrt


def version_of(tensorrt: Any) -> tuple[int, int]:
    """Major and minor version."""
    major, minor = str(tensorrt.__version__).split(".")[:2]
    return int(major), int(minor)


def _has(owner: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True
