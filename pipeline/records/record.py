"""A record: everything that MLflow is to hold of one job, as plain data."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.figures import chosen_name, in_order
from pipeline.records.names import job_metrics, sweeps, variant_metrics, variant_params
from pipeline.records.note import NOTE_LIMIT, note_of, without_folders
from pipeline.result import FallbackResult, RunResult, VariantResult
from stages.artifact import canonical_json

__all__ = [
    "MODEL_FOLDER", "Dataset", "Entry", "Model", "Record", "Status", "fallback_file", "make_record",
    "model_folder", "model_of", "result_digest",
]  # fmt: skip

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_LASTING = {
    "status",
    "job_id",
    "model",
    "source",
    "source_digest",
    "task",
    "target",
    "objective",
    "metric",
    "evidence",
    "samples",
    "data",
    "limits",
    "variants",
    "front",
    "candidates",
    "fallbacks",
    "release",
}
"""What a run that only repeats another has in common with it; times, messages and warnings may differ."""

MODEL_FOLDER = "model"
"""The files of the logged models lie in this folder beside the record."""

_MODEL_TYPE = "optimize"
"""Of a logged model that is a variant's own artifact."""

_OF_THE_MOMENT = ("load_average", "threads")
"""What a result says of its host that another run on the same machine may not."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dataset(_Part):
    """Data that a run used. MLflow takes 36 characters of digest."""

    name: str
    digest: str = Field(max_length=36)
    source: str
    context: str
    samples: int


class Model(_Part):
    """A logged model. `files`: SHA-256 by path; they lie beside the record, in `model_folder`."""

    name: str
    type: str
    params: dict[str, str]
    tags: dict[str, str]
    files: dict[str, str]


class Entry(_Part):
    """One MLflow run. `sweeps` holds name, step and value."""

    role: Literal["job", "variant"]
    variant: str = ""
    name: str
    status: Status
    start_ms: int
    end_ms: int | None
    metrics: dict[str, float]
    sweeps: list[tuple[str, int, float]] = []
    params: dict[str, str]
    tags: dict[str, str]
    datasets: list[Dataset] = []
    files: dict[str, str] = {}
    """SHA-256 of the artifact files by name; they lie beside the record."""
    model: Model | None = None
    """What its figures are of, with the files that were published."""

    @property
    def digest(self) -> str:
        """32 hexadecimal digits: whether a run already holds this."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()[:32]


class Record(_Part):
    """What one job leaves: the job's entry first, then the variants'. `digest` is that of the result it was made of."""

    format: Literal[1] = 1
    job_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    tracking_uri: str
    experiment: str
    digest: str
    written_ms: int
    pid: int
    entries: list[Entry]

    @property
    def running(self) -> bool:
        """Whether the run was still going on when this was written."""
        return self.entries[0].status == "RUNNING"

    def killed(self) -> Record:
        """The record of a run that ended without a word."""
        job = self.entries[0].model_copy(update={"status": "KILLED", "end_ms": self.written_ms})
        return self.model_copy(update={"entries": [job, *self.entries[1:]]})


def result_digest(result: RunResult) -> str:
    """Whether two results would leave the same record: SHA-256 over what lasts of it."""
    lasting = json.loads(result.model_dump_json(include=_LASTING))
    if lasting["release"] is not None:
        del lasting["release"]["new"]
    return hashlib.sha256(canonical_json(lasting).encode()).hexdigest()


def model_folder(variant: str) -> str:
    """Where beside the record the files of a variant's logged model lie."""
    return f"{MODEL_FOLDER}/{hashlib.sha256(variant.encode()).hexdigest()[:16]}"


def fallback_file(told: FallbackResult) -> str:
    """What the artifact file is called that tells of a search for operators to return to higher precision."""
    return f"fallback-{told.variant}.json"


