"""Which TensorRT a server has, and whether it can load a plan.

A plan is loaded by the very TensorRT version that built it; a version-compatible one by later versions of the same
major too, and one of 10 by 11 (NVIDIA TensorRT documentation, "Version Compatibility"), if the server is told to
(`--backend-config=tensorrt,version-compatible=true`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_repository.durable import write_file
from model_repository.errors import RepositoryError

__all__ = ["SERVERS", "ensure_loads", "loads", "record_server", "recorded_server", "tensorrt_of"]

SERVERS: Mapping[str, str] = {
    "26.07-trtllm-python-py3": "10.14.1.48",
    "26.06-trtllm-python-py3": "10.14.1.48",
    "26.05-trtllm-python-py3": "10.14.1.48",
    "26.04-trtllm-python-py3": "10.14.1.48",
    "26.03-trtllm-python-py3": "10.14.1.48",
    "26.02-trtllm-python-py3": "10.13.3.9",
    "26.01-trtllm-python-py3": "10.13.3.9",
    "25.12-trtllm-python-py3": "10.13.3.9",
    "25.11-trtllm-python-py3": "10.13.3.9",
}
"""TensorRT by tag of NVIDIA's container `tritonserver`, as far as it strongly types networks as we need it (10.12).

Source: the table "Container Name: trtllm-python-py3" in docs/introduction/compatibility.md of
github.com/triton-inference-server/server (July 2026). As published, these images have no backend `tensorrt` (its
maintainers in issue 6708 there, and issue 471 of tensorrtllm_backend): they serve plans where it was built into them,
as issue 8462 tells. For other images of a release no such table is published there; name their TensorRT version itself.
"""

_SERVER = ".server.json"


def tensorrt_of(server: str) -> str | None:
    """The TensorRT version of a server: by its container's tag, or the version itself (`10.13.3.9`). None: unknown."""
    if server in SERVERS:
        return SERVERS[server]
    parts = server.split(".")
    return server if len(parts) >= 3 and all(part.isdigit() for part in parts) else None


def loads(built: str, version_compatible: bool, served: str) -> bool:
    """Whether TensorRT `served` loads a plan that TensorRT `built` wrote."""
    ours, theirs = _numbers(built), _numbers(served)
    if ours == theirs:
        return True
    later = theirs > ours and (theirs[0] == ours[0] or (ours[0], theirs[0]) == (10, 11))
    return version_compatible and later


def record_server(repository: Path, server: str) -> None:
    """Note which server reads a repository. Raises `RepositoryError` for one whose TensorRT is not known."""
    if tensorrt_of(server) is None:
        raise RepositoryError(
            f"nothing is known of the TensorRT of the server {server!r}: name its version, such as 10.13.3.9 (in the "
            f"container `dpkg -l | grep libnvinfer` tells it), or one of {', '.join(SERVERS)}"
        )
    repository.mkdir(parents=True, exist_ok=True)
    incoming = repository / f"{_SERVER}.{os.getpid()}"
    write_file(incoming, (json.dumps({"server": server}) + "\n").encode())
    incoming.replace(repository / _SERVER)


def recorded_server(repository: Path) -> str | None:
    """The server that was noted for a repository, if one was."""
    try:
        return str(json.loads((repository / _SERVER).read_text(encoding="utf-8"))["server"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RepositoryError(f"{repository / _SERVER} cannot be read: {error}") from error


def ensure_loads(repository: Path, engine: Mapping[str, Any]) -> None:
    """Raise `RepositoryError` if the server that was noted for a repository cannot load a plan. `engine`: its
    `tensorrt` version and whether it is `version_compatible`."""
    server = recorded_server(repository)
    served = None if server is None else tensorrt_of(server)
    if served is None:
        return
    if not loads(str(engine["tensorrt"]), bool(engine["version_compatible"]), served):
        raise RepositoryError(
            f"{repository} is served by {server} with TensorRT {served}, which cannot load a plan of TensorRT "
            f"{engine['tensorrt']}: build the engine with {served}, or version-compatible with an earlier one"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
