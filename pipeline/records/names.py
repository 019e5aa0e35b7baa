"""The names of everything that is recorded, chosen once. `docs/records.md` lists the same (a test compares them).

MLflow groups charts by what stands before the slash. A step metric's tables show only its last step, so headline
figures have a single value and the sweeps over batch sizes stand apart, under `sweep/`, with the batch size as step.
"""

from __future__ import annotations

import math
import re

from pipeline.figures import drop_word
from pipeline.result import RunResult, VariantResult

__all__ = [
    "METRICS",
    "PARAMS",
    "TAGS",
    "VERSION_TAGS",
    "is_param",
    "job_metrics",
    "metric_name",
    "sweeps",
    "variant_metrics",
    "variant_params",
    "version_tags",
]

_LONGEST_PARAM = 6000

METRICS = {
    "latency/p50_ms": "median latency of a call, first batch size of the recipe (1)",
    "latency/p95_ms": "95th percentile of it",
    "latency/p99_ms": "99th percentile of it",
    "latency/cold_start_ms": "opening the session and the first answer",
    "throughput/per_s": "samples a second, first batch size of the recipe; language models: generated tokens a second "
    "over whole requests",
    "generation/ttft_p50_ms": "language models: median time to the first token, prompts as long as the documents, "
    "first batch size",
    "generation/ttft_p99_ms": "99th percentile of it",
    "generation/tpot_p50_ms": "language models: median time for each token after the first",
    "generation/tpot_p99_ms": "99th percentile of it",
    "generation/prefill_tokens_per_s": "language models: tokens of the prompt a second",
    "generation/decode_tokens_per_s": "language models: generated tokens a second after the first",
    "speedup/p50_x": "the baseline's median over this one's",
    "speedup/p95_x": "the same of the 95th percentiles; absent where they are of different measurements",
    "speedup/fused_x": "the unfused graph's median over the fused one's",
    "accuracy/<metric>": "the task's metric, `@` written as `_at_`",
    "accuracy/drop": "relative drop from the baseline, a fraction",
    "accuracy/drop_upper": "its one-sided 95 % bound, which the gate looks at",
    "accuracy/delta_pp": "the metric less the baseline's, in percentage points (not of perplexity)",
    "suite/<task>": "language models: the metric of a task of the recipe's suite",
    "suite/<task>_drop_upper": "upper 95 % bound of its relative drop from the baseline",
    "fidelity/<measure>": "mean likeness to the baseline's outputs: `cosine`, `agreement`, `relative_error`, `kl`",
    "size/bytes": "the model's files",
    "memory/peak_bytes": "highest resident memory while it was measured",
    "operators/quantised": "operators that are quantised, where fallback looked for those that should not be",
    "operators/all": "operators with constant weights, where it looked",
    "gate/passed": "1 if it may be published, else 0; absent if it was not judged",
    "sweep/p50_ms": "median latency; step = batch size",
    "sweep/p95_ms": "95th percentile; step = batch size",
    "sweep/p99_ms": "99th percentile; step = batch size",
    "sweep/throughput_per_s": "samples a second; step = batch size",
    "job/seconds": "wall time of the run (job run only)",
    "job/peak_memory_bytes": "highest resident memory of its steps (job run only)",
}
"""Every metric by name. The job's run carries those of the chosen variant."""

PARAMS = {
    "variant": "its name (of the job's run: the chosen one)",
    "variant.<parameter>": "how it was made: `variant.method`, `variant.block_size`, `variant.observer`, …",
    "precision": "`fp32`, `fp16`, `int8`, …",
    "runtime": "what ran it",
    "quantised_by": "language models: the library that really quantised, and its version",
    "fused": "whether its graph is fused",
    "target": "where the result is to run",
    "objective": "what the best variant is chosen by",
    "source": "the model that was given",
    "task": "what the model does",
    "metric": "what accuracy is, where data were labelled",
}
"""Every parameter by name. They are few, for the comparison page opens with the first three of the alphabet."""

