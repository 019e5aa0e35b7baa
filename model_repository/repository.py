"""A model repository on disk: releases that are published whole, switched atomically and gone back to exactly."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_repository.config import for_version, read, served_versions, to_text
from model_repository.durable import file_digest, place, sync_tree, write_file
from model_repository.engine import located
from model_repository.errors import RepositoryError
from model_repository.history import HISTORY, Event, History
from model_repository.layout import CONFIG, PROVENANCE, check_name, check_version, numbers, tree_digest, tree_files
from model_repository.lock import LOCK, Incoming, locked, reading
from model_repository.release import provenance_json, servable
from model_repository.switch import RELEASE, recover, switch

__all__ = ["Published", "Repository", "VersionInfo"]


@dataclass(frozen=True)
class Published:
    """A release in the repository. `new` is false when the current version was this very release already."""

    model: str
    version: int
    digest: str
    new: bool


@dataclass(frozen=True)
class VersionInfo:
    """A version that the repository holds. `published_at` and `digest` are None for one that was put there by hand."""

    version: int
    current: bool
    published_at: str | None
    digest: str | None
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Repository:
    """A directory that Triton serves models from.

    ::

        repository/<model>/config.pbtxt      the current release's configuration: serves that version and no other
        repository/<model>/<N>/              one release, complete in itself and never changed:
            config.pbtxt                       its own configuration, byte for byte what lies above while it is current
            model.onnx, …                      what its backend loads
            assets/, labels.txt                what its clients need; the configuration refers to `<N>/labels.txt`
            provenance.json                    what it was made from, when, and the SHA-256 of its files
        repository/<model>/.history.json     which version was current when
        repository/<model>/.lock             held by the writer for a moment, and by readers
        repository/<model>/.incoming-*/      a release being gathered; the next writer removes it if its writer died

    A release is gathered in a hidden directory, flushed to the disk and renamed into place; then `config.pbtxt` is
    replaced. A crash at any point leaves the old state or the new one. Two writers never get the same number, numbers
    leave no gap, and the number of a removed version is not given again. Hand-made changes of a model's `config.pbtxt`
    last until the next switch: what counts is the release's own.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    def __repr__(self) -> str:
        return f"Repository({str(self.path)!r})"

    # Reading

    def models(self) -> list[str]:
        """The names of the models. Raises `RepositoryError` if the repository does not exist."""
        if not self.path.is_dir():
            raise RepositoryError(f"there is no model repository at {self.path}")
        return sorted(entry.parent.name for entry in self.path.glob(f"[!.]*/{CONFIG}"))

    def directory(self, model: str, version: int | None = None) -> Path:
        """Where a version lies (by default the current one). Raises `RepositoryError` if there is no such version."""
        home = self._home(model)
        with reading(home):
            version, _ = self._find(model, version)
        return home / str(version)

    def versions(self, model: str) -> list[VersionInfo]:
        """All versions of a model in the order of their numbers."""
        home = self._home(model)
        with reading(home):
            existing, current = self._state(home)
            return [self._info(home, version, current) for version in existing]

    def current(self, model: str) -> int | None:
        """The version that Triton serves, the highest if it serves several; None if it serves none."""
        home = self._home(model)
        with reading(home):
            return self._state(home)[1]

    def verify(self, model: str, version: int | None = None) -> VersionInfo:
        """Hash a version's files again (by default the current version's) and compare with what was published.

        Raises `RepositoryError` naming the first file that is missing or has changed. For the current version this
        includes the configuration that Triton reads.
        """
        home = self._home(model)
        with reading(home):
            version, current = self._find(model, version)
            info = self._info(home, version, current)
            live = (home / CONFIG).read_bytes() if info.current else None
        for name, digest in self._recorded(home, info).items():
            file = home / str(version) / name
            if not file.is_file():
                raise RepositoryError(f"{file} is missing from its release")
            if file_digest(file) != digest:
                raise RepositoryError(f"{file} has changed since it was published")
        if live is not None and live != (home / str(version) / CONFIG).read_bytes():
            raise RepositoryError(
                f"{home / CONFIG} is not the configuration of version {version}; `promote` it to restore that"
            )
        return info

    # Writing

    def publish(
        self, model: str, tree: str | Path, provenance: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    ) -> Published:
        """Make `tree` the next version of `model` and the one that Triton serves.

        `tree` holds `config.pbtxt` (its version policy is replaced) and the files that its backend loads. They are
        hard-linked where the file system can do that, else copied, so they must not be changed in place afterwards.
        `provenance` is JSON and is kept beside them, with `release` (model, version, digest, files by SHA-256) and
        `published_at` added; a function is called for it only if there is something to publish. If the current version
        has the same files, nothing is written.

        Raises `RepositoryError` if the tree cannot be served or cannot be written (a full disk); nothing has changed
        then.
        """
        check_name(model)
        tree = Path(tree)
        config = servable(model, tree)
        if not callable(provenance):
            provenance_json(provenance)  # refused now rather than when everything is in place
        files = tree_files(tree)
        digest = tree_digest(files)
        by_version = {CONFIG, *located(config, tree, model, 0)}
        home = self.path / model
        with self._or_unchanged(model, "published"):
            with locked(home):
                recover(home)
                if (same := self._same(home, digest)) is not None:
                    return Published(model, same, digest, new=False)
                incoming = Incoming(home)
            with incoming:  # the long part, without the lock
                own = incoming.path / RELEASE
                own.mkdir()
                for name in files.keys() - by_version:
                    place(tree / name, own / name)
                given = provenance() if callable(provenance) else provenance
                provenance_json(given)
                with locked(home):
                    recover(home)
                    if (same := self._same(home, digest)) is not None:
                        return Published(model, same, digest, new=False)
                    version = max([*numbers(home), History.read(home).highest]) + 1
                    event = Event(action="publish", version=version, at=_now())
                    text = to_text(for_version(config, version)).encode()
                    for name, content in {CONFIG: text, **located(config, tree, model, version)}.items():
                        write_file(own / name, content)
                    recorded = {**files, **{name: file_digest(own / name) for name in by_version}}
                    release = {"model": model, "version": version, "digest": digest, "files": recorded}
                    write_file(own / PROVENANCE, provenance_json(given, release=release, published_at=event.at))
                    sync_tree(own)
                    switch(home, incoming, event, text)
        return Published(model, version, digest, new=True)

    def promote(self, model: str, version: int) -> VersionInfo:
        """Make an existing version the current one. A `rollback` afterwards goes back to what was current before."""
        home = self._home(model)
        with self._or_unchanged(model, "promoted"), locked(home):
            recover(home)
            version, _ = self._find(model, version)
            return self._make_current(home, Event(action="promote", version=version, at=_now()))

    def rollback(self, model: str, version: int | None = None) -> VersionInfo:
        """Go back to the version that was current before this one, or to an earlier one by number.

        Going back again goes further back; versions that have been removed are passed over. Raises `RepositoryError`
        if there is nothing to go back to.
        """
        home = self._home(model)
        with self._or_unchanged(model, "rolled back"), locked(home):
            recover(home)
            existing, current = self._state(home)
            before = [item for item in History.read(home).line(current)[:-1] if item in existing and item != current]
            if version is not None and check_version(version) not in before:
                raise RepositoryError(
                    f"version {version} of {model!r} was not current before version {current}; "
                    f"{'those were ' + _listed(before) if before else 'none was'}. "
                    "To make any other version current, promote it"
                )
            if not before:
                raise RepositoryError(f"version {current} of {model!r} has none before it to go back to")
            target = before[-1] if version is None else version
            return self._make_current(home, Event(action="rollback", version=target, at=_now()))

    # The parts: each is called with the model's directory locked

    def _home(self, model: str) -> Path:
        if model not in self.models():
            raise RepositoryError(
                f"there is no model {check_name(model)!r} in {self.path}; there are: {_listed(self.models()) or 'none'}"
            )
        return self.path / model

    def _state(self, home: Path) -> tuple[list[int], int | None]:
        """The versions, and the current one. A version whose writer died before the switch is not among them."""
        existing = numbers(home)
        served = served_versions(read(home / CONFIG), existing)
        current = served[-1] if served else None
        pending = History.read(home).pending
        if pending is not None and pending.action == "publish" and pending.version != current:
            existing = [version for version in existing if version != pending.version]
        return existing, current

    def _find(self, model: str, version: int | None) -> tuple[int, int | None]:
        existing, current = self._state(self.path / model)
        if version is None:
            version = current
        if version is None:
            raise RepositoryError(f"no version of {model!r} is current; promote one of: {_listed(existing) or 'none'}")
        if check_version(version) not in existing:
            raise RepositoryError(
                f"there is no version {version} of {model!r} in {self.path}; there are: {_listed(existing) or 'none'}"
            )
        return version, current

    def _info(self, home: Path, version: int, current: int | None) -> VersionInfo:
        file = home / str(version) / PROVENANCE
        try:
            provenance = json.loads(file.read_bytes())
            return VersionInfo(
                version, version == current, provenance["published_at"], provenance["release"]["digest"], provenance
            )
        except FileNotFoundError:
            return VersionInfo(version, version == current, None, None)
        except (ValueError, KeyError, TypeError) as error:
            raise RepositoryError(f"{file} is damaged ({error!r}); restore it or remove this version") from error

    def _recorded(self, home: Path, info: VersionInfo) -> dict[str, str]:
        if info.digest is None:
            raise RepositoryError(
                f"{home / str(info.version)} has no {PROVENANCE}: it was not published by this program"
            )
        files: dict[str, str] = info.provenance["release"]["files"]
        return files

    def _same(self, home: Path, digest: str) -> int | None:
        """The current version, if its digest is this one. Refuses a model whose configuration could not be restored."""
        live = (home / CONFIG).exists()
        current = self._state(home)[1] if live else max(numbers(home), default=None)
        if current is None:
            return None
        info = self._info(home, current, current)
        if info.digest is None or not live:
            raise RepositoryError(
                f"{home} was made by hand: version {current} has no configuration of its own that a rollback could "
                "bring back. Publish under another name or into another repository"
            )
        return current if info.digest == digest else None

    def _make_current(self, home: Path, event: Event) -> VersionInfo:
        own = home / str(event.version)
        for name in self._recorded(home, self._info(home, event.version, None)):
            if not (own / name).is_file():
                raise RepositoryError(f"{own / name} is missing from its release, so version {event.version} stays out")
        text = (own / CONFIG).read_bytes()
        if text != (home / CONFIG).read_bytes():
            with Incoming(home) as incoming:
                switch(home, incoming, event, text)
        return self._info(home, event.version, event.version)

    @contextmanager
    def _or_unchanged(self, model: str, done: str) -> Iterator[None]:
        home = self.path / model
        try:
            yield
        except BaseException as error:
            self._remove_if_empty(home)
            if not isinstance(error, OSError):
                raise
            what = f"{error.strerror or error} ({error.filename or home})"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                what = f"no space is left for {home}. Nothing has changed there; free some space and try again"
            raise RepositoryError(f"{model!r} was not {done}: {what}") from error

    def _remove_if_empty(self, home: Path) -> None:
        """Take away the directory of a model that has never had a release: Triton would take it for a broken model."""
        if not home.is_dir() or {entry.name for entry in home.iterdir()} - {LOCK, HISTORY}:
            return
        with locked(home):
            if not {entry.name for entry in home.iterdir()} - {LOCK, HISTORY}:
                (home / HISTORY).unlink(missing_ok=True)
                (home / LOCK).unlink()
                home.rmdir()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _listed(items: list[int] | list[str]) -> str:
    return ", ".join(map(str, items))
