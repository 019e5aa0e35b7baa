"""An OCI image layout: a folder with blobs by digest and an `index.json` that names images (OCI image-spec 1.1)."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import InputError, StageError
from stages.image.documents import INDEX_TYPES, Descriptor, ensure_small, index, read_json
from stages.image.incoming import incoming

__all__ = ["REF_NAME", "Layout"]

REF_NAME = "org.opencontainers.image.ref.name"
_MARKER = "oci-layout"
_MARKER_CONTENT = b'{"imageLayoutVersion":"1.0.0"}'
_PIECE_BYTES = 1 << 20


class Layout:
    """A layout on disk, to read from and to write to.

    Blobs come in under the SHA-256 of their bytes; an image is visible when `index.json` names it, which is written
    last and replaced in one step. Several processes may write at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def __str__(self) -> str:
        return f"oci:{self.path}"

    @property
    def blobs(self) -> Path:
        """The folder of the blobs: names are the digests in hexadecimal."""
        return self.path / "blobs" / "sha256"

    def exists(self) -> bool:
        """Whether there is a layout."""
        return (self.path / _MARKER).is_file()

    def create(self) -> Layout:
        """Make an empty one where there is none. Raises `InputError` if something else lies there."""
        if self.exists():
            return self
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(
                f"{self.path} is there and is no OCI layout; name an empty folder, or one that is not there"
            )
        self.blobs.mkdir(parents=True, exist_ok=True)
        with incoming(self.path) as out:
            out.write(_MARKER_CONTENT)
            out.keep(self.path / _MARKER)
        return self

    # Blobs

    def blob(self, descriptor: Descriptor) -> Path:
        """Where a blob lies, or would."""
        return self.blobs / descriptor.digest.removeprefix("sha256:")

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there, by its name and size."""
        path = self.blob(descriptor)
        return path.is_file() and path.stat().st_size == descriptor.size

    def put(self, descriptor: Descriptor, source: Path | bytes) -> None:
        """Take in a file that has this digest (by link where the file system can, else by copy), or bytes."""
        if self.has(descriptor):
            return
        if isinstance(source, bytes):
            self.put_content(descriptor, source)
            return
        target = self.blob(descriptor)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            with incoming(self.blobs) as out, source.open("rb", buffering=0) as stream:
                shutil.copyfileobj(stream, out, _PIECE_BYTES)
                out.keep(target)

    def put_content(self, descriptor: Descriptor, content: bytes) -> None:
        """Write a small blob."""
        if not self.has(descriptor):
            with incoming(self.blobs) as out:
                out.write(content)
                out.keep(self.blob(descriptor))

    def read(self, descriptor: Descriptor) -> bytes:
        """The bytes of a small blob. Raises `StageError` if they have another digest than their name says."""
        ensure_small(descriptor)
        return b"".join(self.stream(descriptor))

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob in pieces. Raises `StageError` at its end if it was not what its digest says."""
        path = self.blob(descriptor)
        found = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as stream:
                while piece := stream.read(_PIECE_BYTES):
                    found.update(piece)
                    yield piece
        except FileNotFoundError as error:
            raise StageError(f"{self} has no blob {descriptor.digest}") from error
        if f"sha256:{found.hexdigest()}" != descriptor.digest or path.stat().st_size != descriptor.size:
            raise StageError(f"{path} is damaged: its SHA-256 is {found.hexdigest()}; build or pull the image again")

    # Names

    def put_manifest(self, descriptor: Descriptor, content: bytes) -> None:
        """Write a manifest; nothing names it yet."""
        self.put_content(descriptor, content)

    def tag(self, descriptor: Descriptor, content: bytes, name: str) -> None:
        """Give a manifest a name, which another one may have had before."""
        self._name(descriptor.with_annotations({**descriptor.annotations, REF_NAME: name}), content, name)

    def refer(self, descriptor: Descriptor, content: bytes, subject: Descriptor) -> None:
        """Name a manifest that refers to `subject` by its digest alone."""
        self._name(descriptor, content, None)

    def names(self) -> list[Descriptor]:
        """What `index.json` names. Raises `InputError` if there is no layout."""
        if not self.exists():
            raise InputError(f"there is no OCI layout at {self.path}")
        path = self.path / "index.json"
        if not path.is_file():
            return []
        return [Descriptor.read(item, str(path)) for item in read_json(path.read_bytes(), str(path))["manifests"]]

    def resolve(self, name: str | None) -> tuple[Descriptor, bytes]:
        """The manifest or index of this name or digest; without one, of the only image there is.

        Raises `InputError` naming the images that are there if it is not one of them.
        """
        named = self.names()
        images = [item for item in named if REF_NAME in item.annotations or item.artifact_type is None]
        if name is None:
            found = images if len({item.digest for item in images}) == 1 else []
        else:
            found = [item for item in named if name in (item.digest, item.annotations.get(REF_NAME))]
        if not found:
            there = ", ".join(item.annotations.get(REF_NAME, item.digest) for item in images) or "none"
            wanted = f"no image {name!r}" if name else "not exactly one image"
            raise InputError(f"{self} holds {wanted}; there are: {there}")
        return found[0], self.read(found[0])

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest that an index names."""
        return self.read(descriptor)

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        """The manifests that refer to one, in the order of their digests."""
        found = []
        for item in self.names():
            if item.media_type in INDEX_TYPES or item.artifact_type is None:
                continue
            about = read_json(self.read(item), str(self.blob(item))).get("subject") or {}
            if about.get("digest") == subject.digest:
                found.append(item)
        return sorted(found, key=lambda item: item.digest)

    def _name(self, descriptor: Descriptor, content: bytes, name: str | None) -> None:
        self.put_content(descriptor.plain(), content)
        with self._locked():
            kept = [
                item
                for item in self.names()
                if (item.annotations.get(REF_NAME) != name if name else item.digest != descriptor.digest)
            ]
            ordered = sorted([*kept, descriptor], key=lambda item: (item.annotations.get(REF_NAME, ""), item.digest))
            _, written = index(ordered)
            with incoming(self.path) as out:
                out.write(written)
                out.keep(self.path / "index.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
