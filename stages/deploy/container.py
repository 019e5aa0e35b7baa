"""The server's container, as Compose and every kind of pod have it: command, rights, memory, GPUs, probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.deploy.release import Deployed
from stages.image.contents import MODELS
from stages.image.server import GROUP, PORTS, READY, USER, server_command

__all__ = ["LIVE", "Version", "compose_service", "pod_template", "server_arguments"]

LIVE = "/v2/health/live"
_STOP_S = 30
_MODELS = f"/{MODELS}"
_SHARED_MEMORY = "256Mi"
_QUANTILES = "summary_quantiles=0.5:0.05,0.95:0.005,0.99:0.001"


@dataclass(frozen=True)
class Version:
    """A version and its image. `server_image`: None if the image holds a server of its own."""

    track: str
    release: Deployed
    image: str
    server_image: str | None


def server_arguments() -> list[str]:
    """The server's command line, with the quantiles of its latency among its metrics."""
    told = ["--metrics-config=summary_latencies=true", f"--metrics-config={_QUANTILES}"]
    return [*server_command(repository=_MODELS, exit_timeout_s=_STOP_S), *told]


def compose_service(version: Version, cpus: int) -> dict[str, Any]:
    """A service that cannot write, has no rights, and is seen by its neighbours only."""
    release = version.release
    limits = {"memory": str(release.memory_bytes), "cpus": str(cpus)}
    resources: dict[str, Any] = {"limits": limits}
    if release.gpus:
        gpu = {"driver": "nvidia", "count": release.gpus, "capabilities": ["gpu"]}
        resources["reservations"] = {"devices": [gpu]}
    service: dict[str, Any] = {
        "image": version.server_image or version.image,
        "command": server_arguments(),
        "user": f"{USER}:{GROUP}",
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 - within its container
        "shm_size": "256m",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "networks": ["inside"],
        "restart": "unless-stopped",
        "stop_grace_period": f"{_STOP_S + 10}s",
        "deploy": {"resources": resources},
        "labels": {
            "optimize.model": release.model,
            "optimize.version": str(release.version),
            **({"optimize.release-digest": release.digest} if release.digest else {}),
        },
    }
    if version.server_image:
        mount = {"type": "image", "source": version.image, "target": _MODELS, "image": {"subpath": MODELS}}
        service["volumes"] = [mount]
    return service


def pod_template(version: Version, cpus: int, labels: dict[str, str]) -> dict[str, Any]:
    """A pod's metadata and specification.

    The memory limit is the request: a server that is killed for memory under load is worse than one that is not placed.
    """
    release = version.release
    memory = f"{release.memory_bytes // (1024 * 1024)}Mi"
    gpus = {"nvidia.com/gpu": release.gpus} if release.gpus else {}
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - within its container
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}},
    ]
    if version.server_image:
        mounts.append({"name": "model", "mountPath": _MODELS, "subPath": MODELS, "readOnly": True})
        volumes.append({"name": "model", "image": {"reference": version.image, "pullPolicy": "IfNotPresent"}})
    container: dict[str, Any] = {
        "name": "triton",
        "image": version.server_image or version.image,
        "args": server_arguments(),
        "ports": [{"name": name, "containerPort": port} for name, port in PORTS.items()],
        "resources": {"requests": {"cpu": cpus, "memory": memory}, "limits": {"memory": memory, **gpus}},
        # Loading may take minutes; only when it is over do the other two begin to count.
        "startupProbe": _probe(READY, period_s=5, failures=180),
        "readinessProbe": _probe(READY, period_s=5, failures=3),
        "livenessProbe": _probe(LIVE, period_s=10, failures=6),
        # Endpoints go from the gateways a moment after the pod is told to stop.
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(PORTS["metrics"]),
        "prometheus.io/path": "/metrics",
    }
    pod = {
        "containers": [container],
        "volumes": volumes,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": GROUP,
            "fsGroup": GROUP,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": _STOP_S + 15,
    }
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod}


def _probe(path: str, *, period_s: int, failures: int) -> dict[str, Any]:
    get = {"path": path, "port": "http"}
    return {"httpGet": get, "periodSeconds": period_s, "timeoutSeconds": 5, "failureThreshold": failures}
