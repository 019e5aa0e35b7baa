"""Sends a blob in pieces, and goes on where it was cut off.

OCI Distribution Specification 1.1, "Pushing blobs": a session is opened by POST, filled by PATCH and closed by PUT with
the digest. After a failure GET on the session says how far the registry has come.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx

from stages.errors import StageError
from stages.image.documents import Descriptor
from stages.image.registry.transport import AGAIN, Transport, described, expect, reason

__all__ = ["upload"]

_PIECE_BYTES = 1 << 20
_NOT_FOUND = 404
_OUT_OF_RANGE = 416


class _SessionLostError(Exception):
    """The registry no longer knows the upload."""


def upload(
    transport: Transport, name: str, scopes: tuple[str, ...], descriptor: Descriptor, source: Path | bytes
) -> int:
    """Send a blob (a file, or its bytes) to the repository `name`. Memory does not grow with it.

    Returns how many bytes were sent, those that were sent twice included. Raises `StageError` if the registry keeps
    failing or says that it received something else.
    """
    session = _Session(transport, name, scopes, descriptor, source)
    failures = 0
    while True:
        try:
            session.open()
            session.fill()
            session.close()
            return session.sent
        except _SessionLostError:
            failures += 1
            transport.pause(failures, f"the upload of {descriptor.digest}", "the registry lost the upload")


class _Session:
    def __init__(
        self, transport: Transport, name: str, scopes: tuple[str, ...], descriptor: Descriptor, source: Path | bytes
    ) -> None:
        self._transport = transport
        self._name = name
        self._scopes = scopes
        self._descriptor = descriptor
        self._source = source
        self._location = ""
        self._chunk_bytes = transport.access.chunk_bytes
        self._failures = 0
        self.sent = 0

    @property
    def _what(self) -> str:
        return f"the upload of {self._descriptor.digest} to {self._transport.host}/{self._name}"

    def open(self) -> None:
        response = self._transport.request(
            "POST", f"/v2/{self._name}/blobs/uploads/", self._scopes, headers={"Content-Length": "0"}
        )
        expect(response, self._what, 202)
        least = response.headers.get("OCI-Chunk-Min-Length", "")
        if least.isdigit():
            self._chunk_bytes = max(self._chunk_bytes, int(least))
        self._move(response)

    def fill(self) -> None:
        offset = 0
        while offset < self._descriptor.size:
            end = min(offset + self._chunk_bytes, self._descriptor.size)
            offset = self._patch(offset, end)

    def close(self) -> None:
        """Close the session; the registry compares the digest."""
        separator = "&" if "?" in self._location else "?"
        place = f"{self._location}{separator}{urlencode({'digest': self._descriptor.digest})}"
        response = self._transport.request("PUT", place, self._scopes, headers={"Content-Length": "0"})
        if response.status_code == _NOT_FOUND:
            # Either a first PUT was carried out and only its answer was lost, or the session is.
            found = self._transport.request("HEAD", f"/v2/{self._name}/blobs/{self._descriptor.digest}", self._scopes)
            if found.status_code == httpx.codes.OK:
                return
            raise _SessionLostError
        expect(response, self._what, 201, 204)
        said = response.headers.get("Docker-Content-Digest", self._descriptor.digest)
        if said != self._descriptor.digest:
            raise StageError(f"{self._what}: the registry received {said} instead. Nothing was tagged")

    def _patch(self, offset: int, end: int) -> int:
        """Send `[offset, end)` and return how far the registry has come."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{offset}-{end - 1}",
            "Content-Length": str(end - offset),
        }
        try:
            with self._transport.send(
                "PATCH", self._location, self._scopes, headers=headers, content=lambda: self._pieces(offset, end)
            ) as response:
                response.read()
            status = response.status_code
            if status == _NOT_FOUND:
                raise _SessionLostError
            if status not in (*AGAIN, _OUT_OF_RANGE):
                expect(response, self._what, 202)
                self._move(response)
                self._failures = 0
                return self._advanced(response, offset, end)
            problem, after = reason(response), response.headers.get("Retry-After")
        except httpx.TransportError as error:
            problem, after = described(error), None
        self._failures += 1
        self._transport.pause(self._failures, self._what, problem, after)
        return self._resume(offset, end)

    def _advanced(self, response: httpx.Response, offset: int, end: int) -> int:
        """Where an accepted piece ends, by `Range: 0-<last byte>`; registries need not say it."""
        last = _last_byte(response)
        reached = end if last is None else last + 1
        if not offset < reached <= end:
            raise StageError(f"{self._what}: the registry claims {reached} bytes, of {end}. Nothing was tagged")
        return reached

    def _resume(self, offset: int, end: int) -> int:
        """Ask how far the registry has come."""
        response = self._transport.request("GET", self._location, self._scopes)
        last = _last_byte(response)
        if response.status_code not in (202, 204) or last is None:
            raise _SessionLostError
        self._move(response)
        reached = last + 1 if last else 0  # `0-0` is how registries say that they have nothing
        if reached > end:
            raise StageError(f"{self._what}: the registry claims {reached} bytes, of {end}. Nothing was tagged")
        if reached > offset:
            self._failures = 0
        return reached

    def _move(self, response: httpx.Response) -> None:
        location = response.headers.get("Location")
        if not location and not self._location:
            raise StageError(f"{self._what}: the registry named no place for it")
        self._location = self._transport.url(location or self._location)

    def _pieces(self, offset: int, end: int) -> Iterator[bytes]:
        with io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source.open("rb", 0) as stream:
            stream.seek(offset)
            left = end - offset
            while left:
                piece = stream.read(min(_PIECE_BYTES, left))
                if not piece:
                    raise StageError(f"{self._descriptor.digest} was cut short while it was sent. Nothing was tagged")
                left -= len(piece)
                self.sent += len(piece)
                yield piece


def _last_byte(response: httpx.Response) -> int | None:
    said = response.headers.get("Range", "").removeprefix("bytes=").partition("-")[2]
    return int(said) if said.isdigit() else None
