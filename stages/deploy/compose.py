"""One host: a Compose file with the versions' servers, the front door, Prometheus and Grafana."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.deploy.container import Version, compose_service
from stages.deploy.front_door import STATE_FILE, FrontDoor, Limits, Upstream, haproxy_configuration
from stages.deploy.options import DeployOptions
from stages.image.server import PORTS
from stages.language.release.manifests import dns_name

__all__ = ["PRIVATE", "RUN", "compose_document", "front_door_files"]

RUN = "run"
PRIVATE = (RUN, "private", "keys.sha256")
"""Nobody's but their owner's, as whom the front door runs. All else is read by other users' containers too."""
_PORT = 8443
_UNPRIVILEGED: dict[str, Any] = {
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "read_only": True,
    "restart": "unless-stopped",
}


def compose_document(versions: Sequence[Version], options: DeployOptions) -> dict[str, Any]:
    """The Compose file. The servers' network leads nowhere else; from outside only the front door is reached."""
    servers = {version.track: compose_service(version, options.cpus) for version in versions}
    front = {
        "image": options.haproxy_image,
        **_UNPRIVILEGED,
        # Who runs it owns the sockets in run/, and may drive the rollout.
        "user": "${DEPLOY_USER:-1000:1000}",
        "networks": ["inside", "outside"],
        "ports": [f"{options.port}:{_PORT}"],
        "volumes": [
            _mounted("./haproxy.cfg", "/usr/local/etc/haproxy/haproxy.cfg"),
            _mounted("./keys.sha256", "/etc/haproxy/keys.sha256"),
            _mounted("./private", "/etc/haproxy/private"),
            _mounted(f"./{RUN}", "/run/haproxy", read_only=False),
        ],
        "depends_on": list(servers),
        "logging": {"driver": "json-file", "options": {"max-size": "50m"}},  # a line for every request
        "stop_grace_period": f"{options.answer_s + 10}s",
    }
    prometheus = {
        "image": options.prometheus_image,
        **_UNPRIVILEGED,
        "networks": ["inside", "outside"],
        "ports": ["127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"],
        "volumes": [
            _mounted("./prometheus.yml", "/etc/prometheus/prometheus.yml"),
            _mounted("./rules.yml", "/etc/prometheus/rules.yml"),
            {"type": "volume", "source": "prometheus", "target": "/prometheus"},
        ],
    }
    grafana = {
        "image": options.grafana_image,
        **_UNPRIVILEGED,
        "tmpfs": ["/tmp"],  # noqa: S108 - within its container
        "networks": ["inside", "outside"],
        "ports": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"],
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD": "${GRAFANA_PASSWORD:?write GRAFANA_PASSWORD=… into .env}",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
            "GF_NEWS_NEWS_FEED_ENABLED": "false",
        },
        "volumes": [
            _mounted("./grafana/datasources.yml", "/etc/grafana/provisioning/datasources/optimize.yml"),
            _mounted("./grafana/dashboards.yml", "/etc/grafana/provisioning/dashboards/optimize.yml"),
            _mounted("./grafana/dashboard.json", "/etc/grafana/dashboards/optimize.json"),
            {"type": "volume", "source": "grafana", "target": "/var/lib/grafana"},
        ],
        "depends_on": ["prometheus"],
    }
    return {
        "name": dns_name(versions[0].release.model),
        "services": {**servers, "front-door": front, "prometheus": prometheus, "grafana": grafana},
        "networks": {"inside": {"internal": True}, "outside": {}},
        "volumes": {"prometheus": {}, "grafana": {}},
    }


def front_door_files(versions: Sequence[Version], options: DeployOptions) -> dict[str, str]:
    """The front door's files by name. A candidate begins without traffic: `optimize rollout` gives it some."""
    upstreams = [
        Upstream(f"{version.track}:{PORTS['http']}", 100 if number == 0 else 0)
        for number, version in enumerate(versions)
    ]
    door = FrontDoor(
        model=versions[0].release.model,
        stable=upstreams[0],
        candidate=upstreams[1] if len(upstreams) > 1 else None,
        bind=f":{_PORT}",
        names=True,
        sampled_percent=options.mirror_percent if options.strategy == "shadow" and len(upstreams) > 1 else 0,
        limits=Limits(options.requests_per_10s, options.body_bytes, options.answer_s),
    )
    return {
        "haproxy.cfg": haproxy_configuration(door),
        "keys.sha256": "".join(f"{key}\n" for key in options.keys),
        f"{RUN}/{STATE_FILE}": "1\n",  # the format's version, and no server yet
        "private/README.md": "`front.pem` belongs here: the front door's certificate, its chain, and its key.\n",
    }


def _mounted(source: str, target: str, *, read_only: bool = True) -> dict[str, Any]:
    mount: dict[str, Any] = {"type": "bind", "source": source, "target": target}
    return mount | ({"read_only": True} if read_only else {})
