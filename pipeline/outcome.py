"""From what the steps left to what is told: every variant judged, with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.flow import flow_of
from pipeline.recipe import Recipe
from pipeline.result import (
    BatchFigures,
    GenerationFigures,
    Interval,
    MetricFigures,
    Ratio,
    TaskFigures,
    VariantResult,
    Verdict,
)
from pipeline.runner import Runner
from stages.artifact import Artifact
from stages.gate import Judgement, Limits, judge
from stages.language.checkpoint import Checkpoint
from stages.language.suite import task_results
from stages.model import ASSETS, Model
from stages.profile import faster
from stages.select import Candidate, Objective
from stages.variant import Variant

__all__ = ["Outcome", "accuracy_limits", "candidate_of", "deciding_batch", "judge_variants", "limits_of"]


_ON_SPEED = ("max_p95_ms", "max_p99_ms", "max_size_bytes", "min_speedup")
"""The limits that only a measurement can be held against."""


@dataclass(frozen=True)
class Outcome:
    """The judged variants, baseline first, and what select needs of them."""

    rows: list[VariantResult]
    candidates: list[Candidate]


def limits_of(recipe: Recipe, batch_size: int) -> Limits:
    """The recipe's gates in the form that the gate takes, those on speed for one batch size."""
    gates = recipe.gates
    figures = {
        "max_p95_ms": gates.max_p95,
        "max_p99_ms": gates.max_p99,
        "max_size_bytes": gates.max_size,
        "min_speedup": gates.min_speedup,
        "batch_size": batch_size,
    }
    return Limits.model_validate(accuracy_limits(recipe).model_dump() | figures)


def accuracy_limits(recipe: Recipe) -> Limits:
    """The recipe's gates on accuracy alone."""
    gates = recipe.gates
    return Limits(max_drop=gates.max_drop, min_cosine=gates.min_cosine, min_agreement=gates.min_agreement)


def judge_variants(recipe: Recipe, runner: Runner, more: Sequence[Variant] = ()) -> Outcome:
    """Judge every variant of the recipe, and those that came to them, by what was stored of it. A variant that has no
    artifact or no evaluation gets no verdict but the reason why."""
    profile = runner.artifacts.get("profile")
    # A graph of a fixed batch size is measured at that one, whatever the recipe asks for.
    first: int = profile.metadata["batch_sizes"][0] if profile is not None else recipe.profile.batch_sizes[0]
    limits = limits_of(recipe, first)
    flow = flow_of(recipe)
    rows = []
    for variant in (*flow.variants(recipe), *more):
        measured = _measured(runner, variant.name, flow.baseline)
        row = _judged(runner, variant, flow.baseline, limits, measured)
        if row.verdict not in ("error", "not_run"):
            _judge_tasks(row, runner, flow.baseline, _task_limits(recipe))
        rows.append(row)
    by_name = {row.name: row for row in rows}
    return Outcome(rows, [candidate_of(row, by_name[row.beside] if row.beside else rows[0]) for row in rows])


def deciding_batch(row: VariantResult, objective: Objective) -> BatchFigures | None:
    """The batch size by which a variant is compared: that with the highest throughput, or the first one."""
    if objective == "throughput":
        return max(row.batches, key=lambda batch: batch.throughput_per_s, default=None)
    return next((batch for batch in row.batches if batch.latency_ms == row.latency_ms), None)


def _measured(runner: Runner, variant: str, first: str) -> Mapping[str, Any] | None:
    """The figures of the form that the variant took, its speed-up that over the baseline's chosen form."""
    chosen = runner.choices.get(variant)
    profile = None if chosen is None else runner.artifacts.get(chosen.measurement)
    if profile is None or chosen is None:
        return None
    figures = dict(profile.metadata["variants"][chosen.form])
    baseline = runner.choices[first]
    # A later measurement has the chosen forms only, under the variants' own names.
    over = baseline.form if chosen.measurement == baseline.measurement else first
    if figures["error"] is None:
        figures["speedups"] = _ratios(profile, chosen.form, over)
        if chosen.beside is not None and profile.metadata["variants"][chosen.beside]["error"] is None:
            figures["beside"] = _ratios(profile, chosen.form, chosen.beside)
    return figures


def _ratios(measurement: Artifact, form: str, over: str) -> dict[str, Any]:
    """How many times as fast one form is as another, by batch size."""
    races = {
        size: faster(measurement, form, over, int(size)) for size in measurement.metadata["variants"][form]["batches"]
    }
    return {size: {"value": race.ratio, "low": race.low, "high": race.high} for size, race in races.items()}


def _judged(
    runner: Runner, variant: Variant, first: str, limits: Limits, measured: Mapping[str, Any] | None
) -> VariantResult:
    row = VariantResult(
        name=variant.name,
        baseline=variant.name == first,
        runtime=variant.runtime,
        precision=variant.precision,
        parameters=_parameters(variant),
        calibrated=variant.needs_data,
        verdict="not_run",
    )
    artifact = runner.artifacts.get(variant.name)
    if artifact is not None:
        chosen = runner.choices[variant.name]
        row.form, row.measurement, race = chosen.form, chosen.measurement, chosen.race
        row.fused_speedup = None if race is None else race.ratio
        row.digest = artifact.digest
        _describe(row, artifact)
    if measured is not None:
        row.beside = runner.choices[variant.name].beside if "beside" in measured else None
        _figures(row, measured, limits.batch_size)
    evaluation = runner.artifacts.get(f"check {variant.name}")
    steps = (variant.name, f"check {variant.name}", f"suite {variant.name}", row.measurement)
    failures = [runner.failures[step] for step in steps if step in runner.failures]
    if failures:
        # What was not run because the machine lacks something tells less than what went wrong before it.
        failure = next((one for one in failures if not one.expected), failures[0])
        row.verdict, row.reason = ("not_run" if failure.expected else "error"), failure.reason
        if failure.expected and evaluation is not None:
            _tell_accuracy(row, evaluation, None if row.baseline else runner.artifacts[f"check {first}"], limits)
        return row
    if evaluation is None or measured is None:
        row.reason = "the run ended before it was measured and checked"
        return row
    baseline = None if row.baseline else runner.artifacts[f"check {first}"]
    _judge(row, evaluation, baseline, limits, measured)
    return row


def _describe(row: VariantResult, artifact: Artifact) -> None:
    if artifact.kind != "checkpoint":
        row.fused = Model.of(artifact).fused
        row.size_bytes = sum(
            (artifact.path / name).stat().st_size for name in artifact.files if not name.startswith(f"{ASSETS}/")
        )
        return
    described = Checkpoint.of(artifact)
    row.precision = described.precision
    row.size_bytes = described.weights_bytes(artifact)
    if described.quantisation is not None:
        row.quantisation = described.quantisation
        row.quantised_operators = described.quantisation.layers
        row.operators = described.quantisation.linear_layers


def _parameters(variant: Variant) -> dict[str, Any]:
    """Its own parameters, as far as they are single values."""
    fields = variant.model_dump(mode="json", exclude={"type", "runtime", "name", "exclude"})
    return {name: value for name, value in fields.items() if isinstance(value, (str, int, float, bool))}


def _judge(
    row: VariantResult,
    evaluation: Artifact,
    baseline: Artifact | None,
    limits: Limits,
    measured: Mapping[str, Any] | None,
) -> None:
    judgement: Judgement = judge(evaluation, baseline, limits, measured)
    row.verdict = judgement.verdict
    row.reason = judgement.reason
    row.samples_needed = judgement.samples_needed
    row.fidelity = {name: Interval(**figure.model_dump()) for name, figure in judgement.fidelity.items()}
    if judgement.metric is not None:
        row.metric = MetricFigures(**judgement.metric.model_dump(exclude={"drop_lower"}))


def _task_limits(recipe: Recipe) -> Limits:
    own = None if recipe.suite is None else recipe.suite.max_drop
    return Limits(max_drop=recipe.gates.max_drop if own is None else own)


