"""A stand-in for TensorRT and for NVML, for what takes a GPU: it records what it is told, and builds nothing.

Its classes have no member that the real bindings lack: `test_the_stand_in_has_nothing_of_its_own` holds that.
"""

from __future__ import annotations

import enum
import json
import os
import signal
import types
from typing import Any


class Recorded:
    """What the stand-in was told, and what it shall do."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.parser_errors: list[Any] = []
        self.plan: bytes | None = b"plan"
        self.said: list[tuple[str, str]] = []
        self.accepts_cache = True
        self.reads_cache = True
        self.finds_gpu = True
        self.captures = True
        self.layers: list[dict[str, Any]] = [_layer("Half")]
        self.steps = 3
        self.interrupted_at: int | None = None
        self.stopped_at: int | None = None
        self.deserialises = True

    def told(self, name: str) -> list[Any]:
        return [value for called, value in self.calls if called == name]


def _layer(dtype: str, kind: str = "gemm") -> dict[str, Any]:
    tensor = {"Name": "x", "Format/Datatype": dtype}
    return {"Name": "int8_named_layer", "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor]}


class Refused:
    """An error of the parser, as `tensorrt.ParserError`."""

    def __init__(
        self, node: int, name: str, operator: str, words: str, code: str = "ErrorCode.UNSUPPORTED_NODE"
    ) -> None:
        self._told = node, name, operator, words, code

    def node(self) -> int:
        return self._told[0]

    def node_name(self) -> str:
        return self._told[1]

    def node_operator(self) -> str:
        return self._told[2]

    def desc(self) -> str:
        return self._told[3]

    def code(self) -> str:
        return self._told[4]


def _enum(name: str, *members: str) -> Any:
    return enum.IntEnum(name, {member: index for index, member in enumerate(members)})


def tensorrt(recorded: Recorded, version: str = "10.13.3.9") -> Any:
    """A module `tensorrt` of that version."""
    module = types.ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined]

    class ILogger:
        Severity = _enum("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

        def log(self, severity: Any, msg: str) -> None: ...

    class IProgressMonitor:
        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None: ...
        def step_complete(self, phase_name: str, step: int) -> bool: ...
        def phase_finish(self, phase_name: str) -> None: ...

    class ITimingCache:
        def __init__(self, content: bytes = b"") -> None:
            self._content = content

        def serialize(self) -> bytes:
            return self._content + b"+timed"

    class IOptimizationProfile:
        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            recorded.calls.append(("set_shape", (input, min, opt, max)))

    class IBuilderConfig:
        builder_optimization_level = 3
        hardware_compatibility_level: Any = None
        plugins_to_serialize: Any = None
        profiling_verbosity: Any = None
        progress_monitor: Any = None

        def set_flag(self, flag: Any) -> None:
            recorded.calls.append(("set_flag", flag.name))

        def clear_flag(self, flag: Any) -> None:
            recorded.calls.append(("clear_flag", flag.name))

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            recorded.calls.append(("set_memory_pool_limit", (pool.name, pool_size)))

        def add_optimization_profile(self, profile: Any) -> int:
            return 0

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            recorded.calls.append(("create_timing_cache", serialized_timing_cache))
            return (
                ITimingCache(serialized_timing_cache) if recorded.reads_cache or not serialized_timing_cache else None
            )

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self._cache = cache
            return recorded.accepts_cache or cache._content == b""

        def get_timing_cache(self) -> Any:
            return self._cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            if not recorded.finds_gpu:
                logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger

        def create_network(self, flags: int) -> Any:
            recorded.calls.append(("create_network", flags))
            return object()

        def create_builder_config(self) -> Any:
            return IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            recorded.calls.append(("config", config))
            for severity, words in recorded.said:
                self._logger.log(getattr(ILogger.Severity, severity), words)
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, recorded.steps)
            for step in range(recorded.steps):
                if step == recorded.interrupted_at:  # somebody presses Ctrl-C
                    os.kill(os.getpid(), signal.SIGINT)
                if not monitor.step_complete("Building", step):
                    recorded.stopped_at = step
                    return None
            monitor.phase_finish("Building")
            return recorded.plan

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None: ...

        @property
        def num_errors(self) -> int:
            return len(recorded.parser_errors)

        def get_error(self, index: int) -> Any:
            return recorded.parser_errors[index]

        def parse_from_file(self, model: str) -> bool:
            recorded.calls.append(("parse_from_file", model))
            return not recorded.parser_errors

        def get_used_vc_plugin_libraries(self) -> list[str]:
            return ["libplugin.so"]

    class EngineInspector:
        execution_context: Any = None

        def get_engine_information(self, format: Any) -> str:
            return json.dumps({"Layers": recorded.layers})

    class IOutputAllocator: ...

    class IExecutionContext:
        """Doubles `x` into `y`. `kept`, if there is one, has the values of `x` above 0: only the run tells how many."""

        def __init__(self) -> None:
            self._shape: tuple[int, ...] = ()
            self._addresses: dict[str, int] = {}
            self._allocator: Any = None

        def set_input_shape(self, name: str, shape: Any) -> bool:
            recorded.calls.append(("set_input_shape", (name, shape)))
            self._shape = tuple(shape)
            return True

        def set_tensor_address(self, name: str, memory: int) -> bool:
            recorded.calls.append(("set_tensor_address", name))
            self._addresses[name] = memory
            return True

        def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
            self._allocator = output_allocator
            return True

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            return True

        def infer_shapes(self) -> list[str]:
            return []

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (-1,) if name == "kept" else self._shape

        def execute_async_v3(self, stream_handle: int) -> bool:
            from stand_in_cuda import on_stream, values

            def run() -> None:
                x = values(self._addresses["x"], self._shape)
                values(self._addresses["y"], self._shape)[:] = 2 * x
                if self._allocator is not None:
                    kept = x[x > 0]
                    where = self._allocator.reallocate_output_async("kept", 0, kept.nbytes, 256, stream_handle)
                    self._allocator.notify_shape("kept", kept.shape)
                    values(where, kept.shape)[:] = kept

            recorded.calls.append(("execute_async_v3", stream_handle))
            return on_stream(run, recorded.captures)

    class ICudaEngine:
        def create_engine_inspector(self) -> Any:
            return EngineInspector()

        def create_execution_context(self) -> Any:
            return IExecutionContext()

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            if not recorded.finds_gpu:
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            return ICudaEngine() if recorded.deserialises else None

    own = [value for value in list(locals().values()) if isinstance(value, type)]
    for each in own:
        setattr(module, each.__name__, each)
    module.BuilderFlag = _enum(  # type: ignore[attr-defined]
        "BuilderFlag", "REFIT", "TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "WEIGHT_STREAMING",
        "EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS",
    )  # fmt: skip
    module.init_libnvinfer_plugins = lambda logger, namespace: True  # type: ignore[attr-defined]
    module.MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE")  # type: ignore[attr-defined]
    module.ProfilingVerbosity = _enum("ProfilingVerbosity", "DETAILED")  # type: ignore[attr-defined]
    module.LayerInformationFormat = _enum("LayerInformationFormat", "JSON")  # type: ignore[attr-defined]
    module.HardwareCompatibilityLevel = _enum(  # type: ignore[attr-defined]
        "HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"
    )
    module.NetworkDefinitionCreationFlag = _enum(  # type: ignore[attr-defined]
        "NetworkDefinitionCreationFlag", *(["EXPLICIT_BATCH"] if version.startswith("10") else []), "STRONGLY_TYPED"
    )
    return module


def members(module: Any) -> list[str]:
    """Every public member of the stand-in's classes, as `Class.member`."""
    found = []
    for name, owner in vars(module).items():
        if isinstance(owner, type) and not issubclass(owner, enum.Enum):
            found += [f"{name}.{member}" for member in vars(owner) if not member.startswith("_")]
        elif isinstance(owner, type):
            found += [f"{name}.{member}" for member in owner.__members__]
    return found


def pynvml(sm: tuple[int, int] = (9, 0), name: str = "NVIDIA H100 80GB HBM3") -> Any:
    """A module `pynvml` that sees one GPU."""

    class NVMLError(Exception): ...

    class NVMLError_NotSupported(NVMLError): ...

    def unsupported(handle: Any) -> int:
        raise NVMLError_NotSupported

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        NVMLError_NotSupported=NVMLError_NotSupported,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.95.05",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetIndex=lambda handle: handle,
        nvmlDeviceGetName=lambda handle: name,
        nvmlDeviceGetCudaComputeCapability=lambda handle: sm,
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(total=80 * 2**30),
        nvmlDeviceGetClockInfo=lambda handle, kind: 1980,
        nvmlDeviceGetPowerUsage=unsupported,
        nvmlDeviceGetTemperature=lambda handle, kind: 41,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 0x24,
    )
