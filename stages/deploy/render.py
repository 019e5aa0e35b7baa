"""From releases and images to a folder of manifests: made, held against their schemas, and only then written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stages.deploy.argo import argo_objects
from stages.deploy.compose import PRIVATE, RUN, compose_document, front_door_files
from stages.deploy.container import Version
from stages.deploy.deployment import DEPLOYMENT, Deployment, VersionSummary
from stages.deploy.front_door import CANDIDATE, STABLE
from stages.deploy.grafana import dashboard, dashboard_provider, data_source
from stages.deploy.kserve import inference_service
from stages.deploy.kubernetes import http_route, labels_of, name_of, service, workload
from stages.deploy.options import DeployOptions, pinned
from stages.deploy.prometheus import alert_rules, scrape_configuration
from stages.deploy.release import Deployed
from stages.deploy.steps import readme
from stages.deploy.traefik import traefik_objects
from stages.deploy.validate import check_compose, check_haproxy, check_objects, check_rules
from stages.errors import InputError
from stages.language.release.manifests import dns_name

__all__ = ["Rendered", "deploy"]


_SHARES = (25, 50)
"""Further shares (%) of a canary on a cluster."""


_NO_SCHEMA = "Grafana publishes no schema that it could be held against"


class _Dumper(yaml.SafeDumper):
    """Writes what occurs twice out twice: not every reader of manifests knows YAML's anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass(frozen=True)
class Rendered:
    """What was written: files by name (relative), and what is in `deployment.json`."""

    folder: Path
    files: tuple[str, ...]
    deployment: Deployment


@dataclass
class _Files:
    """Files to be written, each already held against its schema, or told in `unchecked` why not."""

    namespace: str | None
    texts: dict[str, str] = field(default_factory=dict)
    unchecked: dict[str, str] = field(default_factory=dict)

    def objects(self, name: str, objects: Iterable[dict[str, Any]]) -> None:
        items = list(objects)
        if self.namespace is not None:
            items = [item | {"metadata": {"namespace": self.namespace} | item["metadata"]} for item in items]
        check_objects(name, items)
        self.texts[name] = _yaml(*items)


def deploy(stable: Deployed, candidate: Deployed | None, options: DeployOptions, out: Path) -> Rendered:
    """Write the manifests of one version, or of two, into the folder `out`, which must be new or empty.

    Nothing is written before everything was checked. The same releases and options give the same bytes.

    Raises `InputError` if the options contradict each other or the target has no such strategy, `StageError` if what
    was made does not fit its schema (which is a bug), or is refused by the program it is for.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} is not empty: name a new folder, so that no manifest of another deployment stays in it"
        )
    versions = _versions(stable, candidate, options)
    files = _Files(options.namespace)
    {
        "compose": _compose,
        "kubernetes": _kubernetes,
        "kserve": _kserve,
        "argo": _argo,
        "traefik": _traefik,
    }[options.to](versions, options, files)
    if options.to != "compose":
        _rules_and_dashboard(versions, options, files)
    summaries = [
        VersionSummary(
            version=version.release.version,
            digest=version.release.digest,
            variant=version.release.variant,
            image=version.image,
        )
        for version in versions
    ]
    deployment = Deployment(
        model=stable.model,
        target=options.to,
        strategy=options.strategy,
        stable=summaries[0],
        candidate=summaries[1] if candidate else None,
        run=RUN if options.to == "compose" else None,
        not_validated=files.unchecked,
    )
    files.texts[DEPLOYMENT] = deployment.model_dump_json(indent=1) + "\n"
    files.texts["README.md"] = readme(versions, options, deployment)
    for name, text in files.texts.items():
        _write(out, name, text)
    return Rendered(out, tuple(sorted(files.texts)), deployment)


def _write(out: Path, name: str, text: str) -> None:
    """With rights that do not depend on the caller's umask: containers read what is mounted as users of their own."""
    file = out / name
    own = file.parent.name in PRIVATE or name in PRIVATE
    if not file.parent.is_dir():
        file.parent.mkdir(parents=True)
        file.parent.chmod(0o700 if own else 0o755)
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600 if own else 0o644)


def _versions(stable: Deployed, candidate: Deployed | None, options: DeployOptions) -> list[Version]:
    image = pinned("--image", options.image)
    server = None if options.server_image is None else pinned("--server-image", options.server_image)
    versions = [Version(STABLE, stable, image, server)]
    if (candidate is None) != (options.candidate_image is None):
        raise InputError("a candidate is a version and its image: give both --candidate and --candidate-image, or none")
    if candidate is not None and options.candidate_image is not None:
        if candidate.model != stable.model or candidate.version == stable.version:
            raise InputError(
                f"the candidate is {candidate.model} version {candidate.version}, the stable version {stable.model} "
                f"version {stable.version}: a rollout goes from one version of a model to another"
            )
        versions.append(Version(CANDIDATE, candidate, pinned("--candidate-image", options.candidate_image), server))
    return versions


