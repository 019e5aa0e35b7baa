"""The account of a run: its result, put together from the recipe, what the steps left, and the verdicts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.outcome import Outcome
from pipeline.recipe import DataRecipe, Recipe
from pipeline.result import DataFigures, RunResult, StageFigures
from pipeline.runner import Runner, StepRecord
from pipeline.store import library_versions
from stages.artifact import Artifact, canonical_json
from stages.host import Host

__all__ = ["LIBRARIES", "account"]

LIBRARIES = (
    "onnx",
    "onnxruntime",
    "openvino",
    "onnxscript",
    "torch",
    "transformers",
    "tritonclient",
    "mlflow",
    "numpy",
)
"""The libraries whose versions go into every record."""


def account(recipe: Recipe, runner: Runner, outcome: Outcome, host: Host) -> RunResult:
    """The result of a run as far as it has come; how it ended is for the job to say."""
    source = runner.artifacts["source"]
    prepared, calibration = runner.artifacts.get("prepare"), runner.artifacts.get("prepare calibration")
    about: Mapping[str, Any] = prepared.metadata if prepared is not None else {}
    result = RunResult(
        status="failed",
        exit_code=4,
        message="",
        job_id=_job_id(recipe, runner, source),
        model="",
        source=recipe.model,
        source_digest=source.digest,
        task=runner.artifacts.get("convert", source).metadata.get("task") or "generic",
        target=recipe.target,
        objective=recipe.objective,
        metric=next((row.metric.name for row in outcome.rows if row.metric), None),
        evidence=about.get("evidence", "nothing was evaluated"),
        samples=about.get("samples", 0),
        data=[
            *_data("evaluation", recipe.evaluation, prepared),
            *_data("calibration", recipe.calibration, calibration),
        ],
        limits={name: limit for name, limit in recipe.gates.model_dump().items() if limit is not None},
        variants=outcome.rows,
        stages=[_stage_figures(record) for record in runner.records],
        host={**host, **_circumstances(runner)},
        libraries=library_versions(LIBRARIES),
        warnings=[*_of_the_data(runner), *_left_out(runner), *_unsettled(outcome)],
    )
    result.peak_memory_bytes = max((stage.peak_memory_bytes or 0 for stage in result.stages), default=None)
    return result


def _job_id(recipe: Recipe, runner: Runner, source: Artifact) -> str:
    """The same for the same source, recipe and results: a run that only repeats another is the same job."""
    asked = recipe.model_dump(mode="json", serialize_as_any=True, exclude={"tracking_uri", "repository"})
    results = {record.name: record.stored.artifact.digest for record in runner.records}
    content = canonical_json({"source": source.digest, "recipe": asked, "results": results})
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _data(
    role: Literal["evaluation", "calibration"], data: DataRecipe | None, prepared: Artifact | None
) -> list[DataFigures]:
    if prepared is None:
        return []
    source = data.path if data else prepared.metadata["evidence"]
    return [
        DataFigures(
            role=role,
            name=Path(source).name,
            source=source,
            digest=prepared.digest,
            samples=prepared.metadata["samples"],
        )
    ]


def _circumstances(runner: Runner) -> dict[str, str | int]:
    """Under what load, and on how many threads, the speeds were measured."""
    profile = runner.artifacts.get("profile")
    if profile is None:
        return {}
    load = profile.metadata["load_average"]
    return {
        "threads": profile.metadata["threads"],
        "load_average": f"{load['before'][0]:.2f} before measuring, {load['after'][0]:.2f} after",
    }


def _of_the_data(runner: Runner) -> list[str]:
    """What is doubtful about the data: too few samples, texts cut short, the same file for both purposes."""
    warnings = []
    for name in ("prepare", "prepare calibration"):
        prepared = runner.artifacts.get(name)
        if prepared is not None:
            warnings += list(prepared.metadata["warnings"])
    evaluation, calibration = (runner.artifacts.get(f"{role}-data") for role in ("evaluation", "calibration"))
    if evaluation is not None and calibration is not None:
        shared = set(evaluation.files.values()) & set(calibration.files.values())
        if shared:
            warnings.append(
                "calibration and evaluation share data: what the ranges were learnt from cannot say how well they hold"
            )
    return warnings


def _left_out(runner: Runner) -> list[str]:
    """The fused graphs that could not be made; their variants took the unfused ones."""
    return [
        f"{name.removeprefix('make ')} could not be used: {failure.reason}"
        for name, failure in runner.failures.items()
        if not failure.expected and failure.step == name and name.endswith(("fuse", " fused"))
    ]


def _unsettled(outcome: Outcome) -> list[str]:
    names = [row.name for row in outcome.rows if any(not batch.settled for batch in row.batches)]
    if not names:
        return []
    said = f"the time for measuring ended before every median was settled ({', '.join(names)})"
    return [f"{said}; give it more with --budget"]


def _stage_figures(record: StepRecord) -> StageFigures:
    stored = record.stored
    measured = stored.artifact.kind == "measurement"
    return StageFigures(
        name=record.name,
        key=stored.key,
        cached=stored.cached,
        seconds=stored.made.seconds,
        cpu_seconds=stored.made.cpu_seconds,
        peak_memory_bytes=stored.made.peak_memory_bytes,
        measured_at=stored.made_at if measured else None,
        measured_on=stored.artifact.metadata["host"]["cpu"] if measured else None,
    )
