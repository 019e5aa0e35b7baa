"""One HTTP request and its answer, read no further than it has to be."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

__all__ = ["Answer", "RefusedError", "Request", "read_request", "respond"]

_HEADERS_BYTES = 16_384
_LINGER_S, _LINGER_BYTES = 1.0, 4_000_000


@dataclass(frozen=True)
class Answer:
    """A status and a line of text."""

    status: HTTPStatus
    text: str


class RefusedError(Exception):
    """Reading a request came to an end before its time. `answer` is what its sender is told."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.answer = Answer(status, text)


class Request:
    """A request that comes in on a connection. `headers` by their names in lower case; twice the same is refused."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import h11

        self._h11 = h11
        self.reader, self.writer = reader, writer
        self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEADERS_BYTES)
        self.method, self.path = "", ""
        self.headers: dict[str, str] = {}
        self.whole = False

    @property
    def peer(self) -> str:
        """The address that it comes from."""
        name = self.writer.get_extra_info("peername")
        return str(name[0]) if name else "unknown"

    async def begin(self, max_body_bytes: int) -> None:
        """Read the request line and the headers. Raises `RefusedError` if they are wrong or announce too much."""
        event = await self.next()
        if not isinstance(event, self._h11.Request):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "no request came")
        self.method = event.method.decode("ascii")
        self.path = event.target.decode("ascii").partition("?")[0]
        for name, value in event.headers:
            text = name.decode("ascii")
            if text.startswith("x-mlflow-") and text in self.headers:
                raise RefusedError(HTTPStatus.BAD_REQUEST, f"the header {text} is there twice")
            self.headers[text] = value.decode("latin-1")
        if int(self.headers.get("content-length", "0")) > max_body_bytes:
            raise too_large(max_body_bytes)

    async def next(self) -> Any:
        """The next event of h11's. Raises `RefusedError` for what is not HTTP."""
        while True:
            try:
                event = self.connection.next_event()
            except self._h11.RemoteProtocolError as error:
                raise RefusedError(HTTPStatus(error.error_status_hint), "this is not HTTP as it should be") from error
            if event is self._h11.NEED_DATA:
                if self.connection.they_are_waiting_for_100_continue:
                    go_on = self._h11.InformationalResponse(status_code=100, headers=[])
                    self.writer.write(self.connection.send(go_on) or b"")
                self.connection.receive_data(await self.reader.read(65_536))
                continue
            if isinstance(event, self._h11.EndOfMessage):
                self.whole = True
            return event


async def read_request(request: Request, max_body_bytes: int) -> bytes:
    """The body. Raises `RefusedError` as soon as more came than it may hold, and if it ends too soon."""
    import h11

    body = bytearray()
    while True:
        event = await request.next()
        if isinstance(event, h11.EndOfMessage):
            return bytes(body)
        if not isinstance(event, h11.Data):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the body ended too soon")
        body += event.data
        if len(body) > max_body_bytes:
            raise too_large(max_body_bytes)


async def respond(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request | None, answer: Answer
) -> None:
    """Send an answer. The connection is to be closed after it."""
    text = answer.text.encode() + b"\n"
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(text)}",
        "Connection: close",
    ]
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
        lines.append("Retry-After: 1")
    writer.write("\r\n".join([*lines, "", ""]).encode() + text)
    async with asyncio.timeout(_LINGER_S):
        await writer.drain()
    if request is None or request.whole:
        return
    # If the connection were closed while its sender still writes, the answer would be lost on the way to it.
    if writer.can_write_eof():
        writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            read = 0
            while read < _LINGER_BYTES and (part := await reader.read(65_536)):
                read += len(part)


def too_large(max_body_bytes: int) -> RefusedError:
    """The answer to a body that is too large."""
    return RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has {max_body_bytes} bytes at most")
