"""HAProxy's runtime socket: weights and health of the two versions, and the lines of finished requests."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.deploy.front_door import BACKEND, CANDIDATE, REQUESTS, RUNTIME_SOCKET, STABLE, STATE_FILE
from stages.errors import RequirementError, StageError

__all__ = ["FrontDoorSocket", "RequestStream", "ServerState"]

_ANSWER_WITHIN_S = 10.0
_PIECE = 1 << 16


@dataclass(frozen=True)
class ServerState:
    """One version at the front door. `weight` is its share of the sum; `up`: whether its health checks pass."""

    weight: int
    up: bool
    status: str


class FrontDoorSocket:
    """The runtime socket in a deployment's `run` directory (HAProxy's management guide, "Unix Socket commands")."""

    def __init__(self, run: Path) -> None:
        self._path = run / RUNTIME_SOCKET
        self._state = run / STATE_FILE

    def servers(self) -> Mapping[str, ServerState]:
        """Both versions by name. Raises `StageError` if the front door has not both."""
        text = self.ask("show stat").lstrip("# ")
        rows = {row["svname"]: row for row in csv.DictReader(io.StringIO(text)) if row["pxname"] == BACKEND}
        if missing := [name for name in (STABLE, CANDIDATE) if name not in rows]:
            raise StageError(
                f"the front door at {self._path} knows no {missing[0]} version: render the deployment with --candidate"
            )
        return {
            name: ServerState(int(rows[name]["weight"]), rows[name]["status"].startswith("UP"), rows[name]["status"])
            for name in (STABLE, CANDIDATE)
        }

    def shift(self, candidate_percent: int) -> None:
        """Give the candidate that share of the requests, and keep it over a restart of the front door.

        What grows is raised before what shrinks is lowered: with both at 0 for a moment, requests of that moment would
        be refused.
        """
        now = self.servers()
        wanted = {STABLE: 100 - candidate_percent, CANDIDATE: candidate_percent}
        for name in sorted(wanted, key=lambda name: now[name].weight - wanted[name]):
            self._change(f"set server {BACKEND}/{name} weight {wanted[name]}")
        self._save()

    def ask(self, command: str) -> str:
        """The answer to one command. Raises `RequirementError` if nobody listens, `StageError` if nobody answers."""
        with self._connected() as connection:
            try:
                connection.sendall(command.encode() + b"\n")
                pieces = []
                while piece := connection.recv(_PIECE):
                    pieces.append(piece)
            except OSError as error:
                raise StageError(f"the front door at {self._path} gave no answer to {command!r}: {error}") from error
        return b"".join(pieces).decode()

    def stream(self) -> RequestStream:
        """The requests that finish from now on."""
        return RequestStream(self._connected())

    def _change(self, command: str) -> None:
        if answer := self.ask(command).strip():
            raise StageError(f"the front door at {self._path} refused {command!r}: {answer}")

    def _save(self) -> None:
        scratch = self._state.with_name(f".{self._state.name}.{os.getpid()}")
        scratch.write_text(self.ask("show servers state"))
        # The front door reads it when it starts, as a user of its own: who drives a rollout may be another one.
        with contextlib.suppress(FileNotFoundError):
            before = self._state.stat()
            scratch.chmod(before.st_mode & 0o777)
            if os.getuid() == 0:
                os.chown(scratch, before.st_uid, before.st_gid)
        scratch.replace(self._state)

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_ANSWER_WITHIN_S)
        try:
            connection.connect(str(self._path))
        except OSError as error:
            connection.close()
            raise RequirementError(
                f"no front door answers at {self._path} ({error.strerror or error}): start the deployment "
                "(docker compose up --wait), and run this as a user who may open that socket"
            ) from error
        return connection


class RequestStream:
    """Requests as they finish, read by a thread of its own, so that the ring never waits for us."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._lines: list[dict[str, Any]] = []
        self._ended = False
        connection.sendall(f"show events {REQUESTS} -w -n\n".encode())
        connection.settimeout(None)
        self._thread = threading.Thread(target=self._read, name="front-door-requests", daemon=True)
        self._thread.start()

    def take(self) -> list[dict[str, Any]]:
        """What has come since the last call. Raises `StageError` if the front door has gone."""
        with self._lock:
            lines, self._lines = self._lines, []
            ended = self._ended
        if ended and not lines:
            raise StageError("the front door has gone: its runtime socket was closed in the middle of the rollout")
        return lines

    def close(self) -> None:
        """Stop reading."""
        with contextlib.suppress(OSError):  # the other end was quicker
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(_ANSWER_WITHIN_S)
        self._connection.close()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                piece = self._connection.recv(_PIECE)
            except OSError:
                piece = b""
            *whole, rest = (rest + piece).split(b"\n")
            lines = [json.loads(line) for line in whole if line.startswith(b"{")]
            with self._lock:
                self._lines += lines
                self._ended = not piece
            if not piece:
                return
