"""The comparison: what is compared, and how each differs from the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.compare.difference import Difference, differences
from pipeline.compare.find import Finder
from pipeline.compare.reference import parse
from pipeline.compare.subject import Subject
from pipeline.result import Interval, Latency, MetricFigures, Ratio, Verdict
from stages.errors import InputError

__all__ = ["Compared", "Comparison", "compare"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Compared(_Document):
    """One of those that are compared, with the figures of its own measurement. `speedup` is over its own baseline."""

    reference: str
    name: str
    job_id: str
    model: str
    variant: str
    baseline: bool
    verdict: Verdict
    release: str | None
    measured_at: str | None
    measured_on: str | None
    latency_ms: Latency | None
    throughput_per_s: float | None
    speedup: Ratio | None
    metric: MetricFigures | None
    fidelity: dict[str, Interval]
    size_bytes: int | None
    peak_memory_bytes: int | None
    evidence: str


class Comparison(_Document):
    """What `optimize compare --json` prints. Every difference is from the first of `compared`; latency and speed are
    those of `batch_size`."""

    batch_size: int
    compared: list[Compared]
    differences: list[Difference]


def compare(references: Sequence[str], store: Path, tracking_uri: str | None = None) -> Comparison:
    """Compare what `references` name (see `pipeline.compare.reference.parse`), each with the first of them.

    A single one is compared with what it was measured beside: of a job all variants, else the baseline. Raises
    `InputError` for what is not there or was never measured, `RequirementError` if MLflow is needed and does not
    answer.
    """
    finder = Finder(store, tracking_uri)
    wanted = [parse(text) for text in references]
    if len(set(references)) < len(references):
        raise InputError(f"one of {', '.join(references)} is named twice")
    subjects = finder.everything(wanted[0]) if len(wanted) == 1 else [finder.find(one) for one in wanted]
    if len(subjects) < 2:
        raise InputError(f"{references[0]} holds nothing that was measured beside another: name a second one")
    first = subjects[0]
    batch = _batch(subjects)
    return Comparison(
        batch_size=batch,
        compared=[_compared(subject, batch) for subject in subjects],
        differences=[one for subject in subjects[1:] for one in differences(first, subject, batch)],
    )


def _batch(subjects: Sequence[Subject]) -> int:
    """The batch size that all were measured at: the first one's own first, if the others have it."""
    sizes = [{batch.batch_size for batch in subject.row.batches} for subject in subjects]
    own = [batch.batch_size for batch in subjects[0].row.batches]
    shared = [size for size in own if all(size in measured for measured in sizes)]
    return (shared or own or [1])[0]


def _compared(subject: Subject, size: int) -> Compared:
    row, measured, batch = subject.row, subject.measured, subject.batch(size)
    return Compared(
        reference=subject.reference,
        name=subject.name,
        job_id=subject.job_id,
        model=subject.model,
        variant=row.name,
        baseline=row.baseline,
        verdict=row.verdict,
        release=subject.release,
        measured_at=None if measured is None else measured.measured_at,
        measured_on=None if measured is None else measured.measured_on,
        latency_ms=None if batch is None else batch.latency_ms,
        throughput_per_s=None if batch is None else batch.throughput_per_s,
        speedup=None if batch is None else batch.speedup,
        metric=row.metric,
        fidelity=row.fidelity,
        size_bytes=row.size_bytes,
        peak_memory_bytes=row.peak_memory_bytes,
        evidence=subject.evidence,
    )
