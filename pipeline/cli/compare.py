"""`optimize compare`: what was measured, side by side."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["compare"]


@click.command(short_help="What differs between runs, versions, releases.")
@click.argument("references", metavar="WHAT [WHAT…]", nargs=-1, required=True)
@click.option("--store", metavar="DIR", type=click.Path(path_type=Path), help="Where finished steps are kept.")
@click.option("--tracking-uri", metavar="URI", help="MLflow.  [default: $MLFLOW_TRACKING_URI or sqlite:///mlflow.db]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def compare(
    references: tuple[str, ...], store: Path | None, tracking_uri: str | None, as_json: bool, debug: bool
) -> None:
    """Compare each WHAT with the first one, with confidence intervals. One alone: with what it was measured beside.

    WHAT is last, a job id or the beginning of one (its chosen variant), JOB:VARIANT, an MLflow run's id,
    models:/NAME/VERSION, models:/NAME@ALIAS, or a release as REPOSITORY:MODEL@VERSION.
    """
    from pipeline.compare import compare as compare_all
    from pipeline.compare.table import print_comparison
    from pipeline.store import default_store

    told = compare_all(references, store or default_store(), tracking_uri)
    if as_json:
        click.echo(told.model_dump_json(indent=1))
    else:
        print_comparison(told)
