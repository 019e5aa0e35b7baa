"""How the server in a serving image is started, and what an orchestrator needs to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stages.image.contents import MODELS

__all__ = ["GROUP", "PORTS", "READY", "STOP_SIGNAL", "TRITONSERVER", "USER", "server_command", "server_settings"]

USER = 1000
"""The user that the server runs as. KServe's Triton runtime has the same, and a modelcar must have it too."""
GROUP = 1000
PORTS: Mapping[str, int] = MappingProxyType({"http": 8000, "grpc": 8001, "metrics": 8002})
READY = "/v2/health/ready"
STOP_SIGNAL = "SIGTERM"
TRITONSERVER = "/opt/tritonserver/bin/tritonserver"


def server_command(*, repository: str = f"/{MODELS}", exit_timeout_s: int = 30) -> list[str]:
    """The command line of the server.

    Nothing can be loaded or unloaded over the network. The server ends if a model does not load, is not ready before
    it has, and at SIGTERM finishes within `exit_timeout_s` what it was asked.
    """
    return [
        TRITONSERVER,
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={exit_timeout_s}",
        f"--http-port={PORTS['http']}",
        f"--grpc-port={PORTS['grpc']}",
        f"--metrics-port={PORTS['metrics']}",
        "--allow-metrics=true",
    ]


def server_settings() -> dict[str, Any]:
    """What an image's configuration says of the server's start. The entry point of a base stays."""
    return {
        "Cmd": server_command(),
        "User": f"{USER}:{GROUP}",
        "ExposedPorts": {f"{port}/tcp": {} for port in PORTS.values()},
        "StopSignal": STOP_SIGNAL,
        "WorkingDir": "/opt/tritonserver",
    }
