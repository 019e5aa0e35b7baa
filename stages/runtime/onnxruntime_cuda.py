"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, or its TensorRT provider before it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model_repository.signature import Signature, TensorSpec
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.model import Model
from stages.runtime import Arrays, RuntimeOptions
from stages.runtime.batch import mismatch, numpy_dtype
from stages.runtime.cuda import Buffers, Device, Stopwatch
from stages.runtime.onnxruntime import faults
from stages.runtime.provider import CUDA, TENSORRT, providers_for

__all__ = ["CudaSession", "open_session"]


def open_session(artifact: Artifact, options: RuntimeOptions) -> CudaSession:
    """Open an ONNX model artifact.

    Raises `InputError` if ONNX Runtime cannot load its graph, `RequirementError` without its CUDA provider or a GPU.
    """
    model = Model.of(artifact)
    if not model.file.endswith(".onnx"):
        raise InputError(f"{artifact.path} holds {model.file}, made for {model.runtime}, and no ONNX graph")
    return CudaSession(artifact, model, options)


class CudaSession:
    """A graph opened by ONNX Runtime on the first GPU, its inputs and outputs bound to device memory.

    Where all shapes are fixed, ONNX Runtime captures the run as a CUDA graph. `device_ms`: see
    `stages.runtime.Session`.
    """

    def __init__(self, artifact: Artifact, model: Model, options: RuntimeOptions) -> None:
        onnxruntime = _import(TENSORRT if options.cuda.provider == "tensorrt" else CUDA)
        path, signature = model.path(artifact), model.signature
        if not path.is_file():
            raise InputError(f"{path} is missing")
        if text := [tensor.name for tensor in (*signature.inputs, *signature.outputs) if tensor.dtype == "string"]:
            raise InputError(f"a GPU cannot run {path}: {', '.join(text)} is text; it computes with numbers")
        self._device = Device()
        self._fixed = all(
            isinstance(size, int) for tensor in (*signature.inputs, *signature.outputs) for size in tensor.shape
        )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.log_severity_level = 3
        providers = providers_for(options.cuda, artifact, int(self._device.stream), fixed=self._fixed)
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), settings, providers=providers)
        except faults() as error:
            raise InputError(f"ONNX Runtime cannot load {path}: {error}") from error
        # A provider whose libraries do not load is left out with no more than a warning.
        if (found := self._session.get_providers()[0]) != providers[0][0]:
            raise RequirementError(
                f"ONNX Runtime could not use its {providers[0][0]} and would compute with {found}: are CUDA and cuDNN "
                "installed, of the versions that onnxruntime-gpu was built for?"
            )
        # Computing is put on the stream, and waited for with what else is there.
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._signature = signature
        self._dtypes = {tensor.name: numpy_dtype(tensor.dtype) for tensor in signature.inputs}
        self._buffers = Buffers(self._device)
        self._watch = Stopwatch(self._device)
        self.device_ms = (0.0, 0.0, 0.0)

    @property
    def signature(self) -> Signature:
        return self._signature

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        if batch.keys() != self._dtypes.keys() or any(
            batch[name].dtype != dtype for name, dtype in self._dtypes.items()
        ):
            raise InputError(mismatch(batch, self._signature))
        if self._session is None:
            raise StageError("the session was closed")
        arrays = {name: np.ascontiguousarray(array) for name, array in batch.items()}
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
        address = self._buffers.address(tensor.name, int(np.prod(shape)) * dtype.itemsize)
        binding.bind_output(tensor.name, "cuda", 0, dtype, shape, address)

    def close(self) -> None:
        if self._session is None:
            return
        self._device.wait()
        self._session = None
        self._buffers.close()
        self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
    return onnxruntime
