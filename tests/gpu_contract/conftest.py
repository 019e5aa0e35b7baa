"""The environments with the real bindings of TensorRT and CUDA."""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
from real_bindings import CUDA_VERSIONS, VERSIONS, Bindings, make_bindings, make_cuda_bindings


@pytest.fixture(scope="session", params=VERSIONS)
def bindings(request: pytest.FixtureRequest) -> Bindings:
    """TensorRT's. Made once for a user, and skipped with the reason where that cannot be done."""
    version: str = request.param
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler `cc` to make stub libraries with")
    return _made("tensorrt-bindings", version, lambda folder: make_bindings(folder, version, compiler))


@pytest.fixture(scope="session", params=CUDA_VERSIONS)
def cuda_bindings(request: pytest.FixtureRequest) -> Bindings:
    """CUDA's, likewise."""
    version: str = request.param
    return _made("cuda-bindings", version, lambda folder: make_cuda_bindings(folder, version))


def _made(kind: str, version: str, make: Callable[[Path], None]) -> Bindings:
    if sys.version_info[:2] != (3, 11) or sys.platform != "linux":
        pytest.skip("the contract environments are made of the wheels for Python 3.11 on Linux")
    folder = platformdirs.user_cache_path("optimize") / kind
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / version
        if not (made / ".complete").exists():
            shutil.rmtree(made, ignore_errors=True)
            make(made)
    return Bindings(version, made)
