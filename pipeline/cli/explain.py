"""`optimize explain`: where the error of a variant comes from."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["explain"]


@click.command(short_help="Where the error of a variant comes from.")
@click.argument("run")
@click.argument("variant")
@click.option("--store", metavar="DIR", type=click.Path(path_type=Path), help="Where finished steps are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def explain(run: str, variant: str, store: Path | None, as_json: bool, debug: bool) -> None:
    """Tell where the error of VARIANT in RUN comes from: the signal-to-noise ratio of every layer, the samples that are
    farthest from the baseline, and what fallback returned to higher precision, and why.

    RUN is a job id (`optimize run` prints it in its JSON and its report), the beginning of one, or `last`.
    """
    from pipeline.explain import explain_variant
    from pipeline.explain_table import print_explanation
    from pipeline.screen import TerminalScreen
    from pipeline.store import default_store

    told = explain_variant(store or default_store(), run, variant, TerminalScreen())
    if as_json:
        click.echo(told.model_dump_json(indent=1))
    else:
        print_explanation(told)
