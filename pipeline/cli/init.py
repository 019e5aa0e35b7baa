"""`optimize init`: a recipe to edit."""

from __future__ import annotations

import os
from pathlib import Path

import click

__all__ = ["init"]


@click.command(short_help="Write a recipe to edit.")
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=Path("optimize.yaml"))
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def init(model: str, file: Path, debug: bool) -> None:
    """Write a recipe for MODEL to FILE (optimize.yaml), with every choice explained."""
    from pipeline.starter import starter_recipe
    from stages.errors import InputError
    from stages.source import locate, suggest_name

    source = locate(model)
    task = None
    if source is not None:
        task = source.metadata["task"]
        model = os.path.relpath(model, file.parent)
    text = starter_recipe(model, suggest_name(model), task, file.name)
    try:
        with file.open("x") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise InputError(f"{file} is there already; name another file") from error
    click.echo(f"wrote {file}; edit it, then: optimize run {file}", err=True)
