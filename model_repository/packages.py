"""What is installed in the environment that the real `tritonserver` runs in."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from model_repository.errors import ServerError

__all__ = ["Packages", "server_packages"]

_PYTRITON = "nvidia-pytriton==0.7.0"
_NUMPY = "numpy==1.26.4"
_LEFT_OUT = ("numpy", "openvino-telemetry")
"""What the runtimes require and do not get: NumPy is pinned for the stub, and nothing in there reports to anybody."""


@dataclass(frozen=True)
class Packages:
    """Distributions with their versions: `bare` ones are installed without what they require, `whole` ones with it.

    `modules` are the runtimes among them, as they are imported.
    """

    bare: tuple[str, ...]
    whole: tuple[str, ...]
    modules: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.bare, *self.whole)


def server_packages() -> Packages:
    """The server with ONNX Runtime, and with OpenVINO where that is installed here.

    The runtimes and what they require come at the versions of this process: the server must give the same answers.
    Raises `ServerError` if ONNX Runtime is not installed.
    """
    try:
        whole = [_NUMPY, _pin("onnxruntime"), *_required("onnxruntime")]
    except importlib.metadata.PackageNotFoundError as error:
        raise ServerError("onnxruntime is not installed: `pip install onnxruntime`") from error
    try:
        openvino = _pin("openvino")
    except importlib.metadata.PackageNotFoundError:
        return Packages((_PYTRITON,), tuple(whole), ("onnxruntime",))
    return Packages((_PYTRITON, openvino), (*whole, *_required("openvino")), ("onnxruntime", "openvino"))


def _pin(name: str) -> str:
    return f"{name}=={importlib.metadata.version(name)}"


def _required(name: str) -> list[str]:
    lines = [line for line in importlib.metadata.requires(name) or [] if "extra" not in line]
    required = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in lines]
    return [_pin(one) for one in required if one.lower() not in _LEFT_OUT]
