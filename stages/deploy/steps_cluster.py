"""The steps of a deployment on a cluster, for its README.md."""

from __future__ import annotations

from collections.abc import Sequence

from stages.deploy.container import Version
from stages.deploy.kubernetes import name_of
from stages.deploy.options import DeployOptions
from stages.language.release.manifests import dns_name

__all__ = ["argo_steps", "kserve_steps", "kubernetes_steps", "traefik_steps"]

_ALONE = "One version only: render it again with `--candidate` for a rollout."


def kubernetes_steps(versions: Sequence[Version], options: DeployOptions) -> list[str]:
    """With the Gateway API."""
    volumes = """
The models are images of their own, mounted as image volumes: Kubernetes 1.35, or 1.33 with the feature gate
`ImageVolume`."""
    start = f"""\
## Start

It needs a Gateway `{options.gateway}` (Gateway API v1) that ends TLS for `{options.host}`. API keys, rates and
sizes are that Gateway's business, and differ between implementations; which paths are open is in the route.\
{volumes if options.server_image else ""}

`kubectl apply -f stable.yaml -f route-stable.yaml`"""
    return [start, _routes(versions, options)]


def traefik_steps(versions: Sequence[Version], options: DeployOptions) -> list[str]:
    """With Traefik's custom resources."""
    start = f"""\
## Start

It needs Traefik 3 with its custom resources, and a certificate for `{options.host}` at the entry point `websecure`. The
Middlewares limit rate and size; Traefik itself knows no API keys.

`kubectl apply -f stable.yaml -f route-stable.yaml`"""
    return [start, _routes(versions, options)]


def _routes(versions: Sequence[Version], options: DeployOptions) -> str:
    if len(versions) < 2:
        return _ALONE
    candidate = name_of(versions[1])
    wait = f"`kubectl apply -f candidate.yaml && kubectl rollout status deployment/{candidate}`"
    if options.strategy == "canary":
        how = f"""\
1. {wait}
2. `kubectl apply -f route-canary.yaml` gives it {options.share_percent} %.
3. `kubectl apply -f route-25-percent.yaml`, then `kubectl apply -f route-50-percent.yaml`, each after a look at latency
   and errors of both versions."""
    elif options.strategy == "shadow":
        how = f"""\
1. {wait}
2. `kubectl apply -f route-shadow.yaml` mirrors {options.mirror_percent} % of the requests to it. Its answers are thrown
   away; its latency and errors are in its metrics. Answers are compared on one host only (`--to compose`)."""
    else:
        how = f"""\
1. {wait}
2. Try it through its own Service, `{candidate}`; the route leads to the stable version only."""
    return f"""\
## Roll out

{how}

**Promote:** `kubectl apply -f route-promoted.yaml`. When nothing is under way at the stable version any more:
`kubectl delete -f stable.yaml`.

**Roll back:** `kubectl apply -f route-stable.yaml`, as long as the stable version runs. Then
`kubectl delete -f candidate.yaml`."""


def kserve_steps(versions: Sequence[Version], options: DeployOptions) -> list[str]:
    """With KServe's InferenceService."""
    name = dns_name(versions[0].release.model)
    start = f"""\
## Start

The images are model images, read through KServe's modelcar: `enableModelcar: true` in the ConfigMap
`inferenceservice-config` (off by default), with `uidModelcar` equal to Triton's user, 1000. The server is Triton
{options.runtime_version}, whatever KServe's own default is.

`kubectl apply -f stable.yaml && kubectl wait --for=condition=Ready inferenceservice/{name}`"""
    if len(versions) < 2:
        return [start, _ALONE]
    share = f"{options.share_percent} %" if options.strategy == "canary" else "none"
    patch = f"kubectl patch inferenceservice {name} --type merge --patch"
    return [
        start,
        f"""\
## Roll out

Shares need Knative (the annotation `deploymentMode: Knative`). `kubectl apply -f candidate.yaml` makes a revision that
has {share} of the traffic. To raise it:

`{patch} '{{"spec": {{"predictor": {{"canaryTrafficPercent": 25}}}}}}'`

**Promote:** `{patch} '{{"spec": {{"predictor": {{"canaryTrafficPercent": null}}}}}}'`; `promoted.yaml` says what
runs then.

**Roll back:** `{patch} '{{"spec": {{"predictor": {{"canaryTrafficPercent": 0}}}}}}'`: the revision before it has all of
the traffic again.""",
    ]


def argo_steps(versions: Sequence[Version], options: DeployOptions) -> list[str]:
    """With Argo Rollouts."""
    name = dns_name(versions[0].release.model)
    canary = options.strategy == "canary"
    needs = """\
It needs Argo Rollouts with its Gateway API plugin (`argoproj-labs/gatewayAPI`), and a Prometheus at
`prometheus.monitoring:9090` that scrapes pods and keeps their label `rollouts-pod-template-hash` (as
`rollouts_pod_template_hash`): the AnalysisTemplate asks it every minute."""
    start = f"""\
## Start

{needs if canary else "It needs Argo Rollouts."}
The Gateway `{options.gateway}` ends TLS for `{options.host}`.

`kubectl apply -f stable.yaml`"""
    if len(versions) < 2:
        return [start, _ALONE]
    if canary:
        how = f"""\
`kubectl apply -f candidate.yaml` begins it: {options.share_percent} % and upwards, ten minutes a step. The analysis
aborts it by itself when errors or p99 are over their limits."""
    else:
        how = f"""\
`kubectl apply -f candidate.yaml` starts the candidate behind the Service `{name}-candidate`, without traffic."""
    skips = " (`--full` skips what is left of the steps)" if canary else ""
    return [
        start,
        f"""\
## Roll out

{how}

**Promote:** `kubectl argo rollouts promote {name}`{skips}.

**Roll back:** `kubectl argo rollouts abort {name}` before it is promoted, `kubectl argo rollouts undo {name}` after.
Then `kubectl apply -f stable.yaml`, so that the manifests say what runs.""",
    ]
