"""What Prometheus scrapes, and when it raises an alarm: latency over the recorded one, errors, queues, restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.deploy.container import Version
from stages.deploy.options import DeployOptions
from stages.image.server import PORTS

__all__ = ["alert_rules", "error_query", "latency_query", "queue_query", "rate_query", "scrape_configuration"]

_ERRORS_FROM = 0.01
_QUEUE_MS_FROM = 50.0
_BY = "by (track, version)"


def latency_query(model: str, quantile: str) -> str:
    """A quantile of a request's time in the server (ms), of each version."""
    return f'max {_BY} (nv_inference_request_summary_us{{model="{model}",quantile="{quantile}"}}) / 1000'


def queue_query(model: str) -> str:
    """The mean time that requests waited for an instance (ms)."""
    waited = f'sum {_BY} (rate(nv_inference_queue_duration_us{{model="{model}"}}[5m]))'
    return f"{waited} / {rate_query(model)} / 1000"


def rate_query(model: str) -> str:
    """Answered requests a second."""
    return f'sum {_BY} (rate(nv_inference_request_success{{model="{model}"}}[5m]))'


def error_query(model: str) -> str:
    """Failed requests, as a fraction of all."""
    failed = f'sum {_BY} (rate(nv_inference_request_failure{{model="{model}"}}[5m]))'
    return f"{failed} / ({failed} + {rate_query(model)})"


def scrape_configuration(versions: Sequence[Version]) -> dict[str, Any]:
    """`prometheus.yml` for one host: each version's server under the names `track` and `version`."""
    targets = [
        {
            "targets": [f"{version.track}:{PORTS['metrics']}"],
            "labels": {"track": version.track, "version": str(version.release.version)},
        }
        for version in versions
    ]
    return {
        "global": {"scrape_interval": "5s", "evaluation_interval": "15s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "triton", "static_configs": targets}],
    }


def alert_rules(versions: Sequence[Version], options: DeployOptions) -> dict[str, Any]:
    """The rules. The latency's limit is the stable version's recorded p99; without a record there is no such rule."""
    release = versions[0].release
    model = release.model
    rules = [
        _rule(
            "TritonErrors",
            f"{error_query(model)} > {_ERRORS_FROM:g}",
            "5m",
            "page",
            f"more than {_ERRORS_FROM:.0%} of the requests to {model} fail",
        ),
        _rule(
            "TritonQueue",
            f"{queue_query(model)} > {_QUEUE_MS_FROM:g}",
            "5m",
            "ticket",
            f"requests to {model} wait more than {_QUEUE_MS_FROM:g} ms for an instance",
        ),
        # Counters begin anew with the process. What had no request before is not seen, and has lost none.
        _rule(
            "TritonRestarted",
            f'sum {_BY} (resets(nv_inference_request_success{{model="{model}"}}[15m])) > 0',
            "0s",
            "ticket",
            f"a server of {model} was started anew: its first requests are slow",
        ),
        _rule("TritonDown", 'up{job="triton"} == 0', "1m", "page", f"a server of {model} gives no metrics"),
    ]
    if release.baseline is not None:
        limit = release.baseline.p99_ms * options.slower_alert
        told = (
            f"p99 of {model} is over {limit:.3g} ms: {options.slower_alert:g} times the {release.baseline.p99_ms:.3g} "
            "ms that were recorded with the release"
        )
        rules.insert(0, _rule("TritonSlow", f"{latency_query(model, '0.99')} > {limit:.6g}", "5m", "page", told))
    return {"groups": [{"name": f"triton-{model}", "rules": rules}]}


def _rule(name: str, expression: str, lasting: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }
