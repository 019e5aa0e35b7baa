"""A registry on the loopback that does as the distribution specification says, until it is told to fail."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


@dataclass
class Fault:
    """What goes wrong with requests of a method whose path holds `path`, `times` times after `skip` right ones.

    `status` answers with that; `drop_after` reads or writes that many bytes of the body and cuts the connection;
    `change` alters the headers of the right answer, `body` its content.
    """

    method: str
    path: str
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    change: Callable[[dict[str, str]], None] | None = None
    body: Callable[[bytes], bytes] | None = None


class FaultyRegistry:
    """The registry. Everything it holds and was asked is public. `login` asks for a name and a password; `token` sends
    its clients for a bearer token with them; `referrers_api` serves referrers."""

    def __init__(
        self, *, login: tuple[str, str] | None = None, token: bool = False, referrers_api: bool = False
    ) -> None:
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str | None] = []
        self.faults: list[Fault] = []
        self.received = 0
        self.ranges = True
        self.login = login
        self.token = token
        self.referrers_api = referrers_api
        self.tokens: dict[str, set[str]] = {}
        registry = self

        class Handler(_Handler):
            pass

        Handler.registry = registry
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def tags(self, name: str) -> list[str]:
        return sorted(tag for owner, tag in self.manifests if owner == name and not tag.startswith("sha256"))

    def asked(self, method: str, path: str = "") -> int:
        return sum(one == method and path in where for one, where in self.requests)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Cut(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: FaultyRegistry

    def log_message(self, *ignored: Any) -> None:
        pass

    def _go(self) -> None:
        registry = self.registry
        registry.requests.append((self.command, self.path))
        registry.authorizations.append(self.headers.get("Authorization"))
        self._fault = self._next_fault()
        self._left = int(self.headers.get("Content-Length") or 0)
        try:
            if self._fault and self._fault.status:
                self._read()
                self._answer(self._fault.status, {"Content-Type": "application/json", **self._fault.headers},
                             b'{"errors":[{"code":"TROUBLE","message":"as told"}]}', plain=True)  # fmt: skip
            elif self.path.startswith("/token"):
                self._give_token()
            elif self._allowed():
                self._serve()
        except _Cut:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _go

    def _next_fault(self) -> Fault | None:
        for fault in self.registry.faults:
            if fault.method == self.command and fault.path in self.path and fault.times > 0:
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _read(self, into: bytearray | None = None) -> bytes:
        """The body; as much of it as comes before the connection is to be cut goes `into` that all the same."""
        content = into if into is not None else bytearray()
        start = len(content)
        limit = self._fault.drop_after if self._fault else None
        while self._left:
            piece = self.rfile.read(min(self._left, 1 << 16))
            if not piece:
                raise _Cut
            self._left -= len(piece)
            content += piece if limit is None else piece[: max(0, limit - (len(content) - start))]
            self.registry.received += len(piece)
            if limit is not None and len(content) - start >= limit:
                raise _Cut
        return bytes(content[start:])

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", plain: bool = False
    ) -> None:
        given = dict(headers or {})
        if self._fault and not plain:
            if self._fault.change:
                self._fault.change(given)
            if self._fault.body:
                body = self._fault.body(body)
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **given}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self._fault.drop_after if self._fault and self.command == "GET" else None
        self.wfile.write(body if limit is None else body[:limit])
        if limit is not None:
            self.wfile.flush()
            raise _Cut

    # Who asks

    def _allowed(self) -> bool:
        registry = self.registry
        if registry.login is None:
            return True
        given = self.headers.get("Authorization") or ""
        if registry.token:
            scopes = registry.tokens.get(given.removeprefix("Bearer "), set())
            name = re.match(r"/v2/(.+?)/(blobs|manifests|referrers)/", self.path)
            action = "pull" if self.command in ("GET", "HEAD") else "push"
            if name and any(s.startswith(f"repository:{name[1]}:") and action in s for s in scopes):
                return True
            challenge = f'Bearer realm="http://{registry.host}/token",service="test"'
        else:
            if given == _basic(registry.login):
                return True
            challenge = 'Basic realm="test"'
        self._read()
        self._answer(401, {"WWW-Authenticate": challenge}, b'{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}')
        return False

    def _give_token(self) -> None:
        assert self.registry.login
        query = parse_qs(urlsplit(self.path).query)
        if self.command == "POST":
            form = parse_qs(self._read().decode())
            right = form["refresh_token"] == [self.registry.login[1]]
            scopes = set(form["scope"][0].split())
        else:
            right = self.headers.get("Authorization") == _basic(self.registry.login)
            scopes = set(query.get("scope", []))
        if not right:
            self._answer(401, {}, b"{}")
            return
        token = secrets.token_hex(8)
        self.registry.tokens[token] = scopes
        self._answer(200, {"Content-Type": "application/json"}, json.dumps({"token": token}).encode())

    # What is asked

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {key: value[0] for key, value in parse_qs(parts.query).items()}
        for pattern, serve in (
            (r"/v2/(.+)/blobs/uploads/$", self._open),
            (r"/v2/(.+)/blobs/uploads/([0-9a-f]+)$", self._upload),
            (r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})$", self._blob),
            (r"/v2/(.+)/manifests/(.+)$", self._manifest),
            (r"/v2/(.+)/referrers/(.+)$", self._referrers),
        ):
            if found := re.fullmatch(pattern, parts.path):
                serve(*found.groups(), query=query)
                return
        self._answer(404)

    def _open(self, name: str, query: dict[str, str]) -> None:
        self._read()
        known = self.registry.blobs.get((query.get("from", ""), query.get("mount", "")))
        if known is not None:
            self.registry.blobs[name, query["mount"]] = known
            self._answer(201, {"Location": f"/v2/{name}/blobs/{query['mount']}"})
            return
        session = secrets.token_hex(8)
        self.registry.uploads[session] = bytearray()
        self._answer(202, {"Location": f"/v2/{name}/blobs/uploads/{session}", "Range": "0-0"})

    def _upload(self, name: str, session: str, query: dict[str, str]) -> None:
        content = self.registry.uploads.get(session)
        if content is None:
            self._read()
            self._answer(404)
            return
        place = {"Location": f"/v2/{name}/blobs/uploads/{session}"}
        if self.command == "PATCH":
            start = int(self.headers["Content-Range"].partition("-")[0])
            if start != len(content):
                self._read()
                self._answer(416, {**place, "Range": f"0-{max(0, len(content) - 1)}"})
                return
            self._read(content)
            self._answer(202, {**place, "Range": f"0-{max(0, len(content) - 1)}"})
        elif self.command == "PUT":
            self._read(content)
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            if digest != query["digest"]:
                self._answer(400, {}, b'{"errors":[{"code":"DIGEST_INVALID","message":"other content"}]}')
                return
            self.registry.blobs[name, digest] = bytes(content)
            del self.registry.uploads[session]
            self._answer(201, {"Docker-Content-Digest": digest})
        elif self.command == "DELETE":
            del self.registry.uploads[session]
            self._answer(204)
        else:
            self._answer(204, {**place, "Range": f"0-{max(0, len(content) - 1)}"})

    def _blob(self, name: str, digest: str, query: dict[str, str]) -> None:
        content = self.registry.blobs.get((name, digest))
        if content is None:
            self._answer(404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and self.registry.ranges:
            start = int(wanted[1])
            self._answer(206, {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}, content[start:])
        else:
            self._answer(200, {"Docker-Content-Digest": digest, "Content-Length": str(len(content))}, content)

    def _manifest(self, name: str, reference: str, query: dict[str, str]) -> None:
        registry = self.registry
        if self.command == "PUT":
            content = self._read()
            document = json.loads(content)
            for blob in [document["config"], *document["layers"]] if "config" in document else []:
                if (name, blob["digest"]) not in registry.blobs:
                    self._answer(400, {}, b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"}]}')
                    return
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            for key in {digest, reference}:
                registry.manifests[name, key] = (self.headers["Content-Type"], content)
            subject = document.get("subject") if registry.referrers_api else None
            self._answer(
                201, {"Docker-Content-Digest": digest, **({"OCI-Subject": subject["digest"]} if subject else {})}
            )
            return
        found = registry.manifests.get((name, reference))
        if found is None:
            self._answer(404)
            return
        digest = f"sha256:{hashlib.sha256(found[1]).hexdigest()}"
        self._answer(200, {"Content-Type": found[0], "Docker-Content-Digest": digest}, found[1])

    def _referrers(self, name: str, digest: str, query: dict[str, str]) -> None:
        if not self.registry.referrers_api:
            self._answer(404)
            return
        listed = []
        for (owner, reference), (media_type, content) in self.registry.manifests.items():
            document = json.loads(content)
            if (
                owner == name
                and reference.startswith("sha256:")
                and document.get("subject", {}).get("digest") == digest
            ):
                listed.append({"mediaType": media_type, "digest": reference, "size": len(content),
                               "artifactType": document["artifactType"]})  # fmt: skip
        body = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
        self._answer(200, {"Content-Type": "application/vnd.oci.image.index.v1+json"}, body)


def _basic(login: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(login).encode()).decode()
