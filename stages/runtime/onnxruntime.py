"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from numpy.typing import NDArray

from model_repository.signature import DType, Signature, TensorSpec
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.model import Model
from stages.runtime import Arrays, RuntimeOptions
from stages.runtime.session import SignedSession

__all__ = ["OnnxRuntimeSession", "faults", "open_session", "signature_of"]

Level = Literal["none", "all"]
"""How far ONNX Runtime optimises a graph when it opens it."""

_LEVELS: Mapping[Level, str] = {"none": "ORT_DISABLE_ALL", "all": "ORT_ENABLE_ALL"}
_OUTPUT_DTYPE_OPSET = 21

_DTYPES: dict[str, DType] = {
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "string",
}


def open_session(artifact: Artifact, options: RuntimeOptions) -> OnnxRuntimeSession:
    """Open a model artifact. Raises `InputError` if ONNX Runtime cannot load its graph.

    ONNX Runtime computes no BF16 on a CPU; such a graph is run in FP32, with every answer rounded to BF16.
    """
    model = Model.of(artifact)
    if model.precision == "bf16":
        return _open_rounded(artifact, model, options)
    # ONNX Runtime (1.31) takes FP8 between Q and DQ for integers while it optimises: it refuses some graphs, and
    # answers wrongly to others without a word. Where it turns int8 activations into uint8, it forgets that
    # QuantizeLinear names its dtype since opset 21.
    as_written = model.precision == "fp8"
    level: Level = "none" if as_written else "all"
    entries = {"session.disable_quant_qdq": "1"} if as_written else {}
    if model.opset >= _OUTPUT_DTYPE_OPSET:
        entries["session.qdqisint8allowed"] = "1"
    return OnnxRuntimeSession(
        model.path(artifact),
        options.threads,
        model.signature,
        spinning=options.spinning,
        level=level,
        entries=entries,
    )


def _open_rounded(artifact: Artifact, model: Model, options: RuntimeOptions) -> OnnxRuntimeSession:
    from stages.convert.writer import write
    from stages.onnx_model import read_graph
    from stages.runtime.rounded import rounded

    graph = rounded(read_graph(artifact))
    with tempfile.TemporaryDirectory() as folder:  # weights are in memory once the session is open
        path = Path(folder) / "rounded.onnx"
        write(graph, path)
        return OnnxRuntimeSession(path, options.threads, model.signature, spinning=options.spinning)


def signature_of(path: Path) -> Signature:
    """The signature of the ONNX file at `path`, with shapes inferred by ONNX Runtime.

    A dynamic axis has its name in the graph; one without a name is called `batch` if it is the first axis and
    `<tensor>_<axis>` otherwise. Raises `InputError` if ONNX Runtime cannot load the file.
    """
    session = _inference_session(path, threads=1, level="none")
    return _signature(session)


class OnnxRuntimeSession(SignedSession):
    """A graph opened by ONNX Runtime's CPU provider: all graph optimisations unless `level` says less, one operator at
    a time.

    `entries`: of the session's configuration, by ONNX Runtime's keys.

    `session(batch)` checks the names and dtypes of the batch and raises `InputError` where they are not the
    signature's; `session.run(batch)` is the same call unchecked.
    """

    def __init__(
        self,
        path: Path,
        threads: int = 0,
        signature: Signature | None = None,
        *,
        spinning: bool = True,
        level: Level = "all",
        entries: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        cores = threads or len(os.sched_getaffinity(0))
        self._session: Any = _inference_session(path, cores, spinning=spinning, level=level, entries=entries)
        super().__init__(signature or _signature(self._session))
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        self._check(batch)
        return self.run(batch)

    def run(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Run a batch that is known to fit the signature."""
        if self._session is None:
            raise StageError("the session was closed")
        try:
            answers = self._session.run(self._outputs, batch)
        except faults() as error:
            shapes = {name: array.shape for name, array in batch.items()}
            raise StageError(f"ONNX Runtime failed on a batch of shapes {shapes}: {error}") from error
        return dict(zip(self._outputs, answers, strict=True))

    def close(self) -> None:
        self._session = None


def _inference_session(
    path: Path,
    threads: int,
    *,
    level: Level = "all",
    spinning: bool = True,
    entries: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RequirementError("onnxruntime is not installed: `pip install 'optimize-pipeline[cpu]'`") from error
    if not path.is_file():
        raise InputError(f"{path} is missing")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except faults() as error:
        raise InputError(f"ONNX Runtime cannot load {path}: {error}") from error


def faults() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: a class a status code, with no class in common, and plain run-time errors."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
        state.EPFail,
        RuntimeError,
    )


def _signature(session: Any) -> Signature:
    return Signature(
        inputs=tuple(_spec(value) for value in session.get_inputs()),
        outputs=tuple(_spec(value) for value in session.get_outputs()),
    )


def _spec(value: Any) -> TensorSpec:
    if value.type not in _DTYPES:
        raise InputError(f"{value.name} is a {value.type}: only dense tensors can be inputs and outputs")
    shape = tuple(
        axis if isinstance(axis, int) else axis or ("batch" if position == 0 else f"{value.name}_{position}")
        for position, axis in enumerate(value.shape)
    )
    return TensorSpec(name=value.name, dtype=_DTYPES[value.type], shape=shape)