TAGS = {
    "optimize.job_id": "the same in all runs of one job",
    "optimize.role": "`job` or `variant`",
    "optimize.variant": "the variant's name (variant runs)",
    "optimize.verdict": "`pass`, `fail`, `inconclusive`, `error`, `not_run` (variant runs)",
    "optimize.reason": "why, in words (variant runs)",
    "optimize.baseline": "`true` or `false` (variant runs)",
    "optimize.front": "`true` or `false` (variant runs): whether it is on the Pareto front",
    "optimize.chosen": "`true` or `false` (variant runs), the chosen variant's name (job run)",
    "optimize.model_digest": "the SHA-256 of the variant's artifact (variant runs)",
    "optimize.status": "`running`, then `published`, `none_passed` or `failed` (job run)",
    "optimize.model": "the name it is published under",
    "optimize.source_digest": "the SHA-256 of the source",
    "optimize.release": "`<model>/<version>` (job run)",
    "optimize.release_digest": "the SHA-256 of the release (job run)",
    "optimize.repository": "where it was published (job run)",
    "optimize.verified": "whether a server has loaded and answered from it (job run)",
    "optimize.cpu": "the processor that was measured on",
    "optimize.host": "16 digits of the SHA-256 of what is known of the machine: the same machine has the same",
    "optimize.libraries": "16 digits of the SHA-256 of the versions in `environment.json`",
    "optimize.record": "digest of what was recorded; written last",
}
"""Every tag of ours by name. MLflow's own are set too: `mlflow.note.content`, `mlflow.source.name`, `mlflow.user`."""

VERSION_TAGS = {
    "optimize.key": "digest of the source version, the recipe, the target and the tools: the same work has the same",
    "optimize.source_model": "the registered model that it was made from",
    "optimize.source_version": "the version of that model",
    "optimize.source_digest": "the SHA-256 of the source",
    "optimize.variant": "the variant that was published",
    "optimize.verdict": "`pass`: nothing else is registered",
    "optimize.p95_ms": "95th percentile of its latency, first batch size of the recipe",
    "optimize.tokens_per_s": "language models: generated tokens a second over whole requests, first batch size",
    "optimize.speedup": "the baseline's median latency over its own",
    "optimize.accuracy_drop": "relative drop from the baseline, a fraction (of the metric that the next tag names)",
    "optimize.metric": "the task's metric",
    "optimize.release": "`<model>/<version>` in the model repository",
    "optimize.release_digest": "the SHA-256 of the release",
    "optimize.image": "its container image, by digest, where the recipe asks for one",
    "optimize.verified": "whether a server has loaded and answered from it",
    "optimize.job_id": "the job whose runs hold the evidence",
}
"""Every tag of a version of `<model>-optimized`."""


def metric_name(name: str) -> str:
    """A metric's name as MLflow takes it, which knows no `@`: `recall@1` is `recall_at_1`."""
    return re.sub(r"[^\w.\- ]", "_", name.replace("@", "_at_"))


def variant_metrics(result: RunResult, variant: VariantResult) -> dict[str, float]:
    """The figures of one variant, each with one value; what was not measured is left out."""
    latency, metric = variant.latency_ms, variant.metric
    figures: dict[str, float | None] = {
        "latency/p50_ms": None if latency is None else latency.p50,
        "latency/p95_ms": None if latency is None else latency.p95,
        "latency/p99_ms": None if latency is None else latency.p99,
        "latency/cold_start_ms": variant.cold_start_ms,
        "throughput/per_s": variant.throughput_per_s,
        "speedup/p50_x": variant.speedup,
        "speedup/p95_x": _p95_speedup(result, variant),
        "speedup/fused_x": variant.fused_speedup,
        "size/bytes": variant.size_bytes,
        "memory/peak_bytes": variant.peak_memory_bytes,
        "operators/quantised": variant.quantised_operators,
        "operators/all": variant.operators,
        "gate/passed": None if variant.verdict == "not_run" else float(variant.verdict == "pass"),
    }
    if metric is not None:
        figures[f"accuracy/{metric_name(metric.name)}"] = metric.value
        figures["accuracy/drop"] = metric.drop
        figures["accuracy/drop_upper"] = metric.drop_upper
        baseline = next((other.metric for other in result.variants if other.baseline), None)
        if baseline is not None and drop_word(metric.name) == "drop":
            figures["accuracy/delta_pp"] = 100 * (metric.value - baseline.value)
    for requests in variant.generation[:1]:
        figures |= {
            "generation/ttft_p50_ms": requests.ttft_ms.p50,
            "generation/ttft_p99_ms": requests.ttft_ms.p99,
            "generation/tpot_p50_ms": requests.tpot_ms.p50,
            "generation/tpot_p99_ms": requests.tpot_ms.p99,
            "generation/prefill_tokens_per_s": requests.prefill_tokens_per_s,
            "generation/decode_tokens_per_s": requests.decode_tokens_per_s,
        }
    for task in variant.tasks:
        figures[f"suite/{metric_name(task.task)}"] = task.value
        figures[f"suite/{metric_name(task.task)}_drop_upper"] = None if variant.baseline else task.drop_upper
    for name, interval in variant.fidelity.items():
        figures[f"fidelity/{metric_name(name)}"] = interval.value
    return _finite(figures)


