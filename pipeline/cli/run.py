"""`optimize run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

__all__ = ["run"]


@click.command(short_help="The whole flow: from a model to a verified release.")
@click.argument("model", metavar="MODEL|RECIPE")
@click.option("--model", "model_option", metavar="MODEL", help="Take this model instead of the recipe's.")
@click.option("--name", help="Name in the model repository.")
@click.option("--task", help="What the model is for; inferred where possible.")
@click.option("--evaluation", metavar="PATH", help="Data that accuracy is judged on.")
@click.option("--calibration", metavar="PATH", help="Data that quantisation learns ranges from.")
@click.option("--metric", help="Metric to judge, such as accuracy, f1 or recall@1.")
@click.option("--target", help="Where the result will run: cpu, cuda or tensorrt.")
@click.option(
    "--variants",
    metavar="LIST",
    help="For example fp16,int8-static-openvino, or auto to search. The fp32 baseline is always there.",
)
@click.option("--no-fallback", is_flag=True, help="Leave variants that fail as they are.")
@click.option("--fuse", type=click.Choice(["measure", "always", "never"]), help="Fused graphs.  [default: measure]")
@click.option("--objective", type=click.Choice(["latency", "throughput", "size"]), help="What the best one is best at.")
@click.option("--max-drop", metavar="SHARE", help="Largest relative drop of the metric.  [default: 1%]")
@click.option("--max-p99", metavar="TIME", help="Limit for the 99th percentile of latency, such as 50ms.")
@click.option("--max-size", metavar="SIZE", help="Limit for the size of the model's files, such as 20MB.")
@click.option("--batch-sizes", metavar="LIST", help="Batch sizes to measure; the first decides.  [default: 1,8,32]")
@click.option("--threads", type=click.IntRange(0), help="Threads of a session.  [default: every core]")
@click.option(
    "--budget",
    metavar="TIME",
    help="Time for measuring speed, such as 2m.  [default: 60s]  With --variants auto: for the search and all its "
    "measuring.  [default: 10m]",
)
@click.option("--repository", metavar="DIR", help="Model repository.  [default: model_repository_out]")
@click.option("--tracking-uri", metavar="URI", help="MLflow.  [default: $MLFLOW_TRACKING_URI or sqlite:///mlflow.db]")
@click.option("--store", metavar="DIR", type=click.Path(path_type=Path), help="Where finished steps are kept.")
@click.option("--no-verify", is_flag=True, help="Publish without asking a real Triton.")
@click.option("--no-record", is_flag=True, help="Record nothing in MLflow.")
@click.option("--allow-pickle", is_flag=True, help="Read pickle files, which can run any code.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the checkpoint.")
@click.option("--report", metavar="FILE", type=click.Path(path_type=Path), help="Write report.html here too.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def run(
    model: str,
    store: Path | None,
    no_record: bool,
    report: Path | None,
    dry_run: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Optimise MODEL and publish the best variant that passes its gates.

    MODEL is a Hugging Face directory or hub id, an ONNX file, a .pt2 program, module:function, or an MLflow URI
    (models:/name/3, models:/name@alias, runs:/id/path). RECIPE is a .yaml file; options win over what it says.
    """
    from pipeline.dry_run import describe_plan
    from pipeline.job import run as run_job
    from pipeline.recipe import Recipe, merge
    from pipeline.screen import TerminalScreen

    def recipe_with(overrides: dict[str, Any]) -> Recipe:
        if model.endswith((".yaml", ".yml")):
            return Recipe.read(Path(model), overrides)
        return Recipe.parse({"model": model, **overrides}, "command line")

    budget, overrides = options.pop("budget"), _overrides(options)
    recipe = recipe_with(overrides)
    if budget is not None:  # what it is for, the recipe alone may know
        place = {"search_budget": budget} if recipe.variants == "auto" else {"profile": {"budget": budget}}
        recipe = recipe_with(merge(overrides, place))
    if dry_run:
        click.echo(describe_plan(recipe))
        return
    result = run_job(recipe, store=store, screen=TerminalScreen(), record=not no_record, report=report)
    from pipeline.table import print_result

    print_result(result)
    if as_json:
        click.echo(result.model_dump_json(indent=1))
    if result.exit_code:
        sys.exit(result.exit_code)


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    """What was said on the command line, in the recipe's form."""
    places = {
        "model_option": ("model",),
        "evaluation": ("evaluation", "path"),
        "calibration": ("calibration", "path"),
        "metric": ("evaluation", "metric"),
        "max_drop": ("gates", "max_drop"),
        "max_p99": ("gates", "max_p99"),
        "max_size": ("gates", "max_size"),
        "batch_sizes": ("profile", "batch_sizes"),
        "threads": ("profile", "threads"),
    }
    overrides: dict[str, Any] = {}
    for option, value in options.items():
        if value is None or value is False:
            continue
        if option.startswith("no_"):
            overrides[option.removeprefix("no_")] = False
            continue
        if option == "batch_sizes":
            value = [part.strip() for part in value.split(",")]
        place = places.get(option, (option,))
        owner = overrides
        for key in place[:-1]:
            owner = owner.setdefault(key, {})
        owner[place[-1]] = value
    return overrides
