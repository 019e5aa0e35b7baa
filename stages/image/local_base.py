"""A base with a Triton server for machines that reach no registry: Debian, and the server that we test releases with.

The server is `nvidia-pytriton`'s (CPU only), with the backends that `model_repository` has written for it. It lies
where NVIDIA's images have theirs, so that a serving image is the same on either.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from model_repository.environment import ServerEnvironment
from stages.artifact import canonical_json
from stages.errors import RequirementError, StageError
from stages.image.documents import CONFIG, described, manifest, timestamp
from stages.image.layer import build_layer, store_tar
from stages.image.layout import Layout
from stages.image.reference import LayoutReference
from stages.image.tar import Entry, file, folders_above, symlink

__all__ = ["DEBIAN", "local_base"]

DEBIAN = "bookworm"
_PACKAGES = ("libpython3.11", "libstdc++6", "python3")
_PYTHON = "3.11"
"""The minor that Debian's release has: the stub and the runtimes are built for one."""
_REVISION = 1
_SERVER = "opt/tritonserver"
_MODULES = "usr/local/lib/python3.11/dist-packages"
_LEFT_OUT = (
    "pip",
    "setuptools",
    "pkg_resources",
    "_distutils_hack",
    "pytriton",
    "nvidia_pytriton",
    "distutils-precedence.pth",
)
_NAME = "base"
_PATH = "/opt/tritonserver/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def local_base(environment: ServerEnvironment, cache: Path, note: Callable[[str], None]) -> LayoutReference:
    """The base, as a layout below `cache`; made at the first call, in a minute or so.

    Raises `RequirementError` if mmdebstrap is missing, Debian's packages cannot be had, or the server's environment is
    of another Python than Debian's.
    """
    found = [folder.name for folder in sorted((environment.path / "lib").glob("python3.*"))]
    if found != [f"python{_PYTHON}"]:
        raise RequirementError(
            f"the local base is Debian {DEBIAN} with Python {_PYTHON}, and the server's environment {environment.path} "
            f"is of {', '.join(found) or 'none'}; run with Python {_PYTHON}, or name another base"
        )
    key = [_REVISION, DEBIAN, _PACKAGES, environment.path.name, environment.backends.name]
    home = cache / f"base-{hashlib.sha256(canonical_json(key).encode()).hexdigest()[:16]}"
    layout = Layout(home)
    if not (layout.exists() and layout.names()):
        with tempfile.TemporaryDirectory(prefix=".base-", dir=_made(cache)) as name:
            scratch = Layout(Path(name, "layout")).create()
            _make(scratch, environment, Path(name, "rootfs.tar"), note)
            try:
                scratch.path.rename(home)
            except OSError:
                if not layout.exists():  # else another process was quicker
                    raise
    return LayoutReference(home, _NAME)


def _make(layout: Layout, environment: ServerEnvironment, rootfs: Path, note: Callable[[str], None]) -> None:
    note(f"making a Debian {DEBIAN} with mmdebstrap (once, about a minute)")
    _debian(rootfs)
    layers = [store_tar(rootfs, layout.blobs)]
    rootfs.unlink()
    note("packing the Triton server")
    site = environment.path / "lib" / f"python{_PYTHON}" / "site-packages"
    layers.append(build_layer(list(_server(environment, site)), layout.blobs, compression="zstd"))
    layers.append(build_layer(list(_modules(site)), layout.blobs, compression="zstd"))
    created = timestamp(0)
    settings = {
        "Env": [f"PATH={_PATH}", f"LD_LIBRARY_PATH=/{_SERVER}/lib", "PYTHONDONTWRITEBYTECODE=1", "LC_ALL=C.UTF-8"],
        "WorkingDir": f"/{_SERVER}",
    }
    config, content = described(
        {
            "created": created,
            "os": "linux",
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [
                {"created": created, "created_by": step} for step in ("mmdebstrap", "Triton server", "runtimes")
            ],
        },
        CONFIG,
    )
    layout.put_content(config, content)
    image, document = manifest(config, [layer.descriptor for layer in layers], {})
    layout.tag(image, document, _NAME)


def _debian(rootfs: Path) -> None:
    program = shutil.which("mmdebstrap")
    if program is None:
        raise RequirementError("mmdebstrap is not on the PATH: `apt install mmdebstrap`, or name another base")
    command = [program, "--variant=essential", f"--include={','.join(_PACKAGES)}", "--quiet", DEBIAN, str(rootfs)]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SOURCE_DATE_EPOCH": "0"})
    if said.returncode != 0:
        lines = [line for line in said.stderr.splitlines() if line.startswith("E:")] or said.stderr.splitlines()[-3:]
        raise RequirementError(
            f"mmdebstrap could not make a Debian {DEBIAN}: {' '.join(lines)}. A mirror of Debian must be reachable once"
        )


def _server(environment: ServerEnvironment, site: Path) -> Iterator[Entry]:
    """The server below `/opt/tritonserver`, its backends and caches where it looks for them by itself."""
    tree = site / "pytriton" / "tritonserver"
    files: dict[str, Path] = {f"{_SERVER}/bin/tritonserver": environment.tritonserver}
    for folder, name in ((tree / "backends" / "python", "backends/python"), (tree / "caches", "caches")):
        files |= {f"{_SERVER}/{name}/{path.relative_to(folder)}": path for path in _files(folder)}
    for backend in sorted(environment.backends.iterdir()):
        if not backend.is_symlink():
            files |= {
                f"{_SERVER}/backends/{backend.name}/{path.relative_to(backend)}": path for path in _files(backend)
            }
    files |= {f"{_SERVER}/lib/{path.name}": path for path in _files(site / "nvidia_pytriton.libs")}
    return _entries(files)


def _modules(site: Path) -> Iterator[Entry]:
    """The runtimes and NumPy, where Debian's Python finds them."""
    files: dict[str, Path] = {}
    for one in sorted(site.iterdir()):
        if one.name.partition("-")[0].partition(".")[0] not in _LEFT_OUT and one.name not in _LEFT_OUT:
            files |= {f"{_MODULES}/{path.relative_to(site)}": path for path in _files(one)}
    return _entries(files)


def _files(folder: Path) -> Iterator[Path]:
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    return (path for path in paths if path.suffix != ".pyc" and (path.is_symlink() or path.is_file()))


def _entries(files: dict[str, Path]) -> Iterator[Entry]:
    yield from folders_above(files)
    for name, path in files.items():
        if path.is_symlink() and not path.resolve().is_file():
            raise StageError(f"{path} leads nowhere; remove the server's environment, it is made anew")
        if path.is_symlink() and len(path.readlink().parts) == 1:
            yield symlink(name, str(path.readlink()))
        else:
            yield file(name, path.resolve(), executable=os.access(path, os.X_OK))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
