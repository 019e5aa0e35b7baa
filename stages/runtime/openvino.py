"""OpenVINO on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_repository.signature import DType, Signature, TensorSpec
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.model import Model
from stages.runtime import Arrays, RuntimeOptions
from stages.runtime.batch import numpy_dtype
from stages.runtime.session import SignedSession

__all__ = ["OpenVinoSession", "capabilities", "import_openvino", "open_session", "signature_of", "write_ir"]

_DTYPES: dict[str, DType] = {
    "boolean": "bool",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "string": "string",
}

_CAPABILITIES = "OPTIMIZATION_CAPABILITIES"
_PLACES = ("Exception from", "Check '", "FrontEnd API failed", "Summary:")


def import_openvino() -> Any:
    """The module `openvino`, without its telemetry.

    On import it would note an installation and report to its makers unless the user has forbidden it; without the
    package `openvino_telemetry` it puts a stub in its place. Raises `RequirementError` if it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise RequirementError("openvino is not installed: `pip install openvino`") from error
    return openvino


def capabilities() -> tuple[str, ...]:
    """What OpenVINO computes in on this processor: `FP32`, `INT8`, and `BF16` if it need not be emulated.

    Raises `RequirementError` if it is not installed.
    """
    core = import_openvino().Core()
    native = core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    listed = [name for name in ("FP32", "FP16", "BF16", "INT8") if name in core.get_property("CPU", _CAPABILITIES)]
    return tuple(name for name in listed if name != "BF16" or native == "bf16")


def open_session(artifact: Artifact, options: RuntimeOptions) -> OpenVinoSession:
    """Open a model artifact: OpenVINO's IR, or an ONNX graph. Raises `InputError` if OpenVINO cannot load it."""
    model = Model.of(artifact)
    return OpenVinoSession(model.path(artifact), model.signature, options.threads, model.arithmetic)


def signature_of(path: Path) -> Signature:
    """The signature of the graph at `path` (IR or ONNX), with shapes inferred by OpenVINO.

    A tensor may have several names; the first in alphabetical order is taken, as Triton's backend takes it. OpenVINO
    does not keep the names of dynamic axes: one is called `batch` if it is the first and `<tensor>_<axis>` otherwise.
    Raises `InputError` if OpenVINO cannot load the file.
    """
    try:
        model = import_openvino().Core().read_model(path)
        return Signature(
            inputs=tuple(_spec(port) for port in model.inputs), outputs=tuple(_spec(port) for port in model.outputs)
        )
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot load {path}: {_said(error)}") from error


def write_ir(graph: Path, folder: Path, *, half: bool = False) -> Path:
    """Write the ONNX graph at `graph` as `model.xml` and `model.bin` into `folder`; `half` stores weights in 16 bits.

    The same graph gives the same bytes. Raises `StageError` if OpenVINO cannot express the graph, or cannot run it
    because it takes or gives text.
    """
    openvino = import_openvino()
    try:
        model = openvino.Core().read_model(graph)
        if text := [port.get_any_name() for port in (*model.inputs, *model.outputs) if _is_text(port)]:
            raise StageError(f"OpenVINO cannot take this graph: {', '.join(text)} is text; it computes with numbers")
        _name_nodes(model)
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=half)
    except RuntimeError as error:
        raise StageError(f"OpenVINO cannot take this graph: {_said(error)}") from error
    return folder / "model.xml"


class OpenVinoSession(SignedSession):
    """A graph compiled by OpenVINO for one request at a time, so as to answer soonest (its hint `LATENCY`).

    Its threads are not bound to cores, as they are unless OpenVINO is told otherwise. Alone on a machine that changes
    nothing; beside another such process it was a third faster with two threads on two cores, and half again as fast
    with one, because both had been bound to the same core.

    `arithmetic`: in what precision it computes where nothing is quantised. `bf16` is OpenVINO's own choice: BF16 on
    processors that have it, FP32 on others. It is not asked for by name: on processors with AVX-512 and no BF16 it
    would then be emulated, slowly (`hasBF16HardwareSupport` and `Config::readProperties` in OpenVINO's `intel_cpu`).
    """

    def __init__(
        self, path: Path, signature: Signature, threads: int = 0, arithmetic: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        openvino = import_openvino()
        if not path.is_file():
            raise InputError(f"{path} is missing")
        if text := [tensor.name for tensor in (*signature.inputs, *signature.outputs) if tensor.dtype == "string"]:
            raise InputError(f"OpenVINO cannot run {path}: {', '.join(text)} is text; it computes with numbers")
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
            "ENABLE_CPU_PINNING": False,
        }
        if arithmetic == "fp32":
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            self._request: Any = openvino.Core().compile_model(path, "CPU", properties).create_infer_request()
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot load {path}: {_said(error)}") from error
        super().__init__(signature)

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        self._check(batch)
        if self._request is None:
            raise StageError("the session was closed")
        try:
            # Inputs are read where they lie; a strided view is no contiguous block and has to be copied.
            arrays = {name: np.asarray(array, order="C") for name, array in batch.items()}
            # As Triton's backend does it. `infer` loses what goes wrong with one thread, and the last answer remains.
            self._request.start_async(arrays, share_inputs=True)
            self._request.wait()
            return {tensor.name: self._answer(tensor) for tensor in self._signature.outputs}
        except RuntimeError as error:
            shapes = {name: array.shape for name, array in batch.items()}
            raise StageError(f"OpenVINO failed on a batch of shapes {shapes}: {_said(error)}") from error

    def _answer(self, tensor: TensorSpec) -> NDArray[Any]:
        answer: NDArray[Any] = self._request.get_tensor(tensor.name).data.copy()
        # The Python API has no BF16: it shows such a tensor as FP16 of the same bits.
        return answer.view(numpy_dtype(tensor.dtype)) if tensor.dtype == "bfloat16" else answer

    def close(self) -> None:
        self._request = None


def _spec(port: Any) -> TensorSpec:
    name, kind = port.get_any_name(), port.get_element_type().get_type_name()
    if kind not in _DTYPES:
        raise InputError(f"{name} is {kind}, which NumPy does not have")
    shape = tuple(
        f"{name}_{position}" if axis.is_dynamic and position else "batch" if axis.is_dynamic else axis.get_length()
        for position, axis in enumerate(port.get_partial_shape())
    )
    return TensorSpec(name=name, dtype=_DTYPES[kind], shape=shape)


def _is_text(port: Any) -> bool:
    return bool(port.get_element_type().get_type_name() == "string")


def _name_nodes(model: Any) -> None:
    """Give the nodes without a name one by their place.

    OpenVINO would write one with a number that counts the nodes of the process so far.
    """
    for position, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{node.get_type_name()}_{position}")


def _said(error: Exception) -> str:
    """OpenVINO's messages begin with the places in its sources; what happened is in the lines that do not."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(_PLACES)]
    return " ".join(said[:3]) or str(error)