def _compose(versions: list[Version], options: DeployOptions, files: _Files) -> None:
    document = compose_document(versions, options)
    check_compose("compose.yaml", document)
    files.texts["compose.yaml"] = _yaml(document)
    files.texts |= front_door_files(versions, options)
    if reason := check_haproxy(files.texts["haproxy.cfg"]):
        files.unchecked["haproxy.cfg"] = reason
    _monitoring(versions, options, files)


def _monitoring(versions: list[Version], options: DeployOptions, files: _Files) -> None:
    own = {
        "prometheus.yml": _yaml(scrape_configuration(versions)),
        "rules.yml": _yaml(alert_rules(versions, options)),
    }
    if reason := check_rules(own):
        files.unchecked |= dict.fromkeys(own, reason)
    files.texts |= own
    files.texts |= {
        "grafana/datasources.yml": _yaml(data_source()),
        "grafana/dashboards.yml": _yaml(dashboard_provider()),
        "grafana/dashboard.json": json.dumps(dashboard(versions), indent=1) + "\n",
    }
    files.unchecked |= dict.fromkeys(
        ("grafana/datasources.yml", "grafana/dashboards.yml", "grafana/dashboard.json"),
        _NO_SCHEMA,
    )


def _rules_and_dashboard(versions: list[Version], options: DeployOptions, files: _Files) -> None:
    """For a Prometheus and a Grafana that the cluster has already."""
    rules = {"rules.yml": _yaml(alert_rules(versions, options))}
    if reason := check_rules(rules):
        files.unchecked["monitoring/rules.yml"] = reason
    files.texts["monitoring/rules.yml"] = rules["rules.yml"]
    files.texts["monitoring/dashboard.json"] = json.dumps(dashboard(versions), indent=1) + "\n"
    files.unchecked["monitoring/dashboard.json"] = _NO_SCHEMA


def _kubernetes(versions: list[Version], options: DeployOptions, files: _Files) -> None:
    for version in versions:
        files.objects(f"{version.track}.yaml", workload(version, options))
    _routes(versions, options, files, _front)


def _traefik(versions: list[Version], options: DeployOptions, files: _Files) -> None:
    for version in versions:
        files.objects(f"{version.track}.yaml", workload(version, options))
    _routes(versions, options, files, traefik_objects)


def _routes(
    versions: list[Version],
    options: DeployOptions,
    files: _Files,
    made: Callable[[list[Version], DeployOptions], list[dict[str, Any]]],
) -> None:
    """One file for each state of the traffic, each complete in itself: a step forward or back is one `apply`."""
    files.objects("route-stable.yaml", made(versions[:1], options))
    if len(versions) < 2:
        return
    if options.strategy == "canary":
        files.objects("route-canary.yaml", made(versions, options))
        for percent in _SHARES:
            shared = options.model_copy(update={"share_percent": percent})
            files.objects(f"route-{percent}-percent.yaml", made(versions, shared))
    elif options.strategy == "shadow":
        files.objects("route-shadow.yaml", made(versions, options))
    files.objects("route-promoted.yaml", made(versions[1:], options))


def _front(versions: list[Version], options: DeployOptions) -> list[dict[str, Any]]:
    """Blue-green has one Service, whose selector says which version is live; the others have one for each version."""
    if options.strategy != "blue-green":
        return [http_route(versions, options, options.strategy, [name_of(version) for version in versions])]
    labels = labels_of(versions[0])
    name = dns_name(versions[0].release.model)
    common = {"app.kubernetes.io/name": labels["app.kubernetes.io/name"]}
    return [service(name, common, labels), http_route(versions, options, "blue-green", [name])]


def _kserve(versions: list[Version], options: DeployOptions, files: _Files) -> None:
    if options.strategy == "shadow":
        raise InputError("KServe mirrors no traffic: use --to kubernetes (Gateway API) or --to traefik for a shadow")
    if options.server_image is not None:
        raise InputError(
            "KServe brings its own server: --image is a model image, and --runtime-version says of which Triton"
        )
    two = len(versions) > 1
    files.objects("stable.yaml", [inference_service(versions[0], options, None, revisions=two)])
    if two:
        share = options.share_percent if options.strategy == "canary" else 0
        files.objects("candidate.yaml", [inference_service(versions[1], options, share, revisions=True)])
        files.objects("promoted.yaml", [inference_service(versions[1], options, None, revisions=True)])


def _argo(versions: list[Version], options: DeployOptions, files: _Files) -> None:
    if options.strategy == "shadow":
        raise InputError(
            "Argo Rollouts mirrors traffic with Istio only: use --to kubernetes (Gateway API) or --to traefik"
        )
    for version in versions:
        files.objects(f"{version.track}.yaml", argo_objects(version, versions[0], options))


def _yaml(*documents: dict[str, Any]) -> str:
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True, explicit_start=len(documents) > 1
    )
