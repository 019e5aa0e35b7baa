"""Traefik's custom resources: an IngressRoute, a TraefikService that divides or mirrors, and the limits before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.deploy.container import Version
from stages.deploy.kubernetes import name_of, outside_paths
from stages.deploy.options import DeployOptions
from stages.image.server import PORTS
from stages.language.release.manifests import dns_name

__all__ = ["traefik_objects"]

_API = "traefik.io/v1alpha1"


def traefik_objects(versions: Sequence[Version], options: DeployOptions) -> list[dict[str, Any]]:
    """What stands before the Services of `versions` (stable, then the candidate if there is one)."""
    model = versions[0].release.model
    name, port = dns_name(model), PORTS["http"]
    services: list[dict[str, Any]] = [{"name": name_of(version), "port": port} for version in versions]
    if len(services) > 1 and options.strategy == "shadow":
        mirror = {**services[1], "percent": options.mirror_percent}
        divided: dict[str, Any] = {"mirroring": {**services[0], "maxBodySize": options.body_bytes, "mirrors": [mirror]}}
    else:
        share = options.share_percent if options.strategy == "canary" else 0
        weights = [100] if len(services) == 1 else [100 - share, share]
        weighted = [item | {"weight": weight} for item, weight in zip(services, weights, strict=True)]
        divided = {"weighted": {"services": weighted}}
    rate = {"average": options.requests_per_10s, "period": "10s", "burst": options.requests_per_10s}
    limits: dict[str, dict[str, Any]] = {
        f"{name}-rate": {"rateLimit": rate},
        f"{name}-size": {"buffering": {"maxRequestBodyBytes": options.body_bytes}},
    }
    rules = " || ".join(f"(Method(`{method}`) && Path(`{path}`))" for method, path in outside_paths(model))
    route = {
        "kind": "Rule",
        "match": f"Host(`{options.host}`) && ({rules})",
        "middlewares": [{"name": middleware} for middleware in limits],
        "services": [{"name": name, "kind": "TraefikService"}],
    }
    return [
        _object("TraefikService", name, divided),
        *(_object("Middleware", middleware, spec) for middleware, spec in limits.items()),
        _object("IngressRoute", name, {"entryPoints": ["websecure"], "routes": [route], "tls": {}}),
    ]


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": _API, "kind": kind, "metadata": {"name": name}, "spec": spec}
