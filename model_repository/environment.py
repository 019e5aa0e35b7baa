"""The environment that the real `tritonserver` runs in: created once, under the user's cache, and shared.

The wheel `nvidia-pytriton` holds a `tritonserver` and its Python backend, and nothing else of it is used. It needs an
environment of its own: the backend's stub is compiled against NumPy 1 (with NumPy 2 tensors arrive as garbage and no
error is raised), and it must find the very `libpython` of the interpreter whose standard library it will read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_repository.errors import ServerError
from model_repository.packages import Packages, server_packages

__all__ = ["TRITON_VERSION", "ServerEnvironment", "existing_environment", "server_environment"]

TRITON_VERSION = "2.51.0"
_MINORS = (11, 12)
"""The Python 3 minors that both the stubs and NumPy 1.26's wheels serve, and that ONNX Runtime still ships for."""
_LAYOUT = 1
_MARKER = "complete.json"
_VENV_REMEDY = "install your Python's venv module (Debian: `apt install python3-venv`)"
_PIP_REMEDY = (
    "a package index must be reachable once, and the wheel is for Linux on x86-64 with glibc 2.35 or later; "
    "without that, skip the verification"
)
_BACKENDS = Path(__file__).parent / "backends"

_DESCRIBE = """
import json, platform, sys, sysconfig
v = sysconfig.get_config_vars()
print(json.dumps({"version": platform.python_version(), "minor": sys.version_info[1], "prefix": sys.base_prefix,
    "name": v.get("INSTSONAME") or "", "folders": [v.get(k) for k in ("LIBDIR", "LIBPL") if v.get(k)],
    "multiarch": v.get("MULTIARCH") or ""}))
"""


