"""`optimize ui`: MLflow's pages over the local records."""

from __future__ import annotations

import signal

import click

__all__ = ["ui"]


@click.command(short_help="MLflow's pages over the local records.")
@click.option("--tracking-uri", metavar="URI", help="MLflow.  [default: $MLFLOW_TRACKING_URI or sqlite:///mlflow.db]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port on 127.0.0.1.  [default: a free one]")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def ui(tracking_uri: str | None, port: int | None, debug: bool) -> None:
    """Start `mlflow server` on 127.0.0.1 over the local database and print where the variants of the last job of each
    model are compared. Ctrl-C ends it.
    """
    from pipeline.records.address import resolve
    from pipeline.records.page_server import pages, serve

    uri = resolve(tracking_uri)
    try:
        with serve(uri, port) as address:
            click.echo(f"MLflow is at {address}; Ctrl-C ends it", err=True)
            for page in pages(uri, address):
                click.echo(f"{page.experiment}  {page.charts}")
                click.echo(f"{page.experiment}  {page.table}  (as a table)")
            signal.pause()
    except KeyboardInterrupt:
        click.echo("ended", err=True)
