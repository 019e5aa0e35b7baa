"""The README.md beside the manifests: what was rendered, how it is started, promoted and rolled back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from stages.deploy.container import Version
from stages.deploy.deployment import Deployment, Target
from stages.deploy.options import DeployOptions
from stages.deploy.steps_cluster import argo_steps, kserve_steps, kubernetes_steps, traefik_steps
from stages.deploy.steps_compose import compose_steps

__all__ = ["readme"]

_MIB = 1024 * 1024
_MONITORING = """\
## Watch

`monitoring/rules.yml` and `monitoring/dashboard.json` are for the Prometheus and the Grafana of the cluster. Pods ask
to be scraped by their annotations; give what is scraped the labels `job="triton"`, `track` and `version`, by which
rules and dashboard tell the versions apart."""
_Steps = Callable[[Sequence[Version], DeployOptions], list[str]]
_TARGETS: Mapping[Target, tuple[str, _Steps]] = MappingProxyType(
    {
        "compose": ("Docker Compose", compose_steps),
        "kubernetes": ("Kubernetes (Gateway API)", kubernetes_steps),
        "kserve": ("KServe", kserve_steps),
        "argo": ("Argo Rollouts", argo_steps),
        "traefik": ("Traefik", traefik_steps),
    }
)


def readme(versions: Sequence[Version], options: DeployOptions, deployment: Deployment) -> str:
    """The text."""
    name, steps = _TARGETS[options.to]
    title = f"# {versions[0].release.model}: {options.strategy} on {name}"
    parts = [title, _table(versions), _notes(versions, options), *steps(versions, options), _checked(deployment)]
    return "\n\n".join(parts) + "\n"


def _table(versions: Sequence[Version]) -> str:
    rows = ["| | version | variant | recorded p50 / p99 | memory | GPUs | image |", "|---|---|---|---|---|---|---|"]
    for version in versions:
        release, recorded = version.release, version.release.baseline
        latency = f"{recorded.p50_ms:.3g} / {recorded.p99_ms:.3g} ms" if recorded else "not recorded"
        memory = f"{release.memory_bytes // _MIB} MiB" + ("" if release.memory_measured else " (a guess)")
        rows.append(
            f"| {version.track} | {release.version} | {release.variant or 'unknown'} | {latency} | {memory} | "
            f"{release.gpus or 'none'} | `{version.image}` |"
        )
    return "\n".join(rows)


def _notes(versions: Sequence[Version], options: DeployOptions) -> str:
    notes = ["Memory is the measured peak, and 1 GiB for the server."]
    if any(not version.release.memory_measured for version in versions):
        notes.append("A guess is three times the files' size, and 1 GiB for the server: measure, and correct it.")
    if all(version.release.baseline is None for version in versions):
        notes.append("No latency was recorded with the release: there is no line and no alert for it.")
    if any(version.release.gpus for version in versions):
        if options.to == "compose":
            notes.append("The GPUs need the NVIDIA Container Toolkit on the host.")
        else:
            notes.append(
                "The GPUs need NVIDIA's device plugin in the cluster. The HorizontalPodAutoscaler goes by\n"
                "processor use, which says little of a GPU: scale by GPU use or queue time where they are measured."
            )
    return "\n".join(notes)


def _checked(deployment: Deployment) -> str:
    held = (
        "`compose.yaml` was held against the Compose specification's schema."
        if deployment.target == "compose"
        else "Every object was held against the schema of its kind: fields and types. No cluster was asked."
    )
    if deployment.target != "compose":
        held = f"{_MONITORING}\n\n## What was checked\n\n{held}"
    else:
        held = f"## What was checked\n\n{held}"
    lines = [held]
    if deployment.not_validated:
        lines += ["", "Not checked:", ""]
        lines += [f"- `{name}`: {reason}" for name, reason in sorted(deployment.not_validated.items())]
    return "\n".join(lines)
