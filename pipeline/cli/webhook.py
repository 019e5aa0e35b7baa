"""`optimize webhook`: MLflow's webhooks, received and made."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["webhook"]

_SECRET = "OPTIMIZE_WEBHOOK_SECRET"  # noqa: S105 - the variable's name
_URI = "MLflow.  [default: $MLFLOW_TRACKING_URI or sqlite:///mlflow.db]"
_FILE = click.Path(path_type=Path)


@click.group(short_help="MLflow's webhooks: receive them, make them.")
def webhook() -> None:
    """MLflow's webhooks wake `optimize watch` and can be passed on to GitHub and GitLab. Secrets come from the
    environment or from files: OPTIMIZE_WEBHOOK_SECRET, OPTIMIZE_GITHUB_TOKEN, OPTIMIZE_GITLAB_TOKEN."""


@webhook.command(short_help="Receive deliveries.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes any that is free."
)
@click.option("--path", default="/webhook", show_default=True, help="Where deliveries are posted to.")
@click.option("--secret-file", metavar="FILE", type=_FILE, help=f"Secrets, one a line.  [default: ${_SECRET}]")
@click.option("--github", metavar="OWNER/REPO", help="Pass on as repository_dispatch.")
@click.option("--github-url", metavar="URL", default="https://api.github.com", show_default=True, help="GitHub's API.")
@click.option("--github-token-file", metavar="FILE", type=_FILE, help="[default: $OPTIMIZE_GITHUB_TOKEN]")
@click.option("--gitlab", metavar="PROJECT", help="Pass on as a pipeline trigger: its number, or GROUP/PROJECT.")
@click.option("--gitlab-url", metavar="URL", default="https://gitlab.com", show_default=True, help="GitLab's address.")
@click.option("--gitlab-ref", metavar="REF", default="main", show_default=True, help="Branch or tag to run.")
@click.option("--gitlab-token-file", metavar="FILE", type=_FILE, help="[default: $OPTIMIZE_GITLAB_TOKEN]")
@click.option("--store", metavar="DIR", type=_FILE, help="The store that `optimize watch` uses.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def serve(
    host: str,
    port: int,
    path: str,
    secret_file: Path | None,
    github: str | None,
    github_url: str,
    github_token_file: Path | None,
    gitlab: str | None,
    gitlab_url: str,
    gitlab_ref: str,
    gitlab_token_file: Path | None,
    store: Path | None,
    debug: bool,
) -> None:
    """Receive deliveries until interrupted: check each one's signature, keep it, answer. `optimize watch` with the same
    --store then looks at the model at once. It speaks plain HTTP: put it behind what speaks TLS."""
    from pipeline.store import default_store
    from pipeline.triggers.receiver import ReceiverOptions, receive
    from pipeline.triggers.relay import GitHub, GitLab, Relay
    from pipeline.triggers.secret import read_secrets

    relays: list[Relay] = []
    if github is not None:
        token = read_secrets("OPTIMIZE_GITHUB_TOKEN", github_token_file, "--github-token-file")[0]
        relays.append(GitHub(github, token, github_url))
    if gitlab is not None:
        token = read_secrets("OPTIMIZE_GITLAB_TOKEN", gitlab_token_file, "--gitlab-token-file")[0]
        relays.append(GitLab(gitlab, token, gitlab_ref, gitlab_url))
    options = ReceiverOptions(
        folder=(store or default_store()) / "triggers",
        secrets=read_secrets(_SECRET, secret_file, "--secret-file"),
        host=host,
        port=port,
        path=path,
        relays=tuple(relays),
    )
    receive(options, lambda text: click.echo(text, err=True))


@webhook.command(short_help="Make the webhook on the MLflow server.")
@click.argument("url")
@click.option("--name", default="optimize", show_default=True, help="The webhook's name; one that is there is updated.")
@click.option("--secret-file", metavar="FILE", type=_FILE, help=f"The first line is the secret.  [default: ${_SECRET}]")
@click.option("--test", is_flag=True, help="Have the server send an example delivery.")
@click.option("--tracking-uri", metavar="URI", help=_URI)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def register(url: str, name: str, secret_file: Path | None, test: bool, tracking_uri: str | None, debug: bool) -> None:
    """Have the MLflow server post to URL when a version is made or an alias is set, signed with the secret."""
    from pipeline.triggers.hooks import register_hook
    from pipeline.triggers.registry import Registry
    from pipeline.triggers.secret import read_secrets

    secret = read_secrets(_SECRET, secret_file, "--secret-file")[0]
    click.echo(register_hook(Registry(tracking_uri), name, url, secret, test=test), err=True)