def make_record(
    result: RunResult,
    tracking_uri: str,
    files: dict[str, str],
    running: bool = False,
    models: Mapping[str, Mapping[str, str]] | None = None,
) -> Record:
    """The record of a result. `files`: SHA-256 of the artifact files by name. Those of fallback go to the variants that
    they tell of, the others to the job. `models`: the same of the files of the variants' logged models, by variant."""
    now = time.time_ns() // 1_000_000
    start = now
    if result.started_at is not None:
        start = int(1000 * datetime.fromisoformat(result.started_at).timestamp())
    end = max(start, start + int(1000 * result.seconds)) if result.seconds else now
    datasets = [
        Dataset(name=data.name, digest=data.digest[:32], source=data.source, context=data.role, samples=data.samples)
        for data in result.data
    ]
    chosen = next((variant for variant in result.variants if variant.name == chosen_name(result)), None)
    finished: Status = "FAILED" if result.status == "failed" else "FINISHED"
    told = {fallback_file(fallback): fallback for fallback in result.fallbacks}
    job = Entry(
        role="job",
        name=f"{result.model} {result.job_id[:8]}",
        status="RUNNING" if running else finished,
        start_ms=start,
        end_ms=None if running else end,
        metrics=job_metrics(result, chosen),
        params=variant_params(result, chosen),
        tags=_common_tags(result) | _job_tags(result, running),
        datasets=datasets,
        files={name: digest for name, digest in files.items() if name not in told},
    )
    variants = in_order(result)
    entries = [
        Entry(
            role="variant",
            variant=variant.name,
            name=variant.name,
            status=_variant_status(variant),
            # Lists show the newest first: the variants in their order, the job below them.
            start_ms=start + len(variants) - place,
            end_ms=start + len(variants),
            metrics=variant_metrics(result, variant),
            sweeps=sweeps(variant),
            params=variant_params(result, variant),
            tags=_common_tags(result) | _variant_tags(result, variant),
            datasets=[data for data in datasets if data.context == "evaluation" or variant.calibrated],
            files={
                name: files[name]
                for name, fallback in told.items()
                if name in files and variant.name in (fallback.variant, fallback.found)
            },
            model=model_of(result, variant, models[variant.name]) if models and variant.name in models else None,
        )
        for place, variant in enumerate(variants)
    ]
    return Record(
        job_id=result.job_id,
        tracking_uri=tracking_uri,
        experiment=f"optimize/{result.model}",
        digest=result_digest(result),
        written_ms=now,
        pid=os.getpid(),
        entries=[job, *entries],
    )


def model_of(result: RunResult, variant: VariantResult, files: Mapping[str, str]) -> Model:
    """The logged model of a variant. `files`: SHA-256 by path; those of its release if it is the one published."""
    release = result.release if variant.name == chosen_name(result) else None
    tags = {
        "optimize.job_id": result.job_id,
        "optimize.variant": variant.name,
        "optimize.verdict": variant.verdict,
        "optimize.source_digest": result.source_digest,
        "optimize.model_digest": variant.digest,
        "optimize.files": hashlib.sha256(canonical_json(dict(files)).encode()).hexdigest(),
    }
    name = f"{result.model}-{variant.name}"
    if release is not None:
        name = f"{release.model}-{release.version}-{variant.name}"
        tags |= {
            "optimize.release": f"{release.model}/{release.version}",
            "optimize.release_digest": release.digest,
            "optimize.verified": str(release.verified).lower(),
        }
    return Model(
        name=re.sub(r"[/:.%\"']", "-", name),  # MLflow takes none of these
        type=_MODEL_TYPE if release is None else "triton",
        params=variant_params(result, variant),
        tags={name: value for name, value in tags.items() if value is not None},
        files=dict(files),
    )


def _variant_status(variant: VariantResult) -> Status:
    return {"error": "FAILED", "not_run": "KILLED"}.get(variant.verdict, "FINISHED")  # type: ignore[return-value]


def _common_tags(result: RunResult) -> dict[str, str]:
    tags: dict[str, Any] = {
        "optimize.job_id": result.job_id,
        "optimize.model": result.model,
        "optimize.source_digest": result.source_digest,
        "optimize.cpu": result.host.get("cpu"),
        "optimize.host": _short({name: value for name, value in result.host.items() if name not in _OF_THE_MOMENT}),
        "optimize.libraries": _short(result.libraries),
        "mlflow.source.name": "optimize",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }
    return {name: str(value) for name, value in tags.items() if value}


def _short(value: Mapping[str, Any]) -> str | None:
    return hashlib.sha256(canonical_json(dict(value)).encode()).hexdigest()[:16] if value else None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return None


def _job_tags(result: RunResult, running: bool) -> dict[str, str]:
    release = result.release
    tags = {
        "optimize.role": "job",
        "optimize.status": "running" if running else result.status,
        "optimize.chosen": chosen_name(result),
        "mlflow.note.content": note_of(result, running),
    }
    if release is not None:
        tags |= {
            "optimize.release": f"{release.model}/{release.version}",
            "optimize.release_digest": release.digest,
            "optimize.repository": release.repository,
            "optimize.verified": str(release.verified).lower(),
        }
    return {name: value for name, value in tags.items() if value is not None}


def _variant_tags(result: RunResult, variant: VariantResult) -> dict[str, str]:
    tags = {
        "optimize.role": "variant",
        "optimize.variant": variant.name,
        "optimize.verdict": variant.verdict,
        "optimize.reason": variant.reason and without_folders(variant.reason)[:NOTE_LIMIT],
        "optimize.baseline": str(variant.baseline).lower(),
        "optimize.front": str(variant.name in result.front).lower() if result.front else None,
        "optimize.chosen": str(variant.name == chosen_name(result)).lower(),
        "optimize.model_digest": variant.digest,
    }
    return {name: value for name, value in tags.items() if value is not None}
