"""The real Python bindings of TensorRT 10 and 11 and of CUDA 12 and 13, each in an environment of its own.

TensorRT's need its libraries only to be loaded. Three small libraries that export the few symbols which they import,
and give null for each, are enough to read every class, enum and signature, and to make objects of our own classes;
nothing can be built with them. CUDA's hold its runtime, which says at every call that there is no driver.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

VERSIONS = ("10.16.1.11", "11.4.0.106")
CUDA_VERSIONS = ("12.9.10", "13.5.0")

_SYMBOLS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry", "getPluginRegistry",
    ),
    "nvonnxparser": (
        "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}  # fmt: skip


@dataclass(frozen=True)
class Bindings:
    """An environment in which `import tensorrt`, or `cuda.bindings`, gives the real bindings of one version."""

    version: str
    path: Path

    def run(self, program: str, *arguments: str) -> Any:
        """Run a Python program there; what it prints is JSON."""
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={
                "LD_LIBRARY_PATH": str(self.path / "stubs"),
                "PYTHONPATH": f"{self.path}:{Path(__file__).parent.parent.parent}",
                "PATH": "/usr/bin:/bin",
            },
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)


def make_bindings(path: Path, version: str, compiler: str) -> None:
    """Make the environment in `path`; the test that asked for it is skipped where the wheel cannot be had."""
    _install(path, f"tensorrt-cu13-bindings=={version}")
    major = version.split(".")[0]
    (path / "stubs").mkdir()
    for library, symbols in _SYMBOLS.items():
        source = path / "stubs" / f"{library}.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        name = f"lib{library}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(source.with_name(name)), str(source)],
            check=True,
        )
    # The package `tensorrt` itself, which comes with the libraries, does no more than this.
    (path / "tensorrt").mkdir()
    (path / "tensorrt" / "__init__.py").write_text(
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    )
    (path / ".complete").touch()


def make_cuda_bindings(path: Path, version: str) -> None:
    """As `make_bindings`, of NVIDIA's `cuda-bindings`."""
    _install(path, f"cuda-bindings=={version}", "cuda-pathfinder")
    (path / ".complete").touch()


def _install(path: Path, *wheels: str) -> None:
    ended = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
            "--target", str(path), *wheels,
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    if ended.returncode != 0:
        pytest.skip(f"{', '.join(wheels)} cannot be installed: {ended.stderr.strip().splitlines()[-1]}")
