"""The receiver, as its own process: what it believes, what it refuses, and what it holds up against."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import SECRET

from pipeline.triggers.database import connect
from pipeline.triggers.inbox import Inbox, read_delivery
from pipeline.triggers.signature import UnsignedError, open_envelope, sign

Start = Callable[..., tuple[str, "subprocess.Popen[bytes]"]]

CREATED = {
    "entity": "model_version", "action": "created", "timestamp": "2026-11-22T04:45:08.706986+00:00",
    "data": {"name": "minilm", "version": "1", "source": "file:///etc", "run_id": "r", "tags": {}, "description": None},
}  # fmt: skip


def headers(body: bytes, *, secret: str = SECRET, identity: str | None = None, age_s: float = 0) -> dict[str, str]:
    """As MLflow makes them."""
    from mlflow.webhooks.delivery import _generate_hmac_signature

    identity, timestamp = identity or str(uuid.uuid4()), str(int(time.time() - age_s))
    return {
        "Content-Type": "application/json",
        "X-Mlflow-Delivery-Id": identity,
        "X-Mlflow-Timestamp": timestamp,
        "X-Mlflow-Signature": _generate_hmac_signature(secret, identity, timestamp, body.decode()),
    }


def body_of(**data: Any) -> bytes:
    return json.dumps(CREATED | {"data": CREATED["data"] | data}).encode()  # type: ignore[operator]


def hints(store: Path) -> list[str]:
    connection = connect(store / "triggers")
    try:
        return list(Inbox(connection).open_hints().values())
    finally:
        connection.close()


def deliver(address: str, body: bytes, signed: dict[str, str] | None = None) -> int:
    """Post as MLflow does: once more, the same, where it is told to come again. Then what was kept the first time comes
    a second time, and counts as accepted."""
    signed, first = signed or headers(body), True
    while True:
        status = httpx.post(address, content=body, headers=signed, timeout=60).status_code
        if status != 503:
            return 202 if status == 409 and not first else status
        first = False
        time.sleep(0.2)


def raw(address: str) -> socket.socket:
    parts = urlsplit(address)
    assert parts.hostname is not None and parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def answer(connection: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            got += part
    return got


# What it believes


def test_the_signature_is_mlflows() -> None:
    body = body_of()
    made = headers(body, identity="a-b", age_s=0)
    assert made["X-Mlflow-Signature"] == sign(SECRET, "a-b", made["X-Mlflow-Timestamp"], body)
    envelope = open_envelope({name.lower(): value for name, value in made.items()}, time.time())
    envelope.check(body, ["another", SECRET])
    for secrets, changed in (([SECRET], body + b" "), (["another"], body), ([], body)):
        with pytest.raises(UnsignedError, match="signature is wrong"):
            envelope.check(changed, secrets)


def test_a_delivery_is_accepted_once(receiver: Start, tmp_path: Path) -> None:
    address, process = receiver()
    body = body_of()
    signed = headers(body)
    assert deliver(address, body, signed) == 202
    assert hints(tmp_path / "store") == ["minilm"]
    assert deliver(address, body, signed) == 409, "the same once more"
    process.send_signal(signal.SIGKILL)
    process.wait()
    address, _ = receiver()
    assert deliver(address, body, signed) == 409, "also after a restart"
    assert hints(tmp_path / "store") == ["minilm"]


def test_what_is_not_signed_well_is_refused(receiver: Start, tmp_path: Path) -> None:
    address, _ = receiver()
    body = body_of()
    signed = headers(body)
    for name in ("X-Mlflow-Delivery-Id", "X-Mlflow-Timestamp", "X-Mlflow-Signature"):
        without = {key: value for key, value in signed.items() if key != name}
        assert httpx.post(address, content=body, headers=without).status_code == 401, name
    wrong = [
        (body_of(name="another"), signed),
        (body, headers(body, secret="another")),
        (body, headers(body, age_s=330)),
        (body, headers(body, age_s=-330)),
        (body, signed | {"X-Mlflow-Timestamp": str(int(signed["X-Mlflow-Timestamp"]) - 1)}),
        (body, signed | {"X-Mlflow-Delivery-Id": "another"}),
        (body, signed | {"X-Mlflow-Timestamp": "nan"}),
        (body, signed | {"X-Mlflow-Delivery-Id": "a b"}),
        (body, signed | {"X-Mlflow-Signature": "v1,"}),
        (body, signed | {"X-Mlflow-Signature": signed["X-Mlflow-Signature"].replace("v1", "v2")}),
    ]
    for content, given in wrong:
        assert httpx.post(address, content=content, headers=given).status_code == 401, given
    assert hints(tmp_path / "store") == []
    log = (tmp_path / "store" / "receiver.log").read_text()
    assert "refused: the signature is wrong (from 127.0.0.1)" in log
    assert SECRET not in log
    assert sign(SECRET, signed["X-Mlflow-Delivery-Id"], signed["X-Mlflow-Timestamp"], body) not in log


def test_secrets_can_be_changed_without_a_gap(receiver: Start, tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("the new secret\nthe old secret\n")
    address, _ = receiver("--secret-file", str(file))
    for secret, status in (("the new secret", 202), ("the old secret", 202), (SECRET, 401)):
        body = body_of()
        assert deliver(address, body, headers(body, secret=secret)) == status


def test_other_addresses_and_methods(receiver: Start) -> None:
    address, _ = receiver()
    assert httpx.get(address).status_code == 405
    assert httpx.post(address + "/other").status_code == 404
    assert httpx.get(address.replace("/webhook", "/health")).text == "ok\n"


# What it holds up against


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"{}", b'{"data": 1}', b'{"entity": "a", "action": 3, "data": {}}', b"\xff\xfe",
     b"[" * 100_000, b'{"entity": "../x", "action": "created", "data": {}}'],
    ids=lambda body: body[:12],
)  # fmt: skip
def test_a_malformed_body_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_delivery("id", body)


def test_malformed_json_is_answered(receiver: Start, tmp_path: Path) -> None:
    address, _ = receiver()
    for body in (b"{", b"[" * 100_000):
        assert httpx.post(address, content=body, headers=headers(body)).status_code == 400
    assert hints(tmp_path / "store") == []


def test_names_that_could_do_harm_are_kept_nowhere(receiver: Start, tmp_path: Path) -> None:
    address, _ = receiver()
    for name in ("../../etc", "$(reboot)", "a'b", "x" * 300, "", None, 7, ["minilm"]):
        assert deliver(address, body_of(name=name)) == 202
    assert hints(tmp_path / "store") == []
    delivery = read_delivery("id", body_of(version="1; reboot", alias="$(x)"))
    assert (delivery.model, delivery.version, delivery.alias) == ("minilm", None, None)


def test_a_body_of_100_mb_is_refused_before_it_is_read(receiver: Start) -> None:
    address, process = receiver()
    signed = headers(b"x")
    lines = [f"{name}: {value}" for name, value in signed.items()]
    with raw(address) as connection:
        head = "\r\n".join(["POST /webhook HTTP/1.1", "Host: x", "Content-Length: 100000000", *lines, "", ""])
        connection.sendall(head.encode())
        assert answer(connection).startswith(b"HTTP/1.1 413 "), "though nothing of the body was sent"

    def endless() -> Any:
        for _ in range(100):
            yield b"x" * 1_000_000

    with contextlib.suppress(httpx.WriteError, httpx.ReadError):
        assert httpx.post(address, content=endless(), headers=signed).status_code == 413, "and one that says no length"
    assert httpx.get(address.replace("/webhook", "/health")).status_code == 200
    import psutil

    assert psutil.Process(process.pid).memory_info().rss < 300_000_000


def test_what_is_not_http_is_refused(receiver: Start) -> None:
    address, _ = receiver()
    for rubbish in (b"\x16\x03\x01\x02\x00\x01" + b"\x00" * 100 + b"\r\n\r\n", b"GET / HTTP/9.9 x\r\n\r\n",
                    b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                    b"POST /webhook HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n"):  # fmt: skip
        with raw(address) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(rubbish)
            got = answer(connection)
            assert got == b"" or got.startswith(b"HTTP/1.1 4"), got[:80]
    assert httpx.get(address.replace("/webhook", "/health")).status_code == 200


def test_whoever_is_slow_is_cut_off_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    """With less patience than the command has."""
    from pipeline.triggers.receiver import ReceiverOptions, serve

    async def story() -> tuple[bytes, int]:
        said: list[str] = []
        stop = asyncio.Event()
        options = ReceiverOptions(
            folder=tmp_path, secrets=(SECRET,), port=0, patience_s=4.0, answer_s=60, connections=50
        )
        served = asyncio.create_task(serve(options, said.append, stop))
        while not said:
            await asyncio.sleep(0.02)
        address = said[0].removeprefix("listening on ")
        parts = urlsplit(address)
        slow = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(40)]
        for _, writer in slow:
            writer.write(b"POST /webhook HTTP/1.1\r\nHost: x\r\nConte")
        body = body_of()
        async with httpx.AsyncClient(timeout=60) as client:
            quick = await client.post(address, content=body, headers=headers(body))
        cut = await slow[0][0].read()
        for _, writer in slow:
            writer.close()
        stop.set()
        await served
        return cut, quick.status_code

    cut, quick = asyncio.run(story())
    assert cut.startswith(b"HTTP/1.1 408 ")
    assert quick == 202


def test_of_a_thousand_at_once_no_accepted_delivery_is_lost(receiver: Start, tmp_path: Path) -> None:
    """They come as fast as one process can send them, those that are told to come again do, and the receiver is killed
    as soon as the last is accepted."""
    address, process = receiver()
    parts = urlsplit(address)
    requests = []
    for place in range(1000):
        body = body_of(name=f"model-{place}")
        lines = [f"{name}: {value}" for name, value in headers(body).items()]
        head = ["POST /webhook HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""]
        requests.append((f"model-{place}", "\r\n".join(head).encode() + body))

    async def send(limit: asyncio.Semaphore, name: str, request: bytes) -> tuple[str, list[bytes]]:
        answers: list[bytes] = []
        while not answers or answers[-1] == b"503":
            async with limit:
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                writer.write(request)
                answers.append((await reader.readline()).split(b" ")[1])
                writer.close()
        return name, answers

    async def burst() -> list[tuple[str, list[bytes]]]:
        limit = asyncio.Semaphore(500)
        return await asyncio.gather(*(send(limit, name, request) for name, request in requests))

    answers = asyncio.run(burst())
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _, told in answers:  # one that was kept though its sender was told to come again is known by then
        assert told[-1] == b"202" or (told[-1] == b"409" and b"503" in told), told
    kept = hints(tmp_path / "store")
    assert sorted(kept) == sorted(name for name, _ in requests), "each is there, once"


def test_a_file_that_cannot_be_written_is_no_acceptance(receiver: Start, tmp_path: Path) -> None:
    address, _ = receiver()
    connection = connect(tmp_path / "store" / "triggers")
    connection.execute("begin immediate")  # as if somebody else had the disk for himself
    body = body_of()
    signed = headers(body)
    assert httpx.post(address, content=body, headers=signed).status_code == 503
    connection.execute("rollback")
    connection.close()
    assert deliver(address, body, signed) in (202, 409)
    assert hints(tmp_path / "store") == ["minilm"]


def test_it_ends_when_it_is_told_to(receiver: Start) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        _, process = receiver()
        process.send_signal(number)
        assert process.wait(30) == 0


def test_without_a_secret_it_does_not_start(receiver: Start) -> None:
    with pytest.raises(AssertionError, match="OPTIMIZE_WEBHOOK_SECRET in the environment, or --secret-file"):
        receiver(OPTIMIZE_WEBHOOK_SECRET="")
