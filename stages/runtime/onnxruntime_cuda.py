"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, or its TensorRT provider before it."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections import Counter
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_repository.signature import TensorSpec
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.model import Model
from stages.runtime import Arrays, RuntimeOptions
from stages.runtime.batch import ensure_shapes, fixed_shapes, numpy_dtype
from stages.runtime.cuda import Buffers, Device, Stopwatch
from stages.runtime.onnxruntime import faults
from stages.runtime.provider import CUDA, TENSORRT, providers_for
from stages.runtime.session import SignedSession

__all__ = ["CudaSession", "open_session"]

_CPU = "CPUExecutionProvider"
_NEEDS = {CUDA: "CUDA and cuDNN", TENSORRT: "CUDA, cuDNN and TensorRT"}
_NO_GRAPH = "cannot use the graph capture feature"
"""How ONNX Runtime begins its refusal of a CUDA graph."""
_TAKES_TIME = re.compile(r"MatMul|Gemm|Conv|Attention|LSTM|GRU|RNN|Einsum")


def open_session(artifact: Artifact, options: RuntimeOptions) -> CudaSession:
    """Open an ONNX model artifact.

    Raises `InputError` if ONNX Runtime cannot load its graph, `RequirementError` without its CUDA provider or a GPU.
    """
    model = Model.of(artifact)
    if not model.file.endswith(".onnx"):
        raise InputError(f"{artifact.path} holds {model.file}, made for {model.runtime}, and no ONNX graph")
    return CudaSession(artifact, model, options)


class CudaSession(SignedSession):
    """A graph opened by ONNX Runtime on the first GPU, its inputs and outputs bound to device memory.

    Where all shapes are fixed, ONNX Runtime captures the run as a CUDA graph, if the graph allows it. `device_ms`: see
    `stages.runtime.Session`.
    """

    def __init__(self, artifact: Artifact, model: Model, options: RuntimeOptions) -> None:
        onnxruntime = _import(TENSORRT if options.cuda.provider == "tensorrt" else CUDA)
        path, signature = model.path(artifact), model.signature
        if not path.is_file():
            raise InputError(f"{path} is missing")
        if text := [tensor.name for tensor in (*signature.inputs, *signature.outputs) if tensor.dtype == "string"]:
            raise InputError(f"a GPU cannot run {path}: {', '.join(text)} is text; it computes with numbers")
        super().__init__(signature)
        self._fixed = fixed_shapes(signature)
        self._session: Any = None
        self.device_ms = (0.0, 0.0, 0.0)
        with ExitStack() as opened:  # closed in reverse, and each of them whatever becomes of the others
            self._device = Device()
            opened.callback(self._device.close)
            self._buffers = Buffers(self._device)
            opened.callback(self._buffers.close)
            self._watch = Stopwatch(self._device)
            opened.callback(self._watch.close)
            opened.callback(self._drop)
            self._session = _opened(onnxruntime, path, options, artifact, int(self._device.stream), fixed=self._fixed)
            self._opened = opened.pop_all()
        # Computing is put on the stream, and waited for with what else is there.
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        self._check(batch)
        if self._session is None:
            raise StageError("the session was closed")
        if self._fixed:
            ensure_shapes(batch, self._signature)
        arrays = {name: np.asarray(array, order="C") for name, array in batch.items()}
        binding = self._session.io_binding()
        for name, array in arrays.items():
            address = self._buffers.address(name, array.nbytes)
            binding.bind_input(name, "cuda", 0, array.dtype, array.shape, address)
        for tensor in self._signature.outputs:
            self._bind_output(binding, tensor)
        self._watch.mark(0)
        for name, array in arrays.items():
            self._device.to_device(self._buffers.address(name, array.nbytes), array)
        self._watch.mark(1)
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except faults() as error:
            shapes = {name: array.shape for name, array in batch.items()}
            raise StageError(f"ONNX Runtime failed on a batch of shapes {shapes}: {error}") from error
        self._watch.mark(2)
        answers = {}
        for tensor, value in zip(self._signature.outputs, binding.get_outputs(), strict=True):
            answer = np.empty(tuple(value.shape()), numpy_dtype(tensor.dtype))
            self._device.to_host(answer, value.data_ptr())
            answers[tensor.name] = answer
        self._watch.mark(3)
        self._device.wait()
        self.device_ms = self._watch.read_ms()
        return answers

    def _bind_output(self, binding: Any, tensor: TensorSpec) -> None:
        """To memory that ONNX Runtime finds; a CUDA graph needs the same addresses each time."""
        if not self._fixed:
            binding.bind_output(tensor.name, "cuda", 0)
            return
        dtype, shape = numpy_dtype(tensor.dtype), [size for size in tensor.shape if isinstance(size, int)]
        address = self._buffers.address(tensor.name, math.prod(shape) * dtype.itemsize)
        binding.bind_output(tensor.name, "cuda", 0, dtype, shape, address)

    def close(self) -> None:
        self._opened.close()

    def _drop(self) -> None:
        try:
            self._device.wait()
        finally:
            self._session = None


