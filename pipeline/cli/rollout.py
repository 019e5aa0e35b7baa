"""`optimize rollout`: traffic from one version to another, or back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.rollout import RolloutResult
    from pipeline.rollout.document import Mode

__all__ = ["rollout"]


def _percentages(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part.strip().removesuffix("%")) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}: write percentages with commas between them, as 5,25,50") from None


def _fraction(context: click.Context, option: click.Parameter, value: str) -> float:
    """`25%` or `0.25`."""
    try:
        return float(value.removesuffix("%")) / 100 if value.endswith("%") else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r}: write a percentage as 25% or 0.25") from None


@click.command(short_help="Shift traffic to a candidate, or back.")
@click.argument("deployment", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--mode",
    type=click.Choice(["canary", "shadow", "promote", "roll-back"]),
    help="What to do.  [default: what the deployment was rendered for]",
)
@click.option("--steps", default="5,25,50", show_default=True, callback=_percentages, help="Candidate's share, in %.")
@click.option("--max-slower", default="25%", show_default=True, callback=_fraction, help="Than stable, in latency.")
@click.option("--slack-ms", default=1.0, show_default=True, help="A difference in latency that never counts.")
@click.option("--cold-slack-ms", default=10.0, show_default=True, help="The same on steps below 40 %.")
@click.option("--quantile", "quantiles", multiple=True, type=float, help="Of the latency.  [default: 0.5 and 0.95]")
@click.option("--max-errors", default="1%", show_default=True, callback=_fraction, help="Above stable's error rate.")
@click.option("--confidence", default="95%", show_default=True, callback=_fraction, help="Of the whole rollout.")
@click.option("--spacing-ms", default=50.0, show_default=True, help="One latency of each version in so long counts.")
@click.option("--step-at-least", default=30.0, show_default=True, help="Seconds, unless there are errors.")
@click.option("--step-requests", default=200_000, show_default=True, help="After so many, a step is undecided.")
@click.option("--step-seconds", default=3600.0, show_default=True, help="After so long, a step is undecided.")
@click.option(
    "--if-undecided", type=click.Choice(["roll-back", "promote"]), default="roll-back", show_default=True,
    help="What then.",
)  # fmt: skip
@click.option("--tolerance", default=0.05, show_default=True, help="Shadow: relative error of an answer.")
@click.option("--max-differing", default="1%", show_default=True, callback=_fraction, help="Shadow: of the answers.")
@click.option("--samples", default=5000, show_default=True, help="Shadow: at most so many.")
@click.option(
    "--data", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Shadow: samples (.npz) instead of live requests.",
)  # fmt: skip
@click.option("--tracking-uri", metavar="URI", help="MLflow server or database.  [default: MLFLOW_TRACKING_URI]")
@click.option("--store", metavar="DIR", type=click.Path(path_type=Path), help="Where records wait.")
@click.option("--no-record", is_flag=True, help="Leave no run in MLflow.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def rollout(
    deployment: Path, mode: Mode | None, steps: tuple[int, ...], max_slower: float, slack_ms: float,
    cold_slack_ms: float, quantiles: tuple[float, ...], max_errors: float, confidence: float, spacing_ms: float,
    step_at_least: float, step_requests: int, step_seconds: float,
    if_undecided: str, tolerance: float, max_differing: float, samples: int, data: Path | None,
    tracking_uri: str | None, store: Path | None, no_record: bool, as_json: bool, debug: bool,
) -> None:  # fmt: skip
    """Drive the deployment in DEPLOYMENT (a folder that `optimize deploy --to compose` wrote), which must be running.

    canary: the candidate's share grows step by step while it is not worse; in the end it has all or nothing. shadow:
    answers of both versions are compared, and no client sees the candidate's. promote, roll-back: all at once.

    Ctrl-C gives the traffic back to the stable version. Exit code 0 promoted (shadow: the answers agree), 3 rolled back
    (refused).
    """
    from pydantic import ValidationError

    from pipeline.rollout import CanaryOptions, ShadowOptions
    from pipeline.rollout import rollout as drive
    from pipeline.rollout.recording import record_rollout
    from pipeline.screen import TerminalScreen
    from pipeline.store import default_store

    try:
        canary = CanaryOptions.model_validate(
            {
                "steps": steps,
                **({"quantiles": quantiles} if quantiles else {}),
                "max_slower": max_slower,
                "slack_ms": slack_ms,
                "cold_slack_ms": cold_slack_ms,
                "max_errors": max_errors,
                "confidence": confidence,
                "spacing_ms": spacing_ms,
                "step_at_least_s": step_at_least,
                "step_requests": step_requests,
                "step_s": step_seconds,
                "if_undecided": if_undecided,
            }
        )
        shadow = ShadowOptions(
            tolerance=tolerance,
            max_differing=max_differing,
            confidence=confidence,
            samples=samples,
            seconds=step_seconds,
            data=data,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise click.UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    with TerminalScreen().step("rollout") as progress:
        result = drive(deployment, mode=mode, canary=canary, shadow=shadow, progress=progress)
    _tell(result)
    if not no_record:
        result.mlflow = record_rollout(result, (store or default_store()) / "records", tracking_uri)
        where = result.mlflow
        click.echo(f"  on record: {where.url or where.run_id or f'waits ({where.spooled})'}", err=True)
    if as_json:
        click.echo(result.model_dump_json(indent=1))
    sys.exit(result.exit_code)


def _tell(result: RolloutResult) -> None:
    for step in result.steps:
        seen = ", ".join(f"{count} to {name}" for name, count in step.requests.items())
        click.echo(f"  {step.candidate_percent:>3} %  {step.verdict:<10} {seen}", err=True)
        for measure in step.measures:
            values = [f"{value:.4g}" if value is not None else "-" for value in
                      (measure.stable.value, measure.candidate.value)]  # fmt: skip
            click.echo(f"         {measure.name:<16} stable {values[0]:>8}  candidate {values[1]:>8}", err=True)
    versions = f"{result.model} {result.stable_version} to {result.candidate_version}"
    click.echo(f"{versions}: {result.status.replace('_', ' ')}: {result.reason}", err=True)
    click.echo(f"  the candidate has {result.candidate_percent} % of the traffic", err=True)
