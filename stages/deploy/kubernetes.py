"""Objects of Kubernetes: Deployment, Service, HorizontalPodAutoscaler, PodDisruptionBudget, and the HTTPRoute before
them (Gateway API)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.deploy.container import Version, pod_template
from stages.deploy.deployment import Strategy
from stages.deploy.options import DeployOptions
from stages.image.server import PORTS
from stages.language.release.manifests import dns_name

__all__ = ["autoscaler", "http_route", "labels_of", "name_of", "outside_paths", "service", "workload"]

_VERSION = "optimize.model/version"


def name_of(version: Version) -> str:
    """What the objects of one version are called."""
    return f"{dns_name(version.release.model)[:50].strip('-')}-v{version.release.version}"


def labels_of(version: Version) -> dict[str, str]:
    """What the pods of one version, and no others, have."""
    return {
        "app.kubernetes.io/name": dns_name(version.release.model),
        _VERSION: str(version.release.version),
    }


def outside_paths(model: str) -> list[tuple[str, str]]:
    """Method and path of all that may be asked from outside: the model's inference and its readiness."""
    asked = [("POST", f"/v2/models/{model}/{what}") for what in ("infer", "generate", "generate_stream")]
    looked = [("GET", f"/v2/models/{model}{what}") for what in ("", "/config", "/ready")]
    return [*asked, *looked, ("GET", "/v2/health/ready"), ("GET", "/v2/health/live")]


def workload(version: Version, options: DeployOptions) -> list[dict[str, Any]]:
    """A version's Deployment, its Service, and what scales and protects its pods."""
    name, labels = name_of(version), labels_of(version)
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": options.replicas,
            "selector": {"matchLabels": labels},
            # A new pod is ready before an old one goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": pod_template(version, options.cpus, labels),
        },
    }
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "labels": labels},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
    }
    scaled = autoscaler(name, labels, {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}, options)
    return [deployment, service(name, labels, labels), scaled, budget]


def service(name: str, labels: dict[str, str], selector: dict[str, str]) -> dict[str, Any]:
    """A Service for HTTP and gRPC; the metrics' port is for whoever scrapes pods."""
    ports = [{"name": port, "port": PORTS[port], "targetPort": port} for port in ("http", "grpc")]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": selector, "ports": ports},
    }


def autoscaler(name: str, labels: dict[str, str], target: dict[str, str], options: DeployOptions) -> dict[str, Any]:
    """Scales by processor use, which every cluster measures."""
    busy = {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": options.replicas,
            "maxReplicas": options.max_replicas,
            "metrics": [busy],
            # Loading takes long: what was scaled up is kept for a while.
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
        },
    }


def http_route(
    versions: Sequence[Version], options: DeployOptions, strategy: Strategy, services: Sequence[str]
) -> dict[str, Any]:
    """The way in: what may be asked, and how it is divided. `services`: of the stable version, then the candidate's."""
    model = versions[0].release.model
    port = PORTS["http"]
    shared = strategy == "canary" and len(services) > 1
    weights = [100 - options.share_percent, options.share_percent] if shared else [100]
    backends = [{"name": name, "port": port, "weight": weight} for name, weight in zip(services, weights, strict=False)]
    matches = [{"path": {"type": "Exact", "value": path}, "method": method} for method, path in outside_paths(model)]
    rule: dict[str, Any] = {
        "matches": matches,
        "backendRefs": backends,
        "timeouts": {"request": f"{options.answer_s}s"},
    }
    if strategy == "shadow" and len(services) > 1:
        mirror = {"backendRef": {"name": services[1], "port": port}, "percent": options.mirror_percent}
        rule["filters"] = [{"type": "RequestMirror", "requestMirror": mirror}]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": dns_name(model), "labels": {"app.kubernetes.io/name": dns_name(model)}},
        "spec": {
            "parentRefs": [{"name": options.gateway}],
            "hostnames": [options.host],
            "rules": [rule],
        },
    }