def _p95_speedup(result: RunResult, variant: VariantResult) -> float | None:
    baseline = next((other for other in result.variants if other.baseline), None)
    if baseline is None or baseline.latency_ms is None or variant.latency_ms is None:
        return None
    if baseline.measurement != variant.measurement:  # other minutes: what slowed the one did not slow the other
        return None
    return baseline.latency_ms.p95 / variant.latency_ms.p95


def job_metrics(result: RunResult, chosen: VariantResult | None) -> dict[str, float]:
    """The chosen variant's figures, so that the job's run shows them in lists, and the job's own."""
    figures: dict[str, float | None] = dict(variant_metrics(result, chosen)) if chosen is not None else {}
    figures["job/seconds"] = result.seconds or None
    figures["job/peak_memory_bytes"] = result.peak_memory_bytes
    return _finite(figures)


def sweeps(variant: VariantResult) -> list[tuple[str, int, float]]:
    """Name, batch size and value of the figures by batch size."""
    points = []
    for batch in variant.batches:
        latency = batch.latency_ms
        for name, value in (
            ("p50_ms", latency.p50),
            ("p95_ms", latency.p95),
            ("p99_ms", latency.p99),
            ("throughput_per_s", batch.throughput_per_s),
        ):
            if math.isfinite(value):
                points.append((f"sweep/{name}", batch.batch_size, value))
    return points


def variant_params(result: RunResult, variant: VariantResult | None) -> dict[str, str]:
    """What a run was, as text. MLflow lets no parameter change, so what may change is a tag or a metric."""
    params: dict[str, str | int | float | bool | None] = {}
    if variant is not None:
        params = {
            "variant": variant.name,
            "precision": variant.precision,
            "runtime": variant.runtime,
            "fused": variant.fused,
            **{f"variant.{name}": value for name, value in variant.parameters.items()},
        }
        if variant.quantisation is not None:
            params["quantised_by"] = f"{variant.quantisation.library} {variant.quantisation.version}"
    params |= {
        "target": result.target,
        "objective": result.objective,
        "source": result.source,
        "task": result.task,
        "metric": result.metric,
    }
    return {name: _word(value) for name, value in params.items() if value is not None}


def is_param(name: str) -> bool:
    """Whether a parameter of this name is one of ours."""
    return name in PARAMS or name.startswith("variant.")


def _word(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:_LONGEST_PARAM]


def _finite(figures: dict[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if value is not None and math.isfinite(value)}


def version_tags(result: RunResult, model: str, version: int) -> dict[str, str]:
    """The tags of the registered version that holds a run's release, but for `optimize.key`.

    `model` and `version`: what it was made from. What was not measured is left out.
    """
    release = result.release
    chosen = next((variant for variant in result.variants if variant.name == result.chosen), None)
    latency, metric = (None, None) if chosen is None else (chosen.latency_ms, chosen.metric)
    tags: dict[str, str | int | float | bool | None] = {
        "optimize.source_model": model,
        "optimize.source_version": version,
        "optimize.source_digest": result.source_digest,
        "optimize.variant": result.chosen,
        "optimize.verdict": None if chosen is None else chosen.verdict,
        "optimize.p95_ms": None if latency is None else float(f"{latency.p95:.4g}"),
        "optimize.tokens_per_s": _tokens_per_s(chosen),
        "optimize.speedup": None if chosen is None or chosen.speedup is None else float(f"{chosen.speedup:.4g}"),
        "optimize.accuracy_drop": None if metric is None else float(f"{metric.drop:.4g}"),
        "optimize.metric": None if metric is None else metric.name,
        "optimize.release": None if release is None else f"{release.model}/{release.version}",
        "optimize.release_digest": None if release is None else release.digest,
        "optimize.image": result.images[-1].reference if result.images else None,
        "optimize.verified": None if release is None else release.verified,
        "optimize.job_id": result.job_id,
    }
    return {name: _word(value) for name, value in tags.items() if value is not None}


def _tokens_per_s(variant: VariantResult | None) -> float | None:
    if variant is None or not variant.generation or variant.throughput_per_s is None:
        return None
    return float(f"{variant.throughput_per_s:.4g}")
