"""`optimize deploy`: from a release to manifests."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["deploy"]

_PLACE = click.Path(path_type=Path)


@click.command(short_help="Manifests of a release: Compose, Kubernetes, KServe, Argo, Traefik.")
@click.argument("repository", type=_PLACE)
@click.argument("model")
@click.option(
    "--to", required=True, type=click.Choice(["compose", "kubernetes", "kserve", "argo", "traefik"]), help="Whose."
)
@click.option("--image", required=True, metavar="REF", help="Of the release: registry/name@sha256:….")
@click.option("--out", required=True, metavar="DIR", type=_PLACE, help="A new folder for the manifests.")
@click.option(
    "--strategy", type=click.Choice(["canary", "blue-green", "shadow"]), default="canary", show_default=True,
    help="How a candidate comes to traffic.",
)  # fmt: skip
@click.option("--candidate", metavar="VERSION", type=click.IntRange(1), help="The version that is to take over.")
@click.option("--candidate-image", metavar="REF", help="Its image.")
@click.option("--server-image", metavar="REF", help="A Triton; the other images then hold the model alone.")
@click.option("--host", help="The name that clients ask by.")
@click.option("--port", type=int, help="Compose: the front door's.")
@click.option("--api-keys", metavar="FILE", type=_PLACE, help="Compose: who may ask, a key a line; digests are kept.")
@click.option("--gateway", metavar="NAME", help="Kubernetes, Argo: the Gateway that the route belongs to.")
@click.option("--namespace", metavar="NAME", help="Kubernetes: of the objects.")
@click.option("--runtime-version", metavar="TAG", help="KServe: of the Triton that serves.")
@click.option("--replicas", type=int, help="Kubernetes: of each version.")
@click.option("--max-replicas", type=int, help="Kubernetes: of each version.")
@click.option("--cpus", type=int, help="Of one server.")
@click.option("--share-percent", metavar="%", type=int, help="A canary's first share.")
@click.option("--mirror-percent", metavar="%", type=int, help="What a shadow sees.")
@click.option("--requests-per-10s", type=int, help="Of one client.")
@click.option("--body-bytes", type=int, help="Of one request.")
@click.option("--answer-seconds", "answer_s", type=int, help="How long a server may take.")
@click.option("--slower-alert", type=float, help="An alert from so many times the recorded p99.")
@click.option("--haproxy-image", metavar="REF", help="Compose: of the front door.")
@click.option("--prometheus-image", metavar="REF", help="Compose: of Prometheus.")
@click.option("--grafana-image", metavar="REF", help="Compose: of Grafana.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def deploy(
    repository: Path, model: str, out: Path, candidate: int | None, api_keys: Path | None, as_json: bool, debug: bool,
    **given: str | int | float | None,
) -> None:  # fmt: skip
    """Write manifests of MODEL (or MODEL@VERSION) in REPOSITORY, with a README.md that spells out every step.

    Nothing is started, and nothing is sent anywhere. `optimize image` makes the images and prints their digests.
    """
    from pydantic import ValidationError

    from model_repository import Repository
    from stages.deploy.keys import key_digests
    from stages.deploy.options import DeployOptions
    from stages.deploy.release import read_deployed, split_version
    from stages.deploy.render import deploy as render

    asked = {name: value for name, value in given.items() if value is not None}
    keys = key_digests(api_keys) if api_keys is not None else ()
    try:
        options = DeployOptions.model_validate({**asked, "keys": keys})
    except ValidationError as error:
        first = error.errors()[0]
        raise click.UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    name, version = split_version(model)
    opened = Repository(repository)
    stable = read_deployed(opened, name, version)
    rendered = render(stable, read_deployed(opened, name, candidate) if candidate else None, options, out)
    for file in rendered.files:
        reason = rendered.deployment.not_validated.get(file)
        click.echo(f"  {out / file}{f'  (not checked: {reason})' if reason else ''}", err=True)
    click.echo(f"how it is started, promoted and rolled back: {out / 'README.md'}", err=True)
    if as_json:
        document = rendered.deployment.model_dump(mode="json") | {"folder": str(out), "files": list(rendered.files)}
        click.echo(json.dumps(document, indent=1))
