"""Recording a run: kept on disk first, then delivered; what cannot be delivered waits for `sync`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.records.address import page_of, public, resolve, run_exists
from pipeline.records.courier import Answer, Courier
from pipeline.records.model_files import Models, model_files
from pipeline.records.record import MODEL_FOLDER, Record, fallback_file, make_record, model_folder, result_digest
from pipeline.records.spool import Receipt, Spool
from pipeline.result import MlflowLink, RunResult
from stages.artifact import file_digest

__all__ = ["Delivery", "Recorder", "sync"]

TIMEOUT_S = 60.0
"""How long a delivery may take before the run goes on without it; a model's files have their own time."""

_SLOWEST_BYTES_PER_S = 5_000_000


@dataclass(frozen=True)
class Delivery:
    """What came of delivering one record: `run_id` of the job's run, or the `reason` why it still waits."""

    job_id: str
    tracking_uri: str
    run_id: str | None
    url: str | None
    reason: str | None
    silent: bool = False
    """The tracking URI gave no answer at all: another attempt would only take as long again."""


class Recorder:
    """Records runs at one tracking URI (default: `MLFLOW_TRACKING_URI`, else `mlflow.db` here), by way of a spool.

    `models`: of which variants the files are kept in MLflow too, as logged models.
    """

    def __init__(
        self,
        spool: Path,
        tracking_uri: str | None = None,
        timeout_s: float = TIMEOUT_S,
        models: Models = "published",
    ) -> None:
        self.tracking_uri = resolve(tracking_uri)
        self._models = models
        self._steps = spool.absolute().parent / "steps"  # the spool lies in the store
        self._spool = Spool(spool.absolute())
        self._courier = Courier(self.tracking_uri, self._spool.path)
        self._timeout_s = timeout_s
        self._gave_up: str | None = None
        self._earlier: dict[str, Path] = {}

    def start(self) -> None:
        """Begin to import MLflow in the child process. Recording works without, only later."""
        self._courier.start()

    def close(self) -> None:
        """End the child process."""
        self._courier.close()

    def known(self, result: RunResult) -> MlflowLink | None:
        """Where this very result is on record already, found in milliseconds and without MLflow; null if in doubt."""
        receipt = self._spool.receipt(result.job_id, self.tracking_uri)
        if receipt is None or receipt.digest != result_digest(result):
            return None
        if not run_exists(self.tracking_uri, receipt.run_id):
            return None
        return MlflowLink(
            tracking_uri=public(self.tracking_uri),
            experiment=receipt.experiment,
            run_id=receipt.run_id,
            url=receipt.url,
        )

    def deliver(
        self,
        result: RunResult,
        *,
        running: bool = False,
        report: Path | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> MlflowLink:
        """Record a result, with its report and further artifact `files` by name.

        `running`: it is not finished yet, and a second delivery will say how it ended. Raises nothing that MLflow or a
        full disk has against it: `spooled` of the link says why the record is not delivered.
        """
        contents = _artifacts(result, report, files or {})
        digests = {name: _digest(content) for name, content in contents.items()}
        models = {} if running else model_files(result, self._models, self._steps)
        record = make_record(
            result,
            self.tracking_uri,
            digests,
            running,
            {variant: {name: digest for name, (_, digest) in files.items()} for variant, files in models.items()},
        )
        for variant, model in models.items():
            contents |= {f"{model_folder(variant)}/{name}": path for name, (path, _) in model.items()}
        link = MlflowLink(tracking_uri=public(self.tracking_uri), experiment=record.experiment)
        try:
            place = self._spool.keep(record, contents)
        except OSError as error:
            return link.model_copy(update={"spooled": f"the record could not be kept in {self._spool.path}: {error}"})
        if result.job_id in self._earlier:
            self._spool.drop(self._earlier[result.job_id])  # the new record says all that it said
        self._earlier[result.job_id] = place
        if self._gave_up is not None:
            delivery = _failed(self._spool, place, record, self._gave_up)
        else:
            delivery = _hand_over(self._courier, self._spool, place, record, self._timeout_s)
            if delivery.silent:
                self._gave_up = delivery.reason
        return link.model_copy(update={"run_id": delivery.run_id, "url": delivery.url, "spooled": delivery.reason})


def sync(spool: Path, timeout_s: float = TIMEOUT_S) -> list[Delivery]:
    """Deliver what waits in a spool, each record to the tracking URI it was made for; the oldest first."""
    kept = Spool(spool.absolute())
    couriers: dict[str, Courier] = {}
    silent: dict[str, str] = {}
    deliveries = []
    try:
        for waiting in kept.waiting():
            uri = waiting.record.tracking_uri
            if uri in silent:
                deliveries.append(_failed(kept, waiting.path, waiting.record, silent[uri]))
                continue
            record, path = waiting.record, waiting.path
            if record.running:
                record = record.killed()
                kept.rewrite(path, record)
            courier = couriers.setdefault(uri, Courier(uri, kept.path))
            delivery = _hand_over(courier, kept, path, record, timeout_s)
            deliveries.append(delivery)
            if delivery.silent and delivery.reason is not None:
                silent[uri] = delivery.reason
    finally:
        for courier in couriers.values():
            courier.close()
    return deliveries


def _hand_over(courier: Courier, spool: Spool, place: Path, record: Record, timeout_s: float) -> Delivery:
    size = sum(file.stat().st_size for file in (place / MODEL_FOLDER).rglob("*") if file.is_file())
    answer: Answer = courier.deliver(place, timeout_s + size / _SLOWEST_BYTES_PER_S)
    if answer.run_id is None or answer.experiment_id is None:
        return _failed(spool, place, record, answer.reason or "MLflow gave no run", answer.silent)
    url = page_of(record.tracking_uri, answer.experiment_id)
    if not record.running:  # the record of a run that goes on stays: it says more than was delivered of it
        receipt = Receipt(
            job_id=record.job_id,
            tracking_uri=record.tracking_uri,
            experiment=record.experiment,
            digest=record.digest,
            written_ms=record.written_ms,
            run_id=answer.run_id,
            url=url,
        )
        with contextlib.suppress(OSError):  # a full disk; without it the same job is merely delivered again
            spool.acknowledge(receipt)
        spool.drop(place)
    return Delivery(record.job_id, public(record.tracking_uri), answer.run_id, url, None)


def _failed(spool: Spool, place: Path, record: Record, reason: str, silent: bool = False) -> Delivery:
    spool.explain(place, reason)
    return Delivery(record.job_id, public(record.tracking_uri), None, None, reason, silent)


def _artifacts(result: RunResult, report: Path | None, files: Mapping[str, Path]) -> dict[str, Path | bytes]:
    """The artifact files: the result, what it was measured on, the report, and what fallback has tried."""
    recorded = result.model_copy(update={"report": None if report is None else "report.html"})
    surroundings = {"host": result.host, "libraries": result.libraries}
    contents: dict[str, Path | bytes] = {
        "result.json": recorded.model_dump_json(indent=1).encode(),
        "environment.json": json.dumps(surroundings, indent=1, sort_keys=True).encode(),
        **{fallback_file(told): told.model_dump_json(indent=1).encode() for told in result.fallbacks},
        **files,
    }
    if report is not None:
        contents["report.html"] = report
    return contents


def _digest(content: Path | bytes) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_digest(content)
