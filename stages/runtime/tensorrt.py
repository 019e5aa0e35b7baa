"""TensorRT's own runtime on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model_repository.signature import DType, Signature, TensorSpec
from model_repository.tensorrt_versions import loads
from stages.artifact import Artifact
from stages.compile.api import import_tensorrt
from stages.compile.builder import logger
from stages.errors import InputError, StageError
from stages.model import Engine, Model
from stages.runtime import Arrays, RuntimeOptions
from stages.runtime.batch import mismatch, numpy_dtype
from stages.runtime.cuda import Buffers, Device, Stopwatch

__all__ = [
    "GRAPH", "TensorRtSession", "ensure_loadable", "load_engine", "open_session", "profile_for", "signature_of",
]  # fmt: skip

GRAPH = "assets/engine/model.onnx"
"""The graph that an engine was built from, in its artifact."""

_DTYPES: Mapping[str, DType] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def open_session(artifact: Artifact, options: RuntimeOptions) -> TensorRtSession:
    """Open an engine. Raises `InputError` if it was built by another TensorRT or for another GPU, or cannot be read."""
    model = Model.of(artifact)
    if model.engine is None:
        raise InputError(f"{artifact.path} is a graph for {model.runtime}, not an engine: compile it first")
    return TensorRtSession(model.path(artifact), model.signature, model.engine, artifact.path / GRAPH)


def ensure_loadable(engine: Engine, version: str) -> None:
    """Raises `InputError` if TensorRT `version` cannot load an engine.

    The rule is that of `model_repository.tensorrt_versions`.
    """
    if not loads(engine.tensorrt, engine.version_compatible, version):
        how = "is version-compatible, but not with that" if engine.version_compatible else "is not version-compatible"
        raise InputError(
            f"the engine was built by TensorRT {engine.tensorrt} and {how}; here is {version}. Build it again with the "
            "TensorRT that serves it"
        )


def load_engine(tensorrt: Any, plan: bytes, *, host_code: bool = False) -> tuple[Any, Any]:
    """The runtime (which must outlive the engine) and the engine. Raises `InputError` with TensorRT's words.

    `host_code`: whether the file may bring code for the processor, as version-compatible engines do.
    """
    log = logger(tensorrt)
    runtime = tensorrt.Runtime(log)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise InputError(f"TensorRT {tensorrt.__version__} cannot load the engine: {log.said() or 'it gave no reason'}")
    return runtime, engine


def profile_for(profiles: tuple[Mapping[str, Any], ...], batch: Arrays) -> int:
    """The first optimisation profile that takes the shapes of `batch`. Raises `InputError` if none does."""
    for index, profile in enumerate(profiles):
        if all(_within(batch[name].shape, ranges) for name, ranges in profile.items()):
            return index
    if not profiles:
        return 0
    taken = "; ".join(
        ", ".join(f"{name} {list(least)} to {list(most)}" for name, (least, _, most) in profile.items())
        for profile in profiles
    )
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
    raise InputError(f"the engine takes {taken}, and was given {shapes}: widen its profiles and build it again")


class TensorRtSession:
    """An engine with a context for each of its optimisation profiles, and buffers on the device.

    Where all shapes are fixed, what a call puts on the stream is captured once as a CUDA graph and launched from then
    on. `device_ms`: see `stages.runtime.Session`.
    """

    def __init__(self, path: Path, signature: Signature, engine: Engine, graph: Path) -> None:
        self._tensorrt = import_tensorrt()
        ensure_loadable(engine, str(self._tensorrt.__version__))
        if not path.is_file():
            raise InputError(f"{path} is missing")
        self._device = Device()
        host_code = engine.version_compatible
        self._runtime, self._engine = load_engine(self._tensorrt, path.read_bytes(), host_code=host_code)
        if engine.stripped:
            self._refit(graph)
        if engine.weight_streaming:
            self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()
        self._profiles = engine.profiles
        self._contexts: dict[int, Any] = {}
        self._buffers = Buffers(self._device)
        self._watch = Stopwatch(self._device)
        self._signature = signature
        self._dtypes = {tensor.name: numpy_dtype(tensor.dtype) for tensor in signature.inputs}
        self._fixed = all(isinstance(size, int) for tensor in signature.inputs for size in tensor.shape)
        self._calls = 0
        self._graph: Any = None
        self.device_ms = (0.0, 0.0, 0.0)

    @property
    def signature(self) -> Signature:
        return self._signature

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        if batch.keys() != self._dtypes.keys() or any(
            batch[name].dtype != dtype for name, dtype in self._dtypes.items()
        ):
            raise InputError(mismatch(batch, self._signature))
        if self._engine is None:
            raise StageError("the session was closed")
        arrays = {name: np.ascontiguousarray(array) for name, array in batch.items()}
        context = self._context(profile_for(self._profiles, arrays))
        for name, array in arrays.items():
            if not context.set_input_shape(name, array.shape):
                raise StageError(f"TensorRT does not take {name} of shape {list(array.shape)}")
            context.set_tensor_address(name, self._buffers.address(name, array.nbytes))
        if unknown := context.infer_shapes():
            raise StageError(f"TensorRT cannot tell the shapes of the outputs: it lacks {', '.join(unknown)}")
        answers = {tensor.name: self._answer(context, tensor) for tensor in self._signature.outputs}
        self._watch.mark(0)
        for name, array in arrays.items():
            self._device.to_device(self._buffers.address(name, array.nbytes), array)
        self._watch.mark(1)
        self._compute(context)
        self._watch.mark(2)
        for name, answer in answers.items():
            self._device.to_host(answer, self._buffers.address(name, answer.nbytes))
        self._watch.mark(3)
        self._device.wait()
        self.device_ms = self._watch.read_ms()
        return answers

    def _answer(self, context: Any, tensor: TensorSpec) -> NDArray[Any]:
        """Room for an output, on the host and on the device."""
        answer = np.empty(tuple(context.get_tensor_shape(tensor.name)), numpy_dtype(tensor.dtype))
        context.set_tensor_address(tensor.name, self._buffers.address(tensor.name, answer.nbytes))
        return answer

    def _compute(self, context: Any) -> None:
        if self._graph is not None:
            self._device.launch(self._graph)
            return
        if self._fixed and self._calls == 1:
            # The first call has done what is done once, such as loading kernels, which a capture does not allow.
            self._device.begin_capture()
            self._enqueue(context)
            self._graph = self._device.end_capture()
            self._device.launch(self._graph)
        else:
            self._enqueue(context)
        self._calls += 1

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(int(self._device.stream)):
            raise StageError("TensorRT could not run the engine on this batch")

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None:
                raise StageError("TensorRT could not make a context for the engine: is the GPU's memory full?")
            if not context.set_optimization_profile_async(profile, int(self._device.stream)):
                raise StageError(f"TensorRT could not choose profile {profile} of the engine")
            self._device.wait()
            self._contexts[profile] = context
        return self._contexts[profile]

    def _refit(self, graph: Path) -> None:
        """Give a stripped engine the weights of its graph."""
        tensorrt = self._tensorrt
        log = logger(tensorrt)
        refitter = tensorrt.Refitter(self._engine, log)
        if (
            not tensorrt.OnnxParserRefitter(refitter, log).refit_from_file(str(graph))
            or not refitter.refit_cuda_engine()
        ):
            raise StageError(f"the engine could not be given the weights of {graph}: {log.said()}")

    def close(self) -> None:
        if self._engine is None:
            return
        self._device.wait()
        self._graph = None
        self._contexts.clear()
        self._engine = None
        self._runtime = None
        self._buffers.close()
        self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def signature_of(path: Path, *, host_code: bool = False) -> Signature:
    """The tensors of the engine at `path`; a dynamic axis has no name in it. Raises `InputError` if it is not read."""
    tensorrt = import_tensorrt()
    _, engine = load_engine(tensorrt, path.read_bytes(), host_code=host_code)
    sides: dict[Any, list[TensorSpec]] = {tensorrt.TensorIOMode.INPUT: [], tensorrt.TensorIOMode.OUTPUT: []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        sides[engine.get_tensor_mode(name)].append(_spec(engine, name))
    return Signature(
        inputs=tuple(sides[tensorrt.TensorIOMode.INPUT]), outputs=tuple(sides[tensorrt.TensorIOMode.OUTPUT])
    )


def _spec(engine: Any, name: str) -> TensorSpec:
    kind = str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]
    if kind not in _DTYPES:
        raise InputError(f"{name} is {kind}, which NumPy does not have")
    shape = tuple(
        size if size >= 0 else f"{name}_{position}" if position else "batch"
        for position, size in enumerate(engine.get_tensor_shape(name))
    )
    return TensorSpec(name=name, dtype=_DTYPES[kind], shape=shape)


def _within(shape: tuple[int, ...], ranges: Any) -> bool:
    least, _, most = ranges
    return len(shape) == len(least) and all(
        low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
    )
