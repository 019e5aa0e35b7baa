"""One of the things that are compared: a variant's figures, and what the store still has behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.result import BatchFigures, DataFigures, RunResult, StageFigures, VariantResult
from stages.artifact import Artifact
from stages.errors import InputError

__all__ = ["Subject", "of_release", "of_result"]

_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Subject:
    """A variant as it was measured in one job.

    `reference`: as it was asked for. `measured`: the step that its speed was measured in. `measurement` and
    `evaluation` are null where the store no longer has them. `data`: the digest of the samples that it was judged on.
    """

    reference: str
    job_id: str
    model: str
    row: VariantResult
    source_digest: str
    host: dict[str, Any]
    evidence: str
    data: str | None
    release: str | None = None
    measured: StageFigures | None = None
    measurement: Artifact | None = field(default=None, repr=False)
    evaluation: Artifact | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Short, for people: model, variant and job."""
        return f"{self.model} {self.row.name} ({self.release or self.job_id[:8]})"

    def batch(self, size: int) -> BatchFigures | None:
        """The figures at one batch size; null if it was not measured."""
        return next((batch for batch in self.row.batches if batch.batch_size == size), None)


def of_result(reference: str, result: RunResult, variant: str | None, steps: Path | None) -> Subject:
    """A variant of a result: by its name, else the one that was chosen, else the baseline.

    `steps`: the finished steps of the store that may hold what it was made of. Raises `InputError` for an unknown
    variant.
    """
    if variant is None:
        variant = result.chosen or next((row.name for row in result.variants if row.baseline), None)
    row = next((row for row in result.variants if row.name == variant), None)
    if row is None:
        names = ", ".join(row.name for row in result.variants) or "none"
        raise InputError(f"{reference}: the run {result.job_id} has no variant {variant!r}; it has {names}")
    release = result.release
    artifacts = [] if steps is None else list(_artifacts(result.stages, steps))
    measured = next((stage for stage in result.stages if stage.name == row.measurement), None)
    data = _evaluation_data(result.data)
    return Subject(
        reference=reference,
        job_id=result.job_id,
        model=result.model,
        row=row,
        source_digest=result.source_digest,
        host=dict(result.host),
        evidence=result.evidence,
        data=data,
        release=None
        if release is None or release.variant != row.name
        else f"{release.model} version {release.version}",
        measured=measured,
        measurement=next((found for key, found in artifacts if measured is not None and key == measured.key), None),
        evaluation=next((found for _, found in artifacts if _judges(found, row.digest, data)), None),
    )


def of_release(reference: str, model: str, version: int, provenance: dict[str, Any]) -> Subject:
    """A release by its own provenance alone, where the run that made it is not at hand."""
    row = VariantResult.model_validate(provenance["measured"])
    return Subject(
        reference=reference,
        job_id=str(provenance["job_id"]),
        model=model,
        row=row,
        source_digest=str(provenance["source"]["digest"]),
        host=dict(provenance["host"]),
        evidence=str(provenance["evidence"]),
        data=_evaluation_data(DataFigures.model_validate(data) for data in provenance["data"]),
        release=f"{model} version {version}",
    )


def _evaluation_data(used: Iterable[DataFigures]) -> str | None:
    return next((data.digest for data in used if data.role == "evaluation"), None)


def _artifacts(stages: list[StageFigures], steps: Path) -> Iterable[tuple[str, Artifact]]:
    for stage in stages:
        if not _KEY.fullmatch(stage.key):  # a result may come from a server, and a key is a folder's name here
            continue
        try:
            yield stage.key, Artifact.read(steps / stage.key / "artifact")
        except InputError:  # it was removed from the store, or was never in this one
            continue


def _judges(found: Artifact, model: str | None, data: str | None) -> bool:
    if found.kind != "evaluation" or model is None:
        return False
    return found.made_from.get("model") == model and found.made_from.get("data") == data