def _opened(
    onnxruntime: Any, path: Path, options: RuntimeOptions, artifact: Artifact, stream: int, *, fixed: bool
) -> Any:
    """An `InferenceSession` that computes on the GPU, and nowhere else what takes time."""
    try:
        session = _inference_session(onnxruntime, path, options, artifact, stream, fixed=fixed)
    except faults() as error:
        if not fixed or _NO_GRAPH not in str(error):
            raise InputError(f"ONNX Runtime cannot load {path}: {error}") from error
        try:  # some of it cannot be captured
            session = _inference_session(onnxruntime, path, options, artifact, stream, fixed=False)
        except faults() as again:
            raise InputError(f"ONNX Runtime cannot load {path}: {again}") from again
    _ensure_on_gpu(session, path)
    return session


def _inference_session(
    onnxruntime: Any, path: Path, options: RuntimeOptions, artifact: Artifact, stream: int, *, fixed: bool
) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = providers_for(options.cuda, artifact, stream, fixed=fixed)
    wanted, told = providers[0]
    if folder := told.get("trt_engine_cache_path"):
        Path(folder).mkdir(parents=True, exist_ok=True)  # ONNX Runtime makes the last folder of a path and no more
    try:
        # Otherwise it would print what went wrong and take the processor instead.
        session = onnxruntime.InferenceSession(str(path), settings, providers=providers, enable_fallback=0)
    except (RuntimeError, ValueError) as error:  # raised by the provider; a graph's faults have classes of their own
        raise RequirementError(f"ONNX Runtime cannot use its {wanted}: {error}") from error
    # A provider whose libraries do not load is left out with no more than a warning.
    if (found := session.get_providers()[0]) != wanted:
        raise RequirementError(
            f"ONNX Runtime could not use its {wanted} and would compute with {found}: are {_NEEDS[wanted]} installed, "
            f"of the versions that onnxruntime-gpu {onnxruntime.__version__} was built for?"
        )
    return session


def _ensure_on_gpu(session: Any, path: Path) -> None:
    """Raises `InputError` if products, convolutions or recurrent layers were given to the processor.

    What only computes shapes stays there and belongs there.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return  # before 1.24 or so ONNX Runtime does not tell
    on_cpu = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == _CPU
        for node in part.get_nodes()
    )
    if slow := {name: count for name, count in on_cpu.items() if _TAKES_TIME.search(name)}:
        told = ", ".join(f"{count} {name}" for name, count in sorted(slow.items()))
        raise InputError(
            f"ONNX Runtime would compute {told} of {path} on the processor: its provider for GPUs has no kernel for "
            "them in this form"
        )


def _import(wanted: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RequirementError("onnxruntime-gpu is not installed: `pip install 'optimize-pipeline[gpu]'`") from error
    if wanted not in onnxruntime.get_available_providers():
        raise RequirementError(
            f"this onnxruntime {onnxruntime.__version__} has no {wanted}: it needs an NVIDIA GPU and onnxruntime-gpu "
            "in the place of onnxruntime (`optimize doctor` tells which is installed)"
        )
    # Its libraries look for CUDA and cuDNN in the system only. Where they come as Python packages (PyTorch's, for
    # one), they have to be in the process before. What fails here is told when the session is opened.
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    if wanted == TENSORRT:
        with suppress(ImportError, OSError):  # TensorRT may be in the system instead
            importlib.import_module("tensorrt")
    return onnxruntime
