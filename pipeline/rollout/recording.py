"""A rollout's run in MLflow, by way of the same spool as every other record."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import datetime
from pathlib import Path

from pipeline.records import sync
from pipeline.records.address import public, resolve
from pipeline.records.record import Entry, Record
from pipeline.records.spool import Spool
from pipeline.result import MlflowLink
from pipeline.rollout.document import RolloutResult
from stages.artifact import canonical_json

__all__ = ["record_rollout"]

_FILE = "rollout.json"


def record_rollout(result: RolloutResult, spool: Path, tracking_uri: str | None = None) -> MlflowLink:
    """Keep a rollout's decision and evidence as a run of the experiment `optimize/<model>`.

    The run has the tag `optimize.role` = `rollout`, the whole document as `rollout.json`, and as metrics what each step
    found (`rollout/…`, the step being the candidate's share in percent). A tracking server that is away leaves it in
    the spool, for `optimize records sync`; the link then says why. Raises `OSError` if the spool cannot be written.
    """
    uri = resolve(tracking_uri)
    content = result.model_dump_json(indent=1).encode()
    record = _record(result, uri, hashlib.sha256(content).hexdigest())
    link = MlflowLink(tracking_uri=public(uri), experiment=record.experiment)
    Spool(spool.absolute()).keep(record, {_FILE: content})
    for delivery in sync(spool):
        if delivery.job_id == record.job_id:
            return link.model_copy(update={"run_id": delivery.run_id, "url": delivery.url, "spooled": delivery.reason})
    return link.model_copy(update={"spooled": "another process delivers it"})


def _record(result: RolloutResult, uri: str, digest: str) -> Record:
    started_ms = int(1000 * datetime.fromisoformat(result.started_at).timestamp())
    job_id = f"rollout-{hashlib.sha256(canonical_json(result.model_dump(mode='json')).encode()).hexdigest()[:16]}"
    versions = f"{result.stable_version} to {result.candidate_version}"
    entry = Entry(
        role="job",
        name=f"{result.mode} {result.model} {versions}",
        status="KILLED" if result.interrupted else "FINISHED",
        start_ms=started_ms,
        end_ms=started_ms + int(1000 * result.seconds),
        metrics=_metrics(result),
        sweeps=_sweeps(result),
        params={
            "mode": result.mode,
            "stable_version": str(result.stable_version),
            "candidate_version": str(result.candidate_version),
        }
        | {name: str(value) for name, value in result.options.items()},
        tags={
            "optimize.job_id": job_id,
            "optimize.role": "rollout",
            "optimize.model": result.model,
            "optimize.status": result.status,
            "optimize.reason": result.reason,
            "mlflow.note.content": _note(result),
            "mlflow.source.name": "optimize rollout",
            "mlflow.source.type": "LOCAL",
        },
        files={_FILE: digest},
    )
    return Record(
        job_id=job_id,
        tracking_uri=uri,
        experiment=f"optimize/{result.model}",
        digest=digest,
        written_ms=time.time_ns() // 1_000_000,
        pid=os.getpid(),
        entries=[entry],
    )


def _metrics(result: RolloutResult) -> dict[str, float]:
    figures = {
        "rollout/promoted": float(result.status == "promoted"),
        "rollout/candidate_percent": float(result.candidate_percent),
        "rollout/seconds": result.seconds,
        "rollout/requests": float(sum(sum(step.requests.values()) for step in result.steps)),
    }
    if result.agreement is not None:
        figures |= {
            "rollout/samples": float(result.agreement.samples),
            "rollout/differing": float(result.agreement.differing),
        }
    return figures


def _sweeps(result: RolloutResult) -> list[tuple[str, int, float]]:
    points = []
    for step in result.steps:
        for measure in step.measures:
            for version, estimate in (("stable", measure.stable), ("candidate", measure.candidate)):
                if estimate.value is not None:
                    points.append((f"rollout/{measure.name}/{version}", step.candidate_percent, estimate.value))
    return points


def _note(result: RolloutResult) -> str:
    lines = [f"**{result.status.replace('_', ' ')}**: {result.reason}"]
    if result.steps:
        lines += ["", "| share | requests | verdict | why |", "|---|---|---|---|"]
        lines += [
            f"| {step.candidate_percent} % | {sum(step.requests.values())} | {step.verdict} | {step.reason} |"
            for step in result.steps
        ]
    return "\n".join(lines)
