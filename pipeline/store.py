"""The store: every finished step, found again by what decides its result.

    <store>/steps/<key>/artifact/     the artifact
    <store>/steps/<key>/step.json     what made it: stage, inputs, seconds, peak memory, when
    <store>/scratch/<pid>-…/          work in progress; left over by a dead process, it is swept
    <store>/locks/<key>               held while a step is made, so that two processes wait for one
    <store>/jobs/<job id>/            results and reports
    <store>/logs/                     what workers printed

A step is written into a scratch directory, synced and renamed into place. A crash leaves nothing half-written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from stages.artifact import Artifact, canonical_json
from stages.errors import StageError
from stages.host import versions
from stages.stage import Stage

__all__ = ["Made", "Store", "StoredStep", "default_store", "library_versions", "step_key"]


def default_store() -> Path:
    """Where finished steps are kept unless another place is named: the user's cache directory."""
    import platformdirs

    return platformdirs.user_cache_path("optimize") / "store"


@dataclass(frozen=True)
class Made:
    """What was measured while a step was made."""

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class StoredStep:
    """A finished step in the store. `cached` is false for the process that has just made it."""

    key: str
    artifact: Artifact
    made: Made
    made_at: str
    cached: bool
    about: Mapping[str, Any] = field(default_factory=dict)


def library_versions(names: tuple[str, ...]) -> dict[str, str]:
    """The installed versions of the distributions `names`; "absent" for those that are not installed."""
    return dict.fromkeys(names, "absent") | versions(names)


def step_description(
    stage: Stage, options: BaseModel, inputs: Mapping[str, Artifact], libraries: tuple[str, ...], host: str
) -> dict[str, Any]:
    """Everything that decides the result of a step; its SHA-256 is the step's key."""
    return {
        "stage": stage.name,
        "revision": stage.revision,
        "options": {"type": type(options).__name__, **options.model_dump(mode="json")},
        "inputs": {name: artifact.digest for name, artifact in inputs.items()},
        "libraries": library_versions((*stage.libraries, *libraries)),
        "host": host if stage.host_bound else None,
    }


def step_key(description: Mapping[str, Any]) -> str:
    """The key of a step: SHA-256 over the canonical JSON of its description, in hexadecimal."""
    return hashlib.sha256(canonical_json(description).encode()).hexdigest()


class Store:
    """A content-addressed store of finished steps in one directory. Any number of processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            for name in ("steps", "scratch", "locks", "jobs", "logs"):
                (path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StageError(f"the store {path} cannot be used: {error.strerror}") from error
        self._sweep()

    def find(self, key: str) -> StoredStep | None:
        """The finished step of that key, or None. A step whose files are missing or cut short counts as not there."""
        directory = self.path / "steps" / key
        try:
            about = json.loads((directory / "step.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return None  # not written by `make`, which renames only whole files into place
        artifact = Artifact.read(directory / "artifact")
        for name, size in about["sizes"].items():
            file = artifact.path / name
            if not file.is_file() or file.stat().st_size != size:
                return None
        return StoredStep(key, artifact, Made(**about["made"]), about["made_at"], True, about)

    def make(
        self,
        key: str,
        description: Mapping[str, Any],
        build: Callable[[Path], Made],
        *,
        again: bool = False,
        waiting: Callable[[], None] = lambda: None,
    ) -> StoredStep:
        """The finished step of that key: found, or made by `build(empty directory)`.

        Where another process is making it, `waiting` is called once and its result is taken. `again` makes a step
        (a volatile one) although it is there. Raises what `build` raises, and `StageError` on a full disk; then
        nothing is left behind.
        """
        with self.lock(key, waiting):
            found = None if again else self.find(key)
            if found is not None:
                return found
            try:
                with self.scratch() as scratch:
                    (scratch / "artifact").mkdir()
                    made = build(scratch / "artifact")
                    return self._keep(key, description, scratch, made)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise StageError(
                        f"no space left for the store {self.path}: free some, or choose another with --store; "
                        "nothing unfinished was kept"
                    ) from error
                raise

    def _keep(self, key: str, description: Mapping[str, Any], scratch: Path, made: Made) -> StoredStep:
        artifact = Artifact.read(scratch / "artifact")
        made_at = datetime.now(UTC).isoformat(timespec="seconds")
        about = {
            "key": key,
            "description": dict(description),
            "made": asdict(made),
            "made_at": made_at,
            "sizes": {name: (artifact.path / name).stat().st_size for name in artifact.files},
        }
        (scratch / "step.json").write_text(json.dumps(about, indent=1, sort_keys=True))
        _sync_tree(scratch)
        target = self.path / "steps" / key
        if target.exists():  # damaged, or volatile and made again
            damaged = scratch.with_name(scratch.name + ".old")
            target.rename(damaged)
            scratch.rename(target)
            shutil.rmtree(damaged)
        else:
            scratch.rename(target)
        _sync(target.parent)
        return StoredStep(key, Artifact.read(target / "artifact"), made, made_at, False, about)

    @contextlib.contextmanager
    def lock(self, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock `name` of this store; `waiting` is called once if another process has it."""
        with (self.path / "locks" / name).open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty directory on the store's file system, removed at the end if it is still there."""
        path = Path(tempfile.mkdtemp(prefix=f"{_process_name(os.getpid())}-", dir=self.path / "scratch"))
        try:
            yield path
        finally:
            if path.exists():
                shutil.rmtree(path)

    def job(self, job_id: str) -> Path:
        """The directory of a job's result and report; made if it is not there."""
        path = self.path / "jobs" / job_id
        path.mkdir(exist_ok=True)
        return path

    def _sweep(self) -> None:
        """Remove what processes that no longer live have left in the scratch folder."""
        for left in (self.path / "scratch").iterdir():
            owner = "-".join(left.name.split("-")[:2])
            pid = owner.split("-")[0]
            if not pid.isdigit() or _process_name(int(pid)) != owner:
                shutil.rmtree(left, ignore_errors=True)


def _process_name(pid: int) -> str:
    """A name that no other process has had or will have: the id, and when it started."""
    try:
        return f"{pid}-{int(psutil.Process(pid).create_time())}"
    except psutil.NoSuchProcess:
        return f"{pid}-gone"


def _sync_tree(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            _sync(Path(directory) / name)
        _sync(Path(directory))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