@dataclass(frozen=True)
class ServerEnvironment:
    """Where the server's parts lie. `version` is Triton's, `backends` the folder for `--backend-directory`."""

    path: Path
    python: Path
    tritonserver: Path
    backends: Path
    caches: Path
    libraries: tuple[Path, ...]
    version: str = TRITON_VERSION

    def variables(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The environment variables that the server is started with, from those of the caller."""
        kept = {name: value for name, value in inherited.items() if not name.startswith("PYTHON")}
        # The stub finds its standard library and packages through the first `python3` in PATH.
        kept["PATH"] = os.pathsep.join([str(self.python.parent), kept.get("PATH", os.defpath)])
        kept["LD_LIBRARY_PATH"] = os.pathsep.join(str(folder) for folder in self.libraries)
        kept["VIRTUAL_ENV"] = str(self.path)
        # ONNX Runtime would report to its makers.
        kept["ORT_DISABLE_TELEMETRY"] = "1"
        return kept


def server_environment(cache: Path | None = None, progress: Callable[[str], None] | None = None) -> ServerEnvironment:
    """The environment under `cache` (by default the user's cache directory), installed first if it is not there.

    It holds ONNX Runtime, and OpenVINO where that is installed here. Its name has a digest of everything that is
    pinned, so another runtime or Python gets one of its own. Processes that want the same one wait for one of them;
    what was left half-made is thrown away.

    Raises `ServerError` if this machine cannot have it: no package index, no `libpython`, an unsuited platform.
    """
    plan = _plan(cache)
    if not _complete(plan.environment):
        path = plan.environment.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")) as lock:
            if not _complete(plan.environment):
                _create(plan, lock, progress or (lambda note: None))
    return plan.environment


def existing_environment(cache: Path | None = None) -> ServerEnvironment | None:
    """The environment that `server_environment` would give, if it need not be made. Raises `ServerError` as that."""
    environment = _plan(cache).environment
    return environment if _complete(environment) else None


@dataclass(frozen=True)
class _Plan:
    environment: ServerEnvironment
    interpreter: str
    about: Mapping[str, Any]
    packages: Packages


def _plan(cache: Path | None) -> _Plan:
    if sys.platform != "linux":
        raise ServerError(f"the Triton server runs on Linux only, this is {sys.platform}: skip the verification")
    if cache is None:
        import platformdirs

        cache = platformdirs.user_cache_path("optimize")
    interpreter, about = _interpreter()
    packages = server_packages()
    identity = json.dumps([_LAYOUT, packages.all, about["version"], about["prefix"], os.uname().machine])
    path = cache.resolve() / f"triton-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    return _Plan(_layout(path, int(about["minor"])), interpreter, about, packages)


def _interpreter() -> tuple[str, dict[str, Any]]:
    """The Python that the environment is made from: our own if it is suited, else the first suited one in PATH."""
    names = [sys.executable, *(shutil.which(f"python3.{minor}") for minor in reversed(_MINORS))]
    for name in names:
        if name:
            said = subprocess.run([name, "-I", "-c", _DESCRIBE], capture_output=True, text=True)
            if said.returncode == 0:
                about: dict[str, Any] = json.loads(said.stdout)
                if about["minor"] in _MINORS:
                    return name, about
    wanted = " or ".join(f"3.{minor}" for minor in _MINORS)
    raise ServerError(f"the Triton server needs Python {wanted}; install `python3.{_MINORS[-1]}` with its venv module")


def _layout(path: Path, minor: int) -> ServerEnvironment:
    packages = path / "lib" / f"python3.{minor}" / "site-packages"
    server = packages / "pytriton" / "tritonserver"
    ours = hashlib.sha256(b"".join(file.read_bytes() for file in _backend_files())).hexdigest()[:16]
    return ServerEnvironment(
        path=path,
        python=path / "bin" / "python",
        tritonserver=server / "bin" / "tritonserver",
        backends=path / f"backends-{ours}",
        caches=server / "caches",
        # libpython comes by a link in a folder of its own: its real folder may hold other libraries of the system.
        libraries=(path / "libpython", packages / "nvidia_pytriton.libs"),
    )


def _backend_files() -> list[Path]:
    return sorted([*_BACKENDS.glob("*/model.py"), *_shared_files()])


def _shared_files() -> list[Path]:
    return sorted(_BACKENDS.glob("*.py"))


def _usable(environment: ServerEnvironment) -> bool:
    """Whether everything that is installed is there. An interpreter or a libpython may have been removed since."""
    return (
        (environment.path / _MARKER).is_file()
        and environment.python.exists()  # follows links
        and all(link.exists() for link in environment.libraries[0].iterdir())
    )


def _complete(environment: ServerEnvironment) -> bool:
    return _usable(environment) and environment.backends.is_dir()


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _create(plan: _Plan, lock: int, progress: Callable[[str], None]) -> None:
    environment, packages = plan.environment, plan.packages
    marker = environment.path / _MARKER
    if not _usable(environment):
        # A virtual environment cannot be renamed into place, so it is the marker, written last, that makes it whole.
        shutil.rmtree(environment.path, ignore_errors=True)
        try:
            libpython = _libpython(plan.interpreter, plan.about)
            progress(f"creating the Triton server's environment in {environment.path} (once)")
            _run([plan.interpreter, "-m", "venv", str(environment.path)], lock, _VENV_REMEDY)
            pip = [str(environment.python), "-m", "pip", "--disable-pip-version-check", "install", "--no-input", "-q"]
            pip += ["--only-binary", ":all:"]
            progress(f"installing {', '.join(packages.bare)}")
            _run([*pip, "--no-deps", *packages.bare], lock, _PIP_REMEDY)
            progress(f"installing {', '.join(packages.whole)}")
            _run([*pip, *packages.whole], lock, _PIP_REMEDY)
            _finish(plan, libpython)
        except BaseException:
            shutil.rmtree(environment.path, ignore_errors=True)
            raise
        document = {
            "triton": environment.version,
            "packages": packages.all,
            "python": plan.about["version"],
        }
        scratch = marker.with_suffix(".tmp")
        scratch.write_text(json.dumps(document, indent=1) + "\n")
        scratch.rename(marker)
    _place_backends(environment)


def _run(command: list[str], lock: int, remedy: str) -> None:
    # The child inherits the lock: if we are killed, nobody else starts on the directory while it still writes there.
    said = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=[lock],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    )
    if said.returncode != 0:
        lines = [line for line in said.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise ServerError(
            f"the Triton server's environment could not be made: `{' '.join(command[1:])}` ended with "
            f"{said.returncode}: {' '.join(errors[-2:])}. Remedy: {remedy}"
        )


def _libpython(interpreter: str, about: Mapping[str, Any]) -> Path:
    """The shared library of the interpreter. Python itself may be linked without it, as Debian's is."""
    name = about["name"] if ".so" in about["name"] else f"libpython3.{about['minor']}.so.1.0"
    folders = [*about["folders"], f"{about['prefix']}/lib", f"{about['prefix']}/lib64"]
    folders += [f"/usr/lib/{about['multiarch']}", "/usr/local/lib", "/usr/lib64", "/usr/lib"]
    seen = []
    for folder in folders:
        candidate = Path(folder) / name
        if candidate.is_file():
            # One of another patch release starts, and then fails inside the standard library in odd ways.
            version = _version_of(interpreter, candidate)
            if version == about["version"]:
                return candidate.resolve()
            seen.append(f"{candidate} is of Python {version}")
    package = f"libpython3.{about['minor']}"
    raise ServerError(
        f"Triton's Python backend needs {name} of Python {about['version']}, which is not on this machine"
        + (f" ({'; '.join(dict.fromkeys(seen))})" if seen else "")
        + f": install the Debian package `{package}`, or a Python built with --enable-shared"
    )


def _version_of(interpreter: str, library: Path) -> str:
    code = (
        "import ctypes, sys; version = ctypes.CDLL(sys.argv[1]).Py_GetVersion; version.restype = ctypes.c_char_p; "
        "print(version().decode())"
    )
    said = subprocess.run([interpreter, "-I", "-c", code, str(library)], capture_output=True, text=True)
    return (said.stdout.split() or ["unknown"])[0]


def _finish(plan: _Plan, libpython: Path) -> None:
    """Put the stub and libpython where the server looks for them, and see that everything starts."""
    environment, minor = plan.environment, plan.about["minor"]
    server = environment.tritonserver.parents[1]
    stub = "triton_python_backend_stub"
    shutil.copy2(server / "python_backend_stubs" / f"3.{minor}" / stub, server / "backends" / "python" / stub)
    environment.libraries[0].mkdir()
    (environment.libraries[0] / f"libpython3.{minor}.so.1.0").symlink_to(libpython)
    for command in (
        [str(environment.tritonserver), "--help"],
        [str(server / "backends" / "python" / stub)],
        [str(environment.python), "-c", f"import numpy, {', '.join(plan.packages.modules)}"],
    ):
        said = subprocess.run(command, capture_output=True, text=True, env=environment.variables(os.environ))
        if "error while loading shared libraries" in said.stderr or "GLIBC" in said.stderr or "Error" in said.stderr:
            raise ServerError(f"{command[0]} does not start on this machine: {said.stderr.strip().splitlines()[-1]}")


def _place_backends(environment: ServerEnvironment) -> None:
    """Lay out `--backend-directory`: Triton's Python backend, and ours written for it, each with what they share."""
    scratch = environment.backends.with_suffix(".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    for model in _BACKENDS.glob("*/model.py"):
        folder = scratch / model.parent.name
        folder.mkdir(parents=True)
        for file in (model, *_shared_files()):
            shutil.copyfile(file, folder / file.name)
    (scratch / "python").symlink_to(environment.tritonserver.parents[1] / "backends" / "python")
    shutil.rmtree(environment.backends, ignore_errors=True)
    scratch.rename(environment.backends)
