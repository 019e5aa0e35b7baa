"""The spool: records on disk until they are delivered, and receipts of those that were.

    <spool>/waiting/<job>-<server>-<random>/   record.json and the artifact files
    <spool>/receipts/<job>-<server>.json       the last delivery of a finished job
    <spool>/locks/<job>-<server>               held by the process that delivers

A record is written into a scratch directory, synced and renamed into place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.records.record import Record
from stages.artifact import link

__all__ = ["RECORD", "Receipt", "Spool", "Waiting", "key_of", "lock_path"]

RECORD = "record.json"
_REASON = "reason.txt"


class Receipt(BaseModel):
    """What is known of a job that was delivered. `digest` is that of its result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    tracking_uri: str
    experiment: str
    digest: str
    written_ms: int
    run_id: str
    url: str | None


@dataclass(frozen=True)
class Waiting:
    """A record that waits, and where it lies. `reason` says why its last delivery failed."""

    path: Path
    record: Record
    reason: str | None


def key_of(job_id: str, tracking_uri: str) -> str:
    """Names a job at one tracking server; a URI may hold a password, so only its hash is seen."""
    return f"{job_id}-{hashlib.sha256(tracking_uri.encode()).hexdigest()[:8]}"


def lock_path(record_path: Path, record: Record) -> Path:
    """The lock of a record that lies at `record_path`."""
    return record_path.parent.parent / "locks" / key_of(record.job_id, record.tracking_uri)


class Spool:
    """The spool in the directory `path`, which is made when something is first kept in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, record: Record, files: Mapping[str, Path | bytes]) -> Path:
        """Write a record and its artifact files; files are hard-linked, bytes written. Returns where it lies.

        Raises `OSError`.
        """
        for folder in ("waiting", "receipts", "locks"):
            (self.path / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()
        scratch = Path(tempfile.mkdtemp(prefix=f".scratch-{os.getpid()}-", dir=self.path))
        try:
            for name, content in files.items():
                if isinstance(content, bytes):
                    _write(scratch / name, content)
                else:
                    link(content, scratch / name)
            _write(scratch / RECORD, record.model_dump_json(indent=1).encode())
            _sync(scratch)
            place = self.path / "waiting" / f"{key_of(record.job_id, record.tracking_uri)}-{uuid.uuid4().hex[:12]}"
            scratch.rename(place)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        _sync(place.parent)
        return place

    def rewrite(self, path: Path, record: Record) -> None:
        """Put another record in the place of the one at `path`; its files stay."""
        scratch = path / f".{RECORD}"
        _write(scratch, record.model_dump_json(indent=1).encode())
        scratch.replace(path / RECORD)

    def explain(self, path: Path, reason: str) -> None:
        """Write beside a record why it still waits."""
        with contextlib.suppress(OSError):  # a full disk, or another process has delivered it in the meantime
            (path / _REASON).write_text(reason + "\n")

    def drop(self, path: Path) -> None:
        """Take a record away: it was delivered, or a later one says more."""
        shutil.rmtree(path, ignore_errors=True)

    def acknowledge(self, receipt: Receipt) -> None:
        """Keep a receipt in place of the job's last one."""
        target = self._receipt_path(receipt.job_id, receipt.tracking_uri)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        _write(scratch, receipt.model_dump_json(indent=1).encode())
        scratch.replace(target)

    def receipt(self, job_id: str, tracking_uri: str) -> Receipt | None:
        """The job's last receipt; null if it has none that can be read."""
        try:
            return Receipt.model_validate_json(self._receipt_path(job_id, tracking_uri).read_bytes())
        except (OSError, ValidationError):
            return None

    def waiting(self) -> list[Waiting]:
        """What should be delivered, the oldest first: of each job the latest record, unless a receipt is later yet.

        What those supersede is dropped. The record of a run that is still going on is left to it; that of a run that
        ended without a word comes as `killed`.
        """
        latest: dict[str, Waiting] = {}
        for path in sorted((self.path / "waiting").glob("*")):
            found = _read(path)
            if found is None:
                continue
            record = found.record
            if record.running and psutil.pid_exists(record.pid):
                continue
            key = key_of(record.job_id, record.tracking_uri)
            receipt = self.receipt(record.job_id, record.tracking_uri)
            other = latest.get(key)
            if receipt is not None and receipt.written_ms > record.written_ms:
                self.drop(path)
            elif other is None or other.record.written_ms < record.written_ms:
                if other is not None:
                    self.drop(other.path)
                latest[key] = found
            else:
                self.drop(path)
        return sorted(latest.values(), key=lambda waiting: waiting.record.written_ms)

    def _sweep(self) -> None:
        """Take away what killed processes left half-written."""
        for path in self.path.glob(".scratch-*"):
            if not psutil.pid_exists(int(path.name.split("-")[1])):
                shutil.rmtree(path, ignore_errors=True)

    def _receipt_path(self, job_id: str, tracking_uri: str) -> Path:
        return self.path / "receipts" / f"{key_of(job_id, tracking_uri)}.json"


def _read(path: Path) -> Waiting | None:
    try:
        record = Record.model_validate_json((path / RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None  # delivered by another process in the meantime
    except ValidationError as error:
        raise ValueError(f"{path / RECORD} is not a record ({error}); move {path} away") from error
    reason = path / _REASON
    return Waiting(path, record, reason.read_text().strip() if reason.is_file() else None)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
