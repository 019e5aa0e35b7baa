"""A server in a container: a Compose service, and the objects of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stages.language.release.servers import ENVIRONMENT, PORT, RELEASE, Launch, Server, warm_up_request

__all__ = ["compose", "dns_name", "kubernetes"]

_READY_WITHIN_S = 900
"""For loading the weights, and for the first request."""


def compose(server: Server, arguments: list[str], launch: Launch) -> dict[str, Any]:
    """A Compose file (as data) with one service, and one that warms it up when it is healthy, and ends.

    It lies in a folder of the release.
    """
    service: dict[str, Any] = {
        "image": server.image,
        **({"entrypoint": list(server.entrypoint)} if server.entrypoint else {}),
        "command": arguments,
        "environment": ENVIRONMENT,
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "ipc": "host",  # tensor parallelism talks through shared memory
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "curl", "-fsS", "-o", "/dev/null", f"http://127.0.0.1:{PORT}/health"],
            "interval": "10s",
            "timeout": "10s",
            "retries": 6,
            "start_period": f"{_READY_WITHIN_S}s",
        },
        "deploy": {
            "resources": {
                "reservations": {"devices": [{"driver": "nvidia", "count": launch.gpus, "capabilities": ["gpu"]}]}
            }
        },
    }
    if _needs_release(launch):
        service["volumes"] = [{"type": "bind", "source": "..", "target": RELEASE, "read_only": True}]
    warm_up = {
        "image": server.image,
        "entrypoint": warm_up_request(launch),
        "network_mode": f"service:{server.key}",
        "depends_on": {server.key: {"condition": "service_healthy"}},
        "restart": "no",
    }
    document: dict[str, Any] = _literal({"services": {server.key: service, "warm-up": warm_up}}, "$", "$$")
    return document


def kubernetes(server: Server, arguments: list[str], launch: Launch) -> list[dict[str, Any]]:
    """A Deployment and its Service (as data). A pod is let in only when it has answered a first request.

    The release is on a volume claim of the model's own name.
    """
    name = dns_name(launch.name)
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/component": server.key}
    health = {"httpGet": {"path": "/health", "port": "http"}}
    container: dict[str, Any] = {
        "name": server.key,
        "image": server.image,
        **({"command": list(server.entrypoint)} if server.entrypoint else {}),
        "args": arguments,
        "env": [{"name": variable, "value": value} for variable, value in ENVIRONMENT.items()],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"limits": {"nvidia.com/gpu": launch.gpus}},
        # The first request does what the server has left to it: only then are others let in.
        "startupProbe": {
            "exec": {"command": warm_up_request(launch)},
            "periodSeconds": 10,
            "timeoutSeconds": 120,
            "failureThreshold": _READY_WITHIN_S // 10,
        },
        "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],  # noqa: S108
    }
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}]
    if _needs_release(launch):
        container["volumeMounts"].append({"name": "release", "mountPath": RELEASE, "readOnly": True})
        volumes.append({"name": "release", "persistentVolumeClaim": {"claimName": name, "readOnly": True}})
    pod = {
        "containers": [_literal(container, "$(", "$$(")],
        "volumes": volumes,
        "enableServiceLinks": False,  # a Service called `vllm` would set VLLM_PORT, which vLLM reads
        "automountServiceAccountToken": not launch.in_release,
        "terminationGracePeriodSeconds": 120,
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }
    return [deployment, service]


def dns_name(name: str) -> str:
    """The name as Kubernetes takes it: small letters, digits and `-`, at most 63, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}")[:63].strip("-")


def _needs_release(launch: Launch) -> bool:
    return launch.in_release or bool(launch.adapters)


def _literal(value: Any, mark: str, escaped: str) -> Any:
    """The document, with what Compose or Kubernetes would take for a variable in a string made literal."""
    if isinstance(value, str):
        return value.replace(mark, escaped)
    if isinstance(value, Mapping):
        return {key: _literal(item, mark, escaped) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item, mark, escaped) for item in value]
    return value
