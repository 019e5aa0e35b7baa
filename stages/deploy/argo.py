"""Argo Rollouts: a Rollout in the Deployment's place, and the analysis that lets it on or takes it back."""

from __future__ import annotations

from typing import Any

from stages.deploy.container import Version, pod_template
from stages.deploy.kubernetes import autoscaler, http_route, service
from stages.deploy.options import DeployOptions
from stages.language.release.manifests import dns_name

__all__ = ["argo_objects"]

_STEPS = (25, 50)
_PAUSE = "10m"


def argo_objects(version: Version, stable: Version, options: DeployOptions) -> list[dict[str, Any]]:
    """The objects with `version` in the Rollout; `stable`'s recorded latency is what the analysis goes by."""
    name = dns_name(version.release.model)
    labels = {"app.kubernetes.io/name": name}
    old, new = f"{name}-stable", f"{name}-candidate"
    template = pod_template(version, options.cpus, labels)
    template["metadata"]["annotations"]["optimize.model/version"] = str(version.release.version)
    if options.strategy == "blue-green":
        strategy: dict[str, Any] = {
            "blueGreen": {"activeService": old, "previewService": new, "autoPromotionEnabled": False}
        }
    else:
        steps: list[dict[str, Any]] = [{"setWeight": options.share_percent}, {"pause": {"duration": _PAUSE}}]
        for share in (share for share in _STEPS if share > options.share_percent):
            steps += [{"setWeight": share}, {"pause": {"duration": _PAUSE}}]
        strategy = {
            "canary": {
                "stableService": old,
                "canaryService": new,
                "trafficRouting": {
                    "plugins": {
                        "argoproj-labs/gatewayAPI": {"httpRoute": name, "namespace": options.namespace or "default"}
                    }
                },
                "analysis": {
                    "templates": [{"templateName": name}],
                    "startingStep": 1,
                    # The label that the controller gives to the pods of one revision.
                    "args": [{"name": "revision", "valueFrom": {"podTemplateHashValue": "Latest"}}],
                },
                "steps": steps,
            }
        }
    rollout = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": options.replicas,
            "revisionHistoryLimit": 5,
            "selector": {"matchLabels": labels},
            "template": template,
            "strategy": strategy,
        },
    }
    scaled = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": name}
    objects = [
        rollout,
        service(old, labels, labels),
        service(new, labels, labels),
        autoscaler(name, labels, scaled, options),
        _route(stable, options, old, new),
    ]
    return [*objects, _analysis(name, stable, options)] if options.strategy == "canary" else objects


def _route(stable: Version, options: DeployOptions, old: str, new: str) -> dict[str, Any]:
    """Both Services from the beginning: the controller changes weights, and adds no backend."""
    route = http_route([stable], options, "blue-green", [old])
    if options.strategy == "canary":
        backends = route["spec"]["rules"][0]["backendRefs"]
        backends.append(backends[0] | {"name": new, "weight": 0})
    return route


def _analysis(name: str, stable: Version, options: DeployOptions) -> dict[str, Any]:
    """Ends the rollout when the candidate's errors, or its latency against the recorded one, are too many."""
    here = f'model="{stable.release.model}",rollouts_pod_template_hash="{{{{args.revision}}}}"'
    failed = f"sum(increase(nv_inference_request_failure{{{here}}}[5m]))"
    answered = f"sum(increase(nv_inference_request_success{{{here}}}[5m]))"
    metrics = [_metric("error-ratio", f"{failed} / ({failed} + {answered})", 0.01)]
    if stable.release.baseline is not None:
        p99 = f'max(nv_inference_request_summary_us{{{here},quantile="0.99"}}) / 1000'
        metrics.append(_metric("p99-ms", p99, round(stable.release.baseline.p99_ms * options.slower_alert, 3)))
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AnalysisTemplate",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": name}},
        "spec": {"args": [{"name": "revision"}], "metrics": metrics},
    }


def _metric(name: str, query: str, limit: float) -> dict[str, Any]:
    # No request yet gives no value, or one that is no number: neither says anything against the candidate.
    return {
        "name": name,
        "interval": "1m",
        "failureLimit": 2,
        "successCondition": f"len(result) == 0 || isNaN(result[0]) || result[0] <= {limit:g}",
        "provider": {"prometheus": {"address": "http://prometheus.monitoring:9090", "query": query}},
    }
