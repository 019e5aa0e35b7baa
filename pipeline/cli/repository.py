"""`optimize versions`, `promote` and `rollback`: what is in a model repository, and which version is served."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["promote", "rollback", "versions"]

_repository = click.argument("repository", type=click.Path(path_type=Path))
_debug = click.option("--debug", is_flag=True, help="Show tracebacks.")


@click.command(short_help="List the releases in a model repository.")
@_repository
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@_debug
def versions(repository: Path, model: str | None, as_json: bool, debug: bool) -> None:
    """List the releases in REPOSITORY, of MODEL or of every model. The current one is marked."""
    from model_repository import Repository

    opened = Repository(repository)
    rows = [(name, info) for name in ([model] if model else opened.models()) for info in opened.versions(name)]
    if as_json:
        click.echo(
            json.dumps(
                [
                    {
                        "model": name,
                        "version": info.version,
                        "current": info.current,
                        "published_at": info.published_at,
                        "digest": info.digest,
                        "provenance": dict(info.provenance),
                    }
                    for name, info in rows
                ],
                indent=1,
            )
        )
        return
    if not rows:
        click.echo(f"{repository} holds no releases", err=True)
    for name, info in rows:
        mark = "*" if info.current else " "
        variant = info.provenance.get("variant", {}).get("name", "")
        when, digest = info.published_at or "made by hand", (info.digest or "")[:12]
        click.echo(f"{mark} {name} {info.version:>4}  {when}  {variant:<16} {digest}")


@click.command(short_help="Serve another version.")
@_repository
@click.argument("model")
@click.argument("version", type=click.IntRange(1))
@_debug
def promote(repository: Path, model: str, version: int, debug: bool) -> None:
    """Make VERSION the one that is served. Its configuration comes back with it."""
    from model_repository import Repository

    Repository(repository).promote(model, version)
    click.echo(f"{model}: version {version} is current", err=True)


@click.command(short_help="Go back to the version served before.")
@_repository
@click.argument("model")
@click.argument("version", type=click.IntRange(1), required=False)
@_debug
def rollback(repository: Path, model: str, version: int | None, debug: bool) -> None:
    """Go back to the version that was current before (or to VERSION), with the configuration it had."""
    from model_repository import Repository

    restored = Repository(repository).rollback(model, version)
    click.echo(f"{model}: version {restored.version} is current again", err=True)
