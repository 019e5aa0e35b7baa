"""TensorRT's own runtime on an NVIDIA GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_repository.signature import DType, Signature, TensorSpec
from model_repository.tensorrt_versions import loads
from stages.artifact import Artifact
from stages.compile.api import import_tensorrt
from stages.compile.builder import begin, logger, parser_errors
from stages.errors import InputError, StageError
from stages.model import Engine, Model
from stages.runtime import Arrays, RuntimeOptions
from stages.runtime.batch import ensure_shapes, fixed_shapes, numpy_dtype
from stages.runtime.cuda import Buffers, Device, Stopwatch
from stages.runtime.session import SignedSession

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
    """The runtime (which must outlive the engine) and the engine. Raises `InputError` with TensorRT's words,
    `RequirementError` where TensorRT finds no GPU that it can use.

    `host_code`: whether the file may bring code for the processor, as version-compatible engines do.
    """
    log = logger(tensorrt)
    runtime = begin(tensorrt, tensorrt.Runtime, log)
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


class TensorRtSession(SignedSession):
    """An engine with a context for each of its optimisation profiles, and buffers on the device.

    Where all shapes are fixed, what a call puts on the stream is captured once as a CUDA graph and launched from then
    on, if TensorRT can be captured there. `device_ms`: see `stages.runtime.Session`.
    """

    def __init__(self, path: Path, signature: Signature, engine: Engine, graph: Path) -> None:
        self._tensorrt = import_tensorrt()
        ensure_loadable(engine, str(self._tensorrt.__version__))
        if not path.is_file():
            raise InputError(f"{path} is missing")
        super().__init__(signature)
        self._profiles = engine.profiles
        self._fixed = fixed_shapes(signature)
        self._output_dtypes = {tensor.name: numpy_dtype(tensor.dtype) for tensor in signature.outputs}
        self._contexts: dict[int, Any] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._calls = 0
        self._graph: Any = None
        self.device_ms = (0.0, 0.0, 0.0)
        with ExitStack() as opened:  # closed in reverse, and each of them whatever becomes of the others
            self._device = Device()
            opened.callback(self._device.close)
            self._buffers = Buffers(self._device)
            opened.callback(self._buffers.close)
            self._watch = Stopwatch(self._device)
            opened.callback(self._watch.close)
            opened.callback(self._drop)
            self._allocator = _allocator(self._tensorrt, self._buffers)
            host_code = engine.version_compatible
            self._runtime, self._engine = load_engine(self._tensorrt, path.read_bytes(), host_code=host_code)
            if engine.stripped:
                self._refit(graph)
            if engine.weight_streaming:
                self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()
            self._opened = opened.pop_all()

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        self._check(batch)
        if self._engine is None:
            raise StageError("the session was closed")
        arrays = {name: np.asarray(array, order="C") for name, array in batch.items()}
        if self._fixed:
            ensure_shapes(arrays, self._signature)
        context = self._context(profile_for(self._profiles, arrays))
        if not self._fixed or not self._calls:  # a capture must not find changes that are still to be made
            self._prepare(context, arrays)
        answers = {name: self._room(name, shape) for name, shape in self._shapes.items() if min(shape, default=0) >= 0}
        self._watch.mark(0)
        for name, array in arrays.items():
            self._device.to_device(self._buffers.address(name, array.nbytes), array)
        self._watch.mark(1)
        self._compute(context)
        for name in self._shapes.keys() - answers.keys():
            if name not in self._allocator.shapes:
                raise StageError(f"TensorRT did not tell the shape of {name}")
            answers[name] = self._room(name, self._allocator.shapes[name])
        self._watch.mark(2)
        for name, answer in answers.items():
            self._device.to_host(answer, self._buffers.address(name, answer.nbytes))
        self._watch.mark(3)
        self._device.wait()
        self.device_ms = self._watch.read_ms()
        return {tensor.name: answers[tensor.name] for tensor in self._signature.outputs}

    def _prepare(self, context: Any, arrays: Arrays) -> None:
        """Tell the context shapes and addresses, and learn the shapes of the outputs (-1: only the run can tell)."""
        for name, array in arrays.items():
            if not context.set_input_shape(name, array.shape):
                raise InputError(f"the engine takes no {name} of shape {list(array.shape)}")
            self._bind(context, name, array.nbytes)
        try:
            unknown = context.infer_shapes()
        except RuntimeError as error:
            raise StageError(f"TensorRT cannot tell the shapes of the outputs: {error}") from error
        if unknown:
            raise StageError(f"TensorRT cannot tell the shapes of the outputs: it lacks {', '.join(unknown)}")
        for tensor in self._signature.outputs:
            shape = tuple(context.get_tensor_shape(tensor.name))
            self._shapes[tensor.name] = shape
            if min(shape, default=0) >= 0:
                self._bind(context, tensor.name, math.prod(shape) * self._output_dtypes[tensor.name].itemsize)
            elif not context.set_output_allocator(tensor.name, self._allocator):
                raise StageError(f"TensorRT takes no memory for {tensor.name}, whose size only the run can tell")

    def _bind(self, context: Any, name: str, size_bytes: int) -> None:
        if not context.set_tensor_address(name, self._buffers.address(name, size_bytes)):
            raise StageError(f"TensorRT takes no memory for {name}")

    def _room(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.empty(shape, self._output_dtypes[name])

    def _compute(self, context: Any) -> None:
        if self._graph is None and self._fixed and self._calls == 1:
            # The first call has done what is done once, such as loading kernels, which a capture does not allow.
            self._graph = self._device.captured(lambda: self._enqueue(context))
        self._calls += 1
        if self._graph is not None:
            self._device.launch(self._graph)
        else:
            self._enqueue(context)

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
        # It holds the weights until the engine has them.
        parser = tensorrt.OnnxParserRefitter(refitter, log)
        if not parser.refit_from_file(str(graph)):
            raise StageError(f"the engine could not be given the weights of {graph}: {parser_errors(parser)}")
        if not refitter.refit_cuda_engine():
            raise StageError(f"the engine could not be given the weights of {graph}: {log.said()}")

    def close(self) -> None:
        self._opened.close()

    def _drop(self) -> None:
        """Give up what TensorRT holds, in the order in which one needs the other."""
        graph, self._graph = self._graph, None
        try:
            self._device.wait()
            if graph is not None:
                self._device.drop_graph(graph)
        finally:
            self._contexts.clear()
            self._engine = None
            self._runtime = None


def _allocator(tensorrt: Any, buffers: Buffers) -> Any:
    """A `tensorrt.IOutputAllocator` that gives memory to outputs as they need it, and keeps their `shapes`."""

    class Allocator(tensorrt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.IOutputAllocator.__init__(self)
            self.shapes: dict[str, tuple[int, ...]] = {}

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return buffers.address(tensor_name, size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shapes[tensor_name] = tuple(shape)

    return Allocator()


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
