"""The server's environment: made once whoever asks, made afresh after an interruption, and refused with a remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from model_repository import ServerError, environment
from model_repository.environment import ServerEnvironment, existing_environment, server_environment

MAKE = """
import sys
from pathlib import Path
from model_repository.environment import server_environment
print(server_environment(Path(sys.argv[1]), print).path)
"""


LOOK = """
import importlib.util, numpy, onnxruntime, openvino
print(numpy.__version__[0], onnxruntime.__version__, openvino.__version__.split("-")[0])
print(importlib.util.find_spec("openvino_telemetry"))
"""


def test_two_processes_make_one_environment_and_what_was_left_half_made_is_thrown_away(tmp_path: Path) -> None:
    planned = environment._plan(tmp_path).environment.path
    (planned / "bin").mkdir(parents=True)
    (planned / "bin" / "python").write_text("half a file")
    assert existing_environment(tmp_path) is None
    both = [
        subprocess.Popen([sys.executable, "-c", MAKE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted((process.communicate()[0].splitlines() for process in both), key=len)
    assert said[0] == [str(planned)]  # waited, and made nothing
    assert len(said[1]) == 4 and said[1][-1] == str(planned)
    made = existing_environment(tmp_path)
    assert made is not None and made.path == planned
    home = tmp_path / "home"
    home.mkdir()
    found = subprocess.run(
        [str(made.python), "-c", LOOK], capture_output=True, text=True, check=True,
        env=made.variables({**os.environ, "HOME": str(home)}),
    )  # fmt: skip
    assert found.stdout.split() == ["1", version("onnxruntime"), version("openvino"), "None"]
    assert not list(home.iterdir()), "a runtime has made a number for this machine, to report with"
    # An interpreter that was removed since makes it unusable.
    made.python.unlink()
    assert existing_environment(tmp_path) is None


def test_without_openvino_there_is_an_environment_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Callable[[str], str]:
        def look(asked: str) -> str:
            if asked == name:
                raise PackageNotFoundError(name)
            return version(asked)

        return look

    with_it = environment._plan(tmp_path)
    assert with_it.packages.modules == ("onnxruntime", "openvino")
    monkeypatch.setattr("importlib.metadata.version", without("openvino"))
    plan = environment._plan(tmp_path)
    assert plan.packages.modules == ("onnxruntime",)
    assert not [package for package in plan.packages.all if package.startswith("openvino")]
    assert plan.environment.path != with_it.environment.path
    monkeypatch.setattr("importlib.metadata.version", without("onnxruntime"))
    with pytest.raises(ServerError, match="onnxruntime is not installed"):
        environment._plan(tmp_path)


def test_it_is_used_again_without_a_word(triton: ServerEnvironment) -> None:
    notes: list[str] = []
    assert server_environment(progress=notes.append) == existing_environment() == triton
    assert notes == []


def test_the_backends_are_renewed_without_installing_anything(
    triton: ServerEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer version of this program has a newer backend; the packages stay."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "model.py").write_text("# another\n")
    (tmp_path / "shared.py").write_text("# beside each\n")
    monkeypatch.setattr(environment, "_BACKENDS", tmp_path)
    notes: list[str] = []
    other = server_environment(progress=notes.append)
    try:
        assert (other.path, notes) == (triton.path, [])
        assert other.backends != triton.backends
        assert (other.backends / "onnxruntime" / "model.py").read_text() == "# another\n"
        assert (other.backends / "onnxruntime" / "shared.py").read_text() == "# beside each\n"
        assert (other.backends / "python" / "triton_python_backend_stub").is_file()
        assert triton.backends.is_dir()
    finally:
        shutil.rmtree(other.backends)


def test_the_servers_variables_are_its_own(triton: ServerEnvironment) -> None:
    variables = triton.variables({"PATH": "/bin", "PYTHONPATH": "/mine", "LD_LIBRARY_PATH": "/mine", "HOME": "/home"})
    assert variables["PATH"] == f"{triton.path}/bin:/bin"
    assert "PYTHONPATH" not in variables and "/mine" not in variables["LD_LIBRARY_PATH"]
    assert variables["HOME"] == "/home"
    (libpython,) = triton.libraries[0].iterdir()
    assert libpython.name == f"libpython3.{sys.version_info[1]}.so.1.0"


def test_a_missing_libpython_is_named_with_its_package(tmp_path: Path) -> None:
    described = subprocess.run(
        [sys.executable, "-c", environment._DESCRIBE], capture_output=True, text=True, check=True
    )
    about: dict[str, Any] = {**json.loads(described.stdout), "folders": [str(tmp_path)], "multiarch": "none"}
    about["prefix"], minor = str(tmp_path), sys.version_info[1]
    name = "libpython3.11.so.missing"
    with pytest.raises(ServerError, match=rf"needs {name} of Python .*Debian package `libpython3.{minor}`"):
        environment._libpython(sys.executable, {**about, "name": name})
    # One of another release would start and then fail inside the standard library.
    real = environment._libpython(sys.executable, json.loads(described.stdout))
    (tmp_path / name).symlink_to(real)
    version = about["version"]
    assert environment._libpython(sys.executable, {**about, "name": name}) == real
    with pytest.raises(ServerError, match=rf"{name} is of Python {version}"):
        environment._libpython(sys.executable, {**about, "name": name, "version": "3.11.999"})
