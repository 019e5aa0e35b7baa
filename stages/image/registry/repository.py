"""One repository of a registry: blobs, manifests, tags and what refers to an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

import httpx

from stages.errors import InputError, StageError
from stages.image.documents import (
    INDEX,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    digest_of,
    ensure_small,
    index,
    read_json,
)
from stages.image.incoming import incoming
from stages.image.registry.transport import AGAIN, Access, Transport, described, expect, reason
from stages.image.registry.upload import upload

__all__ = ["RegistryRepository"]

_ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_PIECE_BYTES = 1 << 20
_NOT_FOUND = 404
_PARTIAL = 206


class RegistryRepository:
    """A repository in a registry, to read from and to write to. For one thread; use it in a `with` statement.

    `sent_bytes` counts the bytes of blobs and manifests that were sent.
    """

    def __init__(self, host: str, name: str, access: Access) -> None:
        self.host = host
        self.name = name
        self.sent_bytes = 0
        self._transport = Transport(host, access)
        self._pull = (f"repository:{name}:pull",)
        self._push = (f"repository:{name}:pull,push",)

    def __str__(self) -> str:
        return f"{self.host}/{self.name}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.__exit__(kind, error, trace)

    # Blobs

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the repository has a blob."""
        response = self._transport.request("HEAD", self._blob(descriptor), self._push)
        if response.status_code == _NOT_FOUND:
            return False
        expect(response, f"looking for {descriptor.digest}", 200)
        size = response.headers.get("Content-Length")
        if size is not None and int(size) != descriptor.size:
            raise StageError(f"{self} has {descriptor.digest} with {size} bytes instead of {descriptor.size}")
        return True

    def mount(self, descriptor: Descriptor, name: str) -> bool:
        """Take a blob over from another repository of the registry, without sending it. False if that cannot be."""
        scopes = (*self._push, f"repository:{name}:pull")
        place = f"/v2/{self.name}/blobs/uploads/?{urlencode({'mount': descriptor.digest, 'from': name})}"
        try:
            response = self._transport.request("POST", place, scopes, headers={"Content-Length": "0"})
        except InputError:  # we may write here but not read there: then the blob is sent
            return False
        if response.status_code == httpx.codes.ACCEPTED and "Location" in response.headers:
            # The registry has opened an upload instead. It is called off.
            self._transport.request("DELETE", self._transport.url(response.headers["Location"]), self._push)
        return response.status_code == httpx.codes.CREATED

    def put(self, descriptor: Descriptor, source: Path | bytes) -> None:
        """Send a blob (a file, or its bytes) unless it is there. Raises `StageError` if it does not arrive whole."""
        if self.has(descriptor):
            return
        self.sent_bytes += upload(self._transport, self.name, self._push, descriptor, source)
        if not self.has(descriptor):
            raise StageError(
                f"{self} does not have {descriptor.digest}, which it has just taken in. Nothing was tagged"
            )

    def put_content(self, descriptor: Descriptor, content: bytes) -> None:
        """Send a small blob."""
        self.put(descriptor, content)

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob in pieces, going on where a connection was cut off.

        Raises `StageError` at its end if it was not what its digest says, or if the registry keeps failing.
        """
        digest, received, failures = hashlib.sha256(), 0, 0
        what = f"fetching {descriptor.digest} from {self}"
        while received < descriptor.size or (descriptor.size == 0 and failures == 0):
            before = received
            try:
                with self._open(descriptor, received, what) as response:
                    if response.status_code in AGAIN:
                        problem, after = reason(response), response.headers.get("Retry-After")
                    else:
                        problem, after = "it ended early", None
                        skip = received if response.status_code != _PARTIAL else 0
                        for whole in response.iter_bytes(_PIECE_BYTES):
                            piece, skip = whole[skip:], max(0, skip - len(whole))
                            received += len(piece)
                            if received > descriptor.size:
                                raise StageError(
                                    f"{what}: it is larger than the {descriptor.size} bytes that were promised"
                                )
                            digest.update(piece)
                            yield piece
            except httpx.TransportError as error:
                problem, after = described(error), None
            if received == descriptor.size:
                break
            failures = 1 if received > before else failures + 1
            self._transport.pause(failures, what, problem, after)
        if f"sha256:{digest.hexdigest()}" != descriptor.digest:
            raise StageError(f"{what}: what came has the SHA-256 {digest.hexdigest()}; it was not used")

    def read(self, descriptor: Descriptor) -> bytes:
        """The bytes of a small blob."""
        ensure_small(descriptor)
        return b"".join(self.stream(descriptor))

    def pull(self, descriptor: Descriptor, folder: Path) -> Path:
        """Bring a blob into a folder, under its digest. Memory does not grow with it."""
        target = folder / descriptor.digest.removeprefix("sha256:")
        with incoming(folder) as out:
            for piece in self.stream(descriptor):
                out.write(piece)
            out.keep(target)
        return target

    # Manifests and names

    def resolve(self, name: str | None) -> tuple[Descriptor, bytes]:
        """The manifest or index of a tag (by default `latest`) or digest. Raises `InputError` if there is none."""
        name = name or "latest"
        found = self._manifest(name)
        if found is None:
            raise InputError(f"{self} has no image {name!r}")
        return found

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest that an index names."""
        return self.resolve(descriptor.digest)[1]

    def put_manifest(self, descriptor: Descriptor, content: bytes) -> None:
        """Send a manifest under its digest. All that it names must be there."""
        self._put_manifest(descriptor, content, descriptor.digest)

    def tag(self, descriptor: Descriptor, content: bytes, name: str) -> None:
        """Give a manifest a name, which another one may have had before."""
        self._put_manifest(descriptor, content, name)

    def refer(self, descriptor: Descriptor, content: bytes, subject: Descriptor) -> None:
        """Send a manifest that refers to `subject`.

        A registry without the referrers API gets an index under the tag `sha256-<hex>` (Distribution Specification
        1.1, "Referrers tag schema"). Two writers at one moment may lose one of the two entries there; the manifests
        themselves are never lost.
        """
        response = self._put_manifest(descriptor, content, descriptor.digest)
        if response.headers.get("OCI-Subject") == subject.digest:
            return
        known = self._fallback(subject)
        if descriptor.digest not in {item.digest for item in known}:
            described_index, index_content = index(sorted([*known, descriptor], key=lambda item: item.digest))
            self._put_manifest(described_index, index_content, _fallback_tag(subject))

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        """The manifests that refer to one, by the API or by the tag, in the order of their digests."""
        response = self._transport.request("GET", f"/v2/{self.name}/referrers/{subject.digest}", self._pull)
        if response.status_code == httpx.codes.OK and INDEX in response.headers.get("Content-Type", ""):
            found = read_json(response.content, f"the referrers of {self}").get("manifests") or []
            listed = [Descriptor.read(item, f"the referrers of {self}") for item in found]
        else:
            listed = []
        known = {item.digest: item for item in (*listed, *self._fallback(subject))}
        return [known[digest] for digest in sorted(known)]

    # The parts

    def _blob(self, descriptor: Descriptor) -> str:
        return f"/v2/{self.name}/blobs/{descriptor.digest}"

    @contextmanager
    def _open(self, descriptor: Descriptor, offset: int, what: str) -> Iterator[httpx.Response]:
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={offset}-"} if offset else {})}
        with self._transport.send(
            "GET", self._blob(descriptor), self._pull, headers=headers, redirects=True
        ) as response:
            if response.status_code not in (200, _PARTIAL):
                response.read()
                if response.status_code not in AGAIN:
                    raise StageError(f"{what}: {reason(response)}")
            if response.status_code == _PARTIAL and not response.headers.get("Content-Range", "").startswith(
                f"bytes {offset}-"
            ):
                raise StageError(f"{what}: the registry answers with another part than was asked for")
            yield response

    def _put_manifest(self, descriptor: Descriptor, content: bytes, name: str) -> httpx.Response:
        response = self._transport.request(
            "PUT",
            f"/v2/{self.name}/manifests/{quote(name, safe=':')}",
            self._push,
            headers={"Content-Type": descriptor.media_type},
            content=content,
        )
        expect(response, f"sending the manifest {name!r} to {self}", 201, 200)
        self.sent_bytes += len(content)
        said = response.headers.get("Docker-Content-Digest", descriptor.digest)
        if said != descriptor.digest:
            raise StageError(
                f"{self} took the manifest {descriptor.digest} for {said}; do not use what it has as {name!r}"
            )
        return response

    def _manifest(self, name: str) -> tuple[Descriptor, bytes] | None:
        response = self._transport.request(
            "GET", f"/v2/{self.name}/manifests/{quote(name, safe=':')}", self._pull, headers={"Accept": _ACCEPT}
        )
        if response.status_code == _NOT_FOUND:
            return None
        expect(response, f"fetching the manifest {name!r} of {self}", 200)
        content = response.content
        digest = digest_of(content)
        for said in (response.headers.get("Docker-Content-Digest"), name if name.startswith("sha256:") else None):
            if said is not None and said != digest:
                raise StageError(f"{self} gives a manifest with the digest {digest} for {said}; it was not used")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        written = read_json(content, f"the manifest {name!r} of {self}").get("mediaType")
        return Descriptor(written or media_type, digest, len(content)), content

    def _fallback(self, subject: Descriptor) -> list[Descriptor]:
        found = self._manifest(_fallback_tag(subject))
        if found is None:
            return []
        place = f"{self}:{_fallback_tag(subject)}"
        return [Descriptor.read(item, place) for item in read_json(found[1], place).get("manifests") or []]


def _fallback_tag(subject: Descriptor) -> str:
    return subject.digest.replace(":", "-")
