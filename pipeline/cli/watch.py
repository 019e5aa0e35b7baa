"""`optimize watch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

__all__ = ["watch"]


@click.command(short_help="Optimise what changes in a model registry.")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Watch every registered model that a recipe is meant for.")
@click.option("--once", is_flag=True, help="One round: look, do what is to be done, exit.")
@click.option("--status", is_flag=True, help="Print the queue and stop.")
@click.option("--retry", is_flag=True, help="Take up again what has failed.")
@click.option(
    "--on",
    type=click.Choice(["both", "versions", "aliases"]),
    default="both",
    show_default=True,
    help="What asks for work: new versions, moved aliases.",
)
@click.option(
    "--alias", "aliases", metavar="NAME", multiple=True, help="Only moves of this alias ask for work.  [repeatable]"
)
@click.option("--backfill", is_flag=True, help="Begin with every version that is there, not with the last.")
@click.option(
    "--champion",
    metavar="NAME",
    default="champion",
    show_default=True,
    help="Alias that the result gets when every gate has passed.",
)
@click.option(
    "--recipe", metavar="FILE", type=click.Path(path_type=Path), help="Recipe for models that nothing else fits."
)
@click.option("--recipes", metavar="DIR", type=click.Path(path_type=Path), help="Recipes that tags and rules name.")
@click.option("--rules", metavar="FILE", type=click.Path(path_type=Path), help="Which models get which recipe.")
@click.option("--repository", metavar="DIR", type=click.Path(path_type=Path), help="Model repository.")
@click.option("--tracking-uri", metavar="URI", help="MLflow.  [default: $MLFLOW_TRACKING_URI or sqlite:///mlflow.db]")
@click.option(
    "--store", metavar="DIR", type=click.Path(path_type=Path), help="Where finished steps and the queue are kept."
)
@click.option("--interval", metavar="TIME", default="60s", show_default=True, help="Time between two looks.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Pieces of work at once.")
@click.option(
    "--max-download", metavar="SIZE", default="50GB", show_default=True, help="Largest model that is fetched."
)
@click.option(
    "--allow-local-files", is_flag=True, help="Read models from folders of this machine that an MLflow server names."
)
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="With --once: JUnit's XML.")
@click.option("--summary", metavar="FILE", type=click.Path(path_type=Path), help="With --once: Markdown, appended.")
@click.option("--json", "as_json", is_flag=True, help="With --once or --status: print one JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def watch(
    models: tuple[str, ...],
    every: bool,
    once: bool,
    status: bool,
    retry: bool,
    on: str,
    aliases: tuple[str, ...],
    backfill: bool,
    champion: str,
    recipe: Path | None,
    recipes: Path | None,
    rules: Path | None,
    repository: Path | None,
    tracking_uri: str | None,
    store: Path | None,
    interval: str,
    jobs: int,
    max_download: str,
    allow_local_files: bool,
    junit: Path | None,
    summary: Path | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Optimise new versions of registered MODELs, and those that an alias is moved to; register what passes as
    MODEL-optimized. Each piece of work is done once, whatever is restarted or killed in between.

    Exit codes with --once: 0 all was done or nothing was to do, 2 a model, a recipe or data are wrong, 3 no variant
    passed its gates, 4 a stage failed, 5 the registry cannot be reached or something else is missing here.
    """
    from pipeline.store import default_store
    from pipeline.triggers import Queue, WatchOptions
    from pipeline.triggers import summary as told
    from pipeline.triggers import watch as keep_watch
    from pipeline.triggers.registry import Registry
    from pipeline.triggers.rules import Rules, read_rules

    store = store or default_store()
    folder = store / "triggers"
    if status:
        with Queue(folder) as queue:
            rows = queue.rows()
        click.echo(json.dumps(told.document(rows), indent=1) if as_json else told.status_text(rows))
        return
    if bool(models) == every:
        raise click.UsageError("name the models to watch, or say --all")
    if not once and (junit or summary or as_json):
        raise click.UsageError("--junit, --summary and --json tell of one round: say --once")
    options = WatchOptions.parse(
        {
            "folder": folder,
            "store": store,
            "rules": Rules(recipes, () if rules is None else read_rules(rules), recipe, plain=not every),
            "watched": {
                "models": None if every else list(dict.fromkeys(models)),
                "versions": on != "aliases",
                "aliases": [] if on == "versions" else aliases or None,
                "champion": champion,
                "backfill": backfill,
            },
            "tracking_uri": tracking_uri,
            "repository": None if repository is None else repository.absolute(),
            "interval": interval,
            "jobs": jobs,
            "max_download": max_download,
            "local_files": allow_local_files,
        }
    )
    if retry:
        with Queue(folder) as queue:
            click.echo(f"{queue.retry(Registry(tracking_uri).name)} taken up again", err=True)
    ended = keep_watch(options, lambda text: click.echo(text, err=True), once=once)
    if junit is not None:
        junit.write_bytes(told.junit(ended))
    if summary is not None:
        with summary.open("a") as stream:
            stream.write(told.markdown(ended))
    if as_json:
        click.echo(json.dumps(told.document(ended.rows, ended.problems), indent=1))
    if not ended.rows and not ended.problems:
        click.echo("nothing to do", err=True)
    if ended.exit_code:
        sys.exit(ended.exit_code)
