"""`optimize records`: what waits in the spool, and its delivery."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["records"]


@click.group(short_help="Records that wait for MLflow.")
def records() -> None:
    """Records of runs whose tracking server was away wait in the store's spool."""


@records.command(short_help="Deliver what waits.")
@click.option("--store", metavar="DIR", type=click.Path(path_type=Path), help="Where finished steps are kept.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def sync(store: Path | None, debug: bool) -> None:
    """Deliver the records that wait, each to the tracking server it was meant for. Exit code 5 if some still wait."""
    from pipeline.records import sync as deliver_all
    from pipeline.store import default_store

    deliveries = deliver_all((store or default_store()) / "records")
    for delivery in deliveries:
        outcome = f"delivered as run {delivery.run_id}" if delivery.run_id else f"still waits: {delivery.reason}"
        click.echo(f"{delivery.job_id}: {outcome}", err=True)
    if not deliveries:
        click.echo("nothing waits", err=True)
    if any(delivery.run_id is None for delivery in deliveries):
        sys.exit(5)
