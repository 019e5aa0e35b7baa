"""The result of a run: the document that `--json` prints, and that table, report and records are made from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.searched import CandidateResult
from stages.language.checkpoint import Quantisation

__all__ = [
    "BatchFigures", "DataFigures", "FallbackResult", "FallbackTrial", "GenerationFigures", "GroupEffect", "ImageResult",
    "Interval",    "KeptGroup", "Latency", "MetricFigures", "MlflowLink", "Ratio", "Release", "RunResult",
    "StageFigures", "Status", "TaskFigures", "VariantResult", "Verdict",
]  # fmt: skip

Status = Literal["published", "none_passed", "failed"]
Verdict = Literal["pass", "fail", "inconclusive", "error", "not_run"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Latency(_Document):
    """Milliseconds for one batch, with the 95 % interval of each percentile."""

    p50: float
    p50_low: float
    p50_high: float
    p95: float
    p95_low: float
    p95_high: float
    p99: float
    p99_low: float
    p99_high: float


class Ratio(_Document):
    """How many times faster than the baseline, turn by turn, with its 95 % interval (null: fewer than six turns)."""

    value: float
    low: float | None
    high: float | None


class BatchFigures(_Document):
    """One batch size of one variant. `settled`: the median's relative interval came under the limit in time. `beside`:
    how many times as fast it is as the variant that the row's `beside` names."""

    batch_size: int
    latency_ms: Latency
    throughput_per_s: float
    calls: int
    relative_interval: float
    settled: bool
    speedup: Ratio | None = None
    beside: Ratio | None = None


class Interval(_Document):
    """A figure with its two-sided 95 % interval."""

    value: float
    low: float
    high: float


class MetricFigures(_Document):
    """A task metric. `drop` is relative to the baseline, as a fraction; `drop_upper` its one-sided 95 % bound."""

    name: str
    value: float
    low: float
    high: float
    drop: float
    drop_upper: float


class TaskFigures(MetricFigures):
    """A task of a suite: its `name`, how its metric does over `samples` samples, and how far it dropped."""

    task: str
    samples: int
    verdict: Verdict


class GenerationFigures(_Document):
    """A language model's requests of one shape: `batch_size` prompts of `prompt_tokens` tokens at once (null: as long
    as the documents are), each answered with `new_tokens`.

    `ttft_ms`: time to the first token. `tpot_ms`: time for each token after it. Tokens a second are those of all
    prompts together.
    """

    batch_size: int
    prompt_tokens: int | None
    new_tokens: int
    ttft_ms: Latency
    tpot_ms: Latency
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    requests: int


class KeptGroup(_Document):
    """A group of operators that stayed in higher precision, though its variant could quantise it.

    `operators` by the names of their outputs in the graph, as `exclude` names them.
    """

    name: str
    operators: list[str]


class VariantResult(_Document):
    """What is known of one variant. Figures are null where they were not measured."""

    name: str
    baseline: bool = False
    runtime: str = "onnxruntime"
    precision: str
    parameters: dict[str, str | int | float | bool] = {}
    """How it was made: `method`, `block_size`, `observer`, …, those that its type has."""
    calibrated: bool = False
    """Whether it learnt from the calibration data."""
    fused: bool | None = None
    fused_speedup: float | None = None
    """How much faster the fused graph ran than the unfused one in this variant, whichever was taken; null: no race."""
    form: str | None = None
    """What the chosen form is called in the measurement: the variant's name, or that with `+fused`."""
    measurement: str | None = None
    """The step that its speed was measured in, beside the baseline. Times of two measurements cannot be compared."""
    beside: str | None = None
    """Of a variant that was measured after the others: the best one until then, if not the baseline, which was measured
    again with it. By that they are compared: a busy machine may slow one kind of arithmetic more than another."""
    verdict: Verdict
    reason: str | None = None
    samples_needed: int | None = None
    size_bytes: int | None = None
    peak_memory_bytes: int | None = None
    cold_start_ms: float | None = None
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    speedup: float | None = None
    batches: list[BatchFigures] = []
    generation: list[GenerationFigures] = []
    """Of a language model: prefill and decode apart, by batch size and length of the prompt."""
    quantisation: Quantisation | None = None
    """Of a language model's checkpoint."""
    fidelity: dict[str, Interval] = {}
    """`cosine`, `agreement`, `relative_error`, each against the baseline's outputs."""
    metric: MetricFigures | None = None
    tasks: list[TaskFigures] = []
    """Of a language model, where the recipe names a suite."""
    kept: list[KeptGroup] = []
    """What fallback returned to higher precision, the most sensitive group first."""
    quantised_operators: int | None = None
    """How many operators are quantised, of the `operators` that have constant weights; null where nobody looked."""
    operators: int | None = None
    digest: str | None = None


