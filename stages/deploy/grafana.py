"""Grafana's dashboard of one model: live latency beside the lines that were recorded with the release."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from stages.deploy.container import Version
from stages.deploy.prometheus import error_query, latency_query, queue_query, rate_query

__all__ = ["dashboard", "dashboard_provider", "data_source"]

_SOURCE = {"type": "prometheus", "uid": "prometheus"}
_VERSION_LABEL = "{{track}} v{{version}}"


def data_source() -> dict[str, Any]:
    """The provisioning file that names Prometheus."""
    source = {
        "name": "Prometheus",
        "type": "prometheus",
        "uid": _SOURCE["uid"],
        "access": "proxy",
        "url": "http://prometheus:9090",
        "isDefault": True,
    }
    return {"apiVersion": 1, "datasources": [source]}


def dashboard_provider() -> dict[str, Any]:
    """The provisioning file that names the folder of the dashboards."""
    provider = {"name": "optimize", "type": "file", "options": {"path": "/etc/grafana/dashboards"}}
    return {"apiVersion": 1, "providers": [provider]}


def dashboard(versions: Sequence[Version]) -> dict[str, Any]:
    """The dashboard (schema version 39, which Grafana 10.4 and later read)."""
    release = versions[0].release
    model = release.model
    panels = []
    for place, (title, quantile) in enumerate((("Latency, median", "0.5"), ("Latency, p99", "0.99"))):
        targets = [_target(latency_query(model, quantile), _VERSION_LABEL)]
        lines = []
        for version in versions:
            recorded = version.release.baseline
            if recorded is not None:
                value = recorded.p50_ms if quantile == "0.5" else recorded.p99_ms
                name = f"recorded with v{version.release.version}"
                targets.append(_target(f"vector({value:.6g})", name))
                lines.append(name)
        panels.append(_panel(place, title, "ms", targets, lines))
    panels += [
        _panel(2, "Requests a second", "reqps", [_target(rate_query(model), _VERSION_LABEL)]),
        _panel(3, "Errors", "percentunit", [_target(error_query(model), _VERSION_LABEL)]),
        _panel(4, "Waiting for an instance", "ms", [_target(queue_query(model), _VERSION_LABEL)]),
        _panel(5, "Up", "none", [_target('up{job="triton"}', _VERSION_LABEL)]),
    ]
    return {
        "uid": hashlib.sha256(model.encode()).hexdigest()[:16],
        "title": f"{model} on Triton",
        "tags": ["optimize"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "panels": panels,
    }


def _target(expression: str, legend: str) -> dict[str, Any]:
    return {"datasource": _SOURCE, "expr": expression, "legendFormat": legend}


def _panel(
    place: int, title: str, unit: str, targets: list[dict[str, Any]], dashed: Sequence[str] = ()
) -> dict[str, Any]:
    style = [
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
        {"id": "custom.lineWidth", "value": 2},
    ]
    overrides = [{"matcher": {"id": "byName", "options": name}, "properties": style} for name in dashed]
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (place % 2), "y": 8 * (place // 2)},
        "targets": [target | {"refId": chr(ord("A") + number)} for number, target in enumerate(targets)],
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": overrides},
    }