def _judge_tasks(row: VariantResult, runner: Runner, first: str, limits: Limits) -> None:
    """Every task of the recipe's suite has a gate of its own, and a variant must pass them all."""
    suite = runner.artifacts.get(f"suite {row.name}")
    if suite is None:
        return
    before = {} if row.baseline else task_results(runner.artifacts[f"suite {first}"])
    judged = {}
    for name, one in task_results(suite).items():
        judged[name] = judgement = judge(one, before.get(name), limits)
        assert judgement.metric is not None
        figures = judgement.metric.model_dump(exclude={"drop_lower"})
        row.tasks.append(TaskFigures(**figures, task=name, samples=one.samples, verdict=judgement.verdict))
    worst: Verdict = max((one.verdict for one in judged.values()), key=_GRAVITY.index, default="pass")
    if _GRAVITY.index(worst) <= _GRAVITY.index(row.verdict):
        return
    row.verdict = worst
    row.reason = "; ".join(f"task {name}: {one.reason}" for name, one in judged.items() if one.verdict == worst)
    needed = [one.samples_needed for one in judged.values() if one.samples_needed is not None]
    row.samples_needed = max(needed, default=None) if worst == "inconclusive" else None


_GRAVITY: tuple[Verdict, ...] = ("pass", "inconclusive", "fail")


def _tell_accuracy(row: VariantResult, evaluation: Artifact, baseline: Artifact | None, limits: Limits) -> None:
    """What its evaluation says of a variant that has no verdict."""
    accuracy = limits.model_copy(update=dict.fromkeys(_ON_SPEED))
    verdict, reason = row.verdict, row.reason
    _judge(row, evaluation, baseline, accuracy, None)
    if not row.baseline:
        reason = f"{reason}; evaluated on the CPU: {row.reason}"
    row.verdict, row.reason, row.samples_needed = verdict, reason, None


def _figures(row: VariantResult, measured: Mapping[str, Any], first: int) -> None:
    row.peak_memory_bytes = measured.get("peak_memory_bytes")
    row.cold_start_ms = measured.get("cold_start_ms")
    row.generation = [GenerationFigures.model_validate(figures) for figures in measured.get("generation") or []]
    batches = [BatchFigures.model_validate(batch) for batch in (measured.get("batches") or {}).values()]
    row.batches = sorted(batches, key=lambda batch: batch.batch_size)
    for batch in row.batches:
        if batch.batch_size == first:
            row.latency_ms = batch.latency_ms
            row.throughput_per_s = batch.throughput_per_s
    for size, speedup in (measured.get("speedups") or {}).items():
        batch = next(batch for batch in row.batches if str(batch.batch_size) == size)
        batch.speedup = Ratio.model_validate(speedup)
        if batch.batch_size == first:
            row.speedup = batch.speedup.value
    for batch in row.batches:
        batch.beside = Ratio.model_validate(measured["beside"][str(batch.batch_size)]) if row.beside else None


def candidate_of(row: VariantResult, reference: VariantResult) -> Candidate:
    """What select needs of a row. `reference`: the variant that `row.beside` names, or the baseline."""
    narrow, widest = deciding_batch(row, "latency"), deciding_batch(row, "throughput")
    p50 = narrow.latency_ms.p50 if narrow else None
    throughput = widest.throughput_per_s if widest else None
    if row.measurement != reference.measurement:
        # Times of different minutes cannot be compared; how many times as fast as what both minutes have can.
        before = {batch.batch_size: batch for batch in reference.batches}
        p50 = throughput = None
        if narrow and narrow.batch_size in before and (ratio := narrow.beside if row.beside else narrow.speedup):
            p50 = before[narrow.batch_size].latency_ms.p50 / ratio.value
        if widest and widest.batch_size in before and (ratio := widest.beside if row.beside else widest.speedup):
            throughput = before[widest.batch_size].throughput_per_s * ratio.value
    return Candidate(
        name=row.name,
        passed=row.verdict == "pass",
        baseline=row.baseline,
        p50_ms=p50,
        throughput_per_s=throughput,
        size_bytes=row.size_bytes,
        faster=_above_one(narrow),
        higher=_above_one(widest),
    )


def _above_one(batch: BatchFigures | None) -> bool:
    return batch is not None and batch.speedup is not None and (batch.speedup.low or 0) > 1