class GroupEffect(_Document):
    """What quantising one group of operators alone does to the model's outputs.

    `operators` by the names of their outputs. `effect`: noise power over signal power (0: none). `sqnr_db`: the same as
    a signal-to-quantisation-noise ratio in decibels, within ±120. `cosine_error`: 1 - cosine, null for single numbers.
    `kept`: whether it stays in higher precision in the variant that was found.
    """

    name: str
    operators: list[str]
    effect: float
    sqnr_db: float
    cosine_error: float | None = None
    kept: bool = False


class FallbackTrial(_Document):
    """One evaluation of a search: the `groups` most sensitive groups, `operators` operators, in higher precision."""

    groups: int
    operators: int
    verdict: Verdict
    reason: str | None = None


class FallbackResult(_Document):
    """The search for the fewest groups of operators to return to higher precision in a variant that failed its gate.

    `found` names the variant that came of it (`int8-static+fallback`, a row of its own in `variants`), null if none
    did. `reason` says in words how it ended. `sensitivity` has every group that the variant quantises, the most
    sensitive first; it is empty if they could not be ranked. `trials` in the order in which they were made.
    """

    variant: str
    found: str | None = None
    reason: str
    trials: list[FallbackTrial] = []
    sensitivity: list[GroupEffect] = []
    samples: int = 0
    """On so many the sensitivity was measured."""


class StageFigures(_Document):
    """One step of the run. Seconds and memory of a cached step are those of the run that made it."""

    name: str
    key: str
    cached: bool
    seconds: float
    cpu_seconds: float | None = None
    """Of the step's worker and all its children."""
    peak_memory_bytes: int | None = None
    measured_at: str | None = None
    """For measurements: when they were taken (ISO 8601, UTC), also when they are reused."""
    measured_on: str | None = None
    """For measurements: the host they were taken on, also when they are reused."""


class DataFigures(_Document):
    """Data that the run used. `source` is what the recipe named; `digest` the SHA-256 of the samples made from it."""

    role: Literal["calibration", "evaluation"]
    name: str
    source: str
    digest: str
    samples: int


class Release(_Document):
    """A published version. `new` is false when this very release was there already."""

    repository: str
    model: str
    version: int
    variant: str
    digest: str
    verified: bool
    new: bool = True


class ImageResult(_Document):
    """A container image of the release. `reference` names it by digest: what to deploy."""

    kind: Literal["model", "serving"]
    reference: str
    tag: str
    digest: str
    platform: str
    size_bytes: int
    sent_bytes: int


class MlflowLink(_Document):
    """Where the run is recorded. `run_id` is null while the record waits in the spool."""

    tracking_uri: str
    experiment: str
    run_id: str | None = None
    url: str | None = None
    spooled: str | None = None


class RunResult(_Document):
    """The whole run."""

    status: Status
    exit_code: int
    """What `optimize run` exits with: 0 published, 3 none passed, 4 a stage failed, 5 something is missing here."""
    message: str
    job_id: str
    model: str
    source: str
    source_digest: str
    task: str
    target: str
    objective: str
    metric: str | None = None
    evidence: str
    """What accuracy was judged on, in words."""
    samples: int
    data: list[DataFigures] = []
    limits: dict[str, float] = {}
    """The gate's limits by their names in the recipe: `max_drop`, `min_cosine`, `min_agreement`, `max_p99`, …"""
    chosen: str | None = None
    """The variant that was selected; known before it is published."""
    release: Release | None = None
    images: list[ImageResult] = []
    """Where the recipe asks for images, those that were made of the release."""
    variants: list[VariantResult] = []
    front: list[str] = []
    """The Pareto front: the variants that passed and that no other one that passed beats in speed, size and nearness to
    the baseline together, as far as their intervals tell."""
    candidates: list[CandidateResult] = []
    """With `variants: auto`, what the search thought of, and how far it went with each."""
    fallbacks: list[FallbackResult] = []
    """For every quantised variant that failed its accuracy gate, what was tried to bring it through."""
    stages: list[StageFigures] = []
    mlflow: MlflowLink | None = None
    report: str | None = None
    host: dict[str, str | int | float | list[str] | None] = {}
    libraries: dict[str, str] = {}
    warnings: list[str] = []
    started_at: str | None = None
    """When the run began (ISO 8601, UTC)."""
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
