"""One way to run anything: `open_session(artifact, options)`, then `session(batch)`. One file for each engine.

Comparison after conversion, check, profile and verify go through it and know nothing of the engine behind.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model_repository.signature import Signature
from stages.artifact import Artifact
from stages.model import Model
from stages.runtime.provider import CudaOptions

__all__ = [
    "DEVICE_TIMES", "RUNTIMES", "Arrays", "RuntimeName", "RuntimeOptions", "Session", "open_session", "runtime_of",
]  # fmt: skip

RuntimeName = Literal["onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt", "pytorch", "triton"]

Arrays = Mapping[str, NDArray[Any]]
"""Named arrays, the first axis of each the batch."""


class RuntimeOptions(BaseModel):
    """How a session is opened. `name`: by default the runtime that the artifact was made for (`runtime_of`). `threads`
    = 0 takes every core that the process may use.

    `spinning`: whether threads that wait for work stay busy, as ONNX Runtime's do unless told otherwise. It answers a
    little sooner and burns a core; for work whose speed nobody measures it is a waste.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RuntimeName | None = None
    threads: int = 0
    spinning: bool = True
    address: str = ""
    """For a server: `http://host:port` or `grpc://host:port`."""
    cuda: CudaOptions = CudaOptions()
    """For ONNX Runtime on CUDA."""


class Session(Protocol):
    """An opened model. Calling it runs one batch; `close` (or leaving the `with`) frees it.

    A session on a GPU has `device_ms` too: of its last call, the milliseconds of the transfer to the device, of the
    computing, and of the transfer back, by the device's own events (`DEVICE_TIMES`).
    """

    @property
    def signature(self) -> Signature: ...

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


DEVICE_TIMES = ("host_to_device_ms", "compute_ms", "device_to_host_ms")
"""What a session on a GPU says of its last call in `device_ms`, in this order."""

RUNTIMES: dict[str, str] = {
    "onnxruntime": "stages.runtime.onnxruntime",
    "openvino": "stages.runtime.openvino",
    "onnxruntime-cuda": "stages.runtime.onnxruntime_cuda",
    "tensorrt": "stages.runtime.tensorrt",
    "pytorch": "stages.runtime.pytorch",
    "triton": "stages.runtime.triton",
}
"""Where each runtime is implemented: a module with `open_session(artifact, options) -> Session`."""


def open_session(artifact: Artifact, options: RuntimeOptions | None = None) -> Session:
    """Open `artifact` in the runtime that `options` names, or in its own.

    Raises `InputError` if the artifact cannot be loaded, `RequirementError` if the runtime is not installed.
    """
    options = options or RuntimeOptions()
    session: Session = importlib.import_module(RUNTIMES[options.name or runtime_of(artifact)]).open_session(
        artifact, options
    )
    return session


def runtime_of(artifact: Artifact) -> RuntimeName:
    """What an artifact was made for: a model says it, a source is PyTorch's.

    Raises `InputError` for an artifact of another kind.
    """
    return "pytorch" if artifact.kind == "source" else Model.of(artifact).runtime
