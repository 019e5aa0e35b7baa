"""The environments with TensorRT's real bindings."""

from __future__ import annotations

import fcntl
import shutil
import sys

import platformdirs
import pytest
from real_bindings import VERSIONS, Bindings, make_bindings


@pytest.fixture(scope="session", params=VERSIONS)
def bindings(request: pytest.FixtureRequest) -> Bindings:
    """Made once for a user, and skipped with the reason where that cannot be done."""
    version: str = request.param
    if sys.version_info[:2] != (3, 11) or sys.platform != "linux":
        pytest.skip("the contract environments are made of the wheels for Python 3.11 on Linux")
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler `cc` to make stub libraries with")
    folder = platformdirs.user_cache_path("optimize") / "tensorrt-bindings"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / version
        if not (made / ".complete").exists():
            shutil.rmtree(made, ignore_errors=True)
            make_bindings(made, version, compiler)
    return Bindings(version, made)
