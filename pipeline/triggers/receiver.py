"""The receiver of MLflow's webhooks: an HTTP server that believes nobody and answers at once.

One request a connection, parsed by h11. What can be refused is refused before it is read: requests without a signature
or with a stale one, bodies that are too large, connections beyond a number. Whoever is slow is cut off. A delivery is
on the disk before it is answered; deliveries that come together share one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.triggers.backoff import Backoff
from pipeline.triggers.database import connect
from pipeline.triggers.exchange import Answer, RefusedError, Request, read_request, respond
from pipeline.triggers.inbox import Delivery, Inbox, read_delivery
from pipeline.triggers.relay import Relay, RelayError
from pipeline.triggers.signature import UnsignedError, open_envelope

if TYPE_CHECKING:
    import httpx

__all__ = ["ReceiverOptions", "receive", "serve"]

_WAITING = 5000
"""Deliveries that may wait for the disk; more are told to come again, which MLflow does."""
_BATCH = 500
_RELAY_TRIES = 8


@dataclass(frozen=True)
class ReceiverOptions:
    """`folder` is the watch's; `port` 0 takes any. `patience_s`: a request must have come in whole by then.
    `answer_s`: if the disk takes longer, the sender is told to come again."""

    folder: Path
    secrets: tuple[str, ...] = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 8765
    path: str = "/webhook"
    relays: tuple[Relay, ...] = ()
    patience_s: float = 10.0
    answer_s: float = 0.9
    connections: int = 1000
    max_body_bytes: int = 1_000_000


def receive(options: ReceiverOptions, say: Callable[[str], None]) -> None:
    """Receive until SIGTERM or Ctrl-C; what has begun to come in is still answered. Raises as `serve` does."""

    async def until_told() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(options, say, stop)

    asyncio.run(until_told())


async def serve(options: ReceiverOptions, say: Callable[[str], None], stop: asyncio.Event) -> None:
    """Receive until `stop`. `say` gets every line for people: the first one says where it listens.

    Raises `OSError` if the address cannot be had, `InputError` if the file of the queue is another version's.
    """
    with ThreadPoolExecutor(1, "inbox") as disk:
        # SQLite's objects live in one thread; the loop waits for it without standing still.
        loop = asyncio.get_running_loop()
        connection = await loop.run_in_executor(disk, connect, options.folder)
        receiver = _Receiver(options, say, disk, Inbox(connection))
        try:
            await receiver.serve(stop)
        finally:
            await loop.run_in_executor(disk, connection.close)


class _Receiver:
    def __init__(
        self, options: ReceiverOptions, say: Callable[[str], None], disk: ThreadPoolExecutor, inbox: Inbox
    ) -> None:
        self._options, self._say, self._disk, self._inbox = options, say, disk, inbox
        self._waiting: asyncio.Queue[tuple[Delivery, asyncio.Future[bool]]] = asyncio.Queue(_WAITING)
        self._to_relay = asyncio.Event()
        self._open = 0
        self._refused: dict[str, float] = {}

    async def serve(self, stop: asyncio.Event) -> None:
        options = self._options
        server = await asyncio.start_server(self._connected, options.host, options.port, backlog=1024)
        tasks = [asyncio.create_task(work) for work in (stop.wait(), self._keep())]
        if options.relays:
            tasks.append(asyncio.create_task(self._relay()))
        try:
            host, port = server.sockets[0].getsockname()[:2]
            place = f"[{host}]" if ":" in host else host
            self._say(f"listening on http://{place}:{port}{options.path}")
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # what only ends by an error is not to be done without in silence
            server.close()
            deadline = time.monotonic() + 3
            while self._open and time.monotonic() < deadline:  # what has begun to come in is answered
                await asyncio.sleep(0.05)
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > self._options.connections:
                await respond(reader, writer, None, Answer(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"))
                return
            request: Request | None = None
            try:
                async with asyncio.timeout(self._options.patience_s):
                    request = Request(reader, writer)
                    answer = await self._answer(request)
            except TimeoutError:
                answer = Answer(HTTPStatus.REQUEST_TIMEOUT, "the request took too long to come in")
            await respond(reader, writer, request, answer)
        except OSError:
            return  # whoever asked has gone
        finally:
            self._open -= 1
            await _close(writer)

    async def _answer(self, request: Request) -> Answer:
        options = self._options
        try:
            await request.begin(options.max_body_bytes)
            if request.path == "/health" and request.method == "GET":
                return Answer(HTTPStatus.OK, "ok")
            if request.path != options.path:
                return Answer(HTTPStatus.NOT_FOUND, "nothing is here")
            if request.method != "POST":
                return Answer(HTTPStatus.METHOD_NOT_ALLOWED, "deliveries are posted")
            envelope = open_envelope(request.headers, time.time())
            body = await read_request(request, options.max_body_bytes)
            envelope.check(body, options.secrets)
            delivery = read_delivery(envelope.id, body)
        except RefusedError as refused:
            return refused.answer
        except UnsignedError as error:
            self._tell(str(error), request)
            return Answer(HTTPStatus.UNAUTHORIZED, str(error))
        except ValueError as error:
            self._tell(f"signed, but malformed: {error}", request)
            return Answer(HTTPStatus.BAD_REQUEST, "the body is not one of MLflow's")
        return await self._accept(delivery)

    async def _accept(self, delivery: Delivery) -> Answer:
        again = Answer(HTTPStatus.SERVICE_UNAVAILABLE, "come again")
        kept: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((delivery, kept))
            new = await asyncio.wait_for(asyncio.shield(kept), self._options.answer_s)
        except (asyncio.QueueFull, TimeoutError, sqlite3.Error):
            return again
        if not new:
            return Answer(HTTPStatus.CONFLICT, "this delivery has come before")
        about = " ".join(str(part) for part in (delivery.model, delivery.version, delivery.alias) if part is not None)
        self._say(f"{delivery.event} {about or '(no name that is watched)'}: accepted")
        return Answer(HTTPStatus.ACCEPTED, "accepted")

    async def _keep(self) -> None:
        """Write what waits, many deliveries in one transaction."""
        loop = asyncio.get_running_loop()
        relays = [relay.name for relay in self._options.relays]
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < _BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            deliveries = [delivery for delivery, _ in batch]
            try:
                news: Sequence[bool] = await loop.run_in_executor(self._disk, self._inbox.keep, deliveries, relays)
            except sqlite3.Error as error:
                self._tell(f"deliveries cannot be kept: {error}", None)
                for _, kept in batch:
                    kept.set_exception(error)
                    kept.exception()  # its asker may have gone
                continue
            for (_, kept), new in zip(batch, news, strict=True):
                kept.set_result(new)
            self._to_relay.set()

    async def _relay(self) -> None:
        """Pass on what waits, and what was left by a process before this one."""
        import httpx

        loop = asyncio.get_running_loop()
        async with httpx.AsyncClient(timeout=15) as client:
            while True:
                try:
                    for delivery, left, tries in await loop.run_in_executor(self._disk, self._inbox.to_relay):
                        still, delay = await self._pass_on(client, delivery, left, tries)
                        await loop.run_in_executor(self._disk, self._inbox.relayed, delivery.id, still, delay)
                except sqlite3.Error as error:
                    self._tell(f"nothing can be passed on for now: {error}", None)
                self._to_relay.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._to_relay.wait(), 1.0)

    async def _pass_on(
        self, client: httpx.AsyncClient, delivery: Delivery, left: Sequence[str], tries: int
    ) -> tuple[list[str], float]:
        """Send to the relays that are left; returns those that are still left, and when to try them again."""
        still = []
        for relay in self._options.relays:
            if relay.name not in left:
                continue
            try:
                await relay.send(client, delivery)
            except RelayError as error:
                given_up = error.final or tries + 1 >= _RELAY_TRIES
                what = "given up" if given_up else "will be tried again"
                self._say(f"{delivery.event} {delivery.model}: not passed on, {what}: {error}")
                if not given_up:
                    still.append(relay.name)
            else:
                self._say(f"{delivery.event} {delivery.model}: passed on to {relay.name}")
        backoff = Backoff(2.0, 300.0)
        backoff.failures = tries
        return still, backoff.failed()

    def _tell(self, reason: str, request: Request | None) -> None:
        """Say what was refused, each reason once a minute: whoever sends rubbish does not fill the log."""
        now = time.monotonic()
        if now - self._refused.get(reason, -60.0) >= 60:
            self._refused[reason] = now
            peer = "" if request is None else f" (from {request.peer})"
            self._say(f"refused: {reason}{peer}")


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(1.0):
            await writer.wait_closed()
    except OSError:  # whoever asked has gone, or does not read
        writer.transport.abort()
