"""A front door over two real servers on this machine, and clients that ask it."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from loopback import unused_ports

from model_repository import Repository
from model_repository.server import Server
from pipeline.rollout.runtime_socket import FrontDoorSocket
from stages.artifact import Artifact
from stages.deploy.deployment import DEPLOYMENT, Deployment, VersionSummary
from stages.deploy.front_door import FrontDoor, Limits, Upstream, haproxy_configuration
from stages.errors import RequirementError
from stages.model import Model
from stages.package import PackageOptions, package
from stages.runtime.onnxruntime import signature_of

MODEL = "twice"
KEY = "a key for tests"
PATH = f"/v2/models/{MODEL}/infer"
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, -3, 4]}]}).encode()
GRAPH = """
    <ir_version: 8, opset_import: ["" : 17]>
    twice (float[batch, %d] x) => (float[batch, %d] y) <float[1] factor = {%s}> { y = Mul(x, factor) }
"""


def haproxy() -> str:
    """The program; skips where there is none."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip("haproxy is not installed: apt-get install --no-install-recommends haproxy")
    return found


def make_repository(path: Path, factor: str = "2", width: int = 4, **options: Any) -> Path:
    """A model repository that serves `x * factor`; `options` are those of the package."""
    import onnx

    (path / "model").mkdir(parents=True)
    graph = path / "model" / "model.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH % (width, width, factor)), graph)
    model = Model(signature=signature_of(graph), opset=17, precision="fp32")
    artifact = Artifact.write(path / "model", "model", model.model_dump(mode="json"))
    (path / "release").mkdir()
    release = package(model=artifact, options=PackageOptions(name=MODEL, threads=1, **options), out=path / "release")
    Repository(path / "repository").publish(MODEL, release.path, {})
    return path / "repository"


def address(server: Server) -> str:
    return server.http_address.removeprefix("http://")


@dataclass
class Stack:
    """A deployment's folder with a front door that runs."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    program: str
    keyed: bool

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def socket(self) -> FrontDoorSocket:
        return FrontDoorSocket(self.run)

    def weights(self) -> tuple[int, int]:
        servers = self.socket.servers()
        return servers["stable"].weight, servers["candidate"].weight

    def restart(self) -> None:
        self.stop()
        self.process = _start(self.program, self.folder)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def ask(self, method: str = "POST", path: str = PATH, body: bytes | None = BODY, **headers: str) -> tuple[int, str]:
        """Status and body. A header's name is written with `_`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body if method == "POST" else None, headers=given)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()


def _start(program: str, folder: Path) -> subprocess.Popen[bytes]:
    """HAProxy, once its own socket answers: it opens that one with all others. A port alone may be somebody else's."""
    with (folder / "haproxy.log").open("ab") as log:
        process = subprocess.Popen([program, "-db", "-f", str(folder / "haproxy.cfg")], stdout=log, stderr=log)
    for _ in range(2400):
        try:
            FrontDoorSocket(folder / "run").servers()
            return process
        except RequirementError:
            assert process.poll() is None, (folder / "haproxy.log").read_text()
            time.sleep(0.05)
    raise AssertionError("the front door does not listen")


@contextmanager
def stack(
    folder: Path,
    stable: str,
    candidate: str,
    *,
    share: int = 0,
    keyed: bool = False,
    sampled_percent: int = 0,
    limits: Limits | None = None,
    strategy: str = "canary",
    certificate: str | None = None,
) -> Iterator[Stack]:
    """The front door of a deployment, with the configuration that is emitted, over servers at these addresses."""
    program = haproxy()
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "servers.state").write_text("1\n")
    (folder / "keys.sha256").write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")
    (port,) = unused_ports(1)
    door = FrontDoor(
        model=MODEL,
        stable=Upstream(stable, 100 - share),
        candidate=Upstream(candidate, share),
        bind=f"127.0.0.1:{port}",
        certificate=certificate,
        keys=str(folder / "keys.sha256") if keyed else None,
        run=str(folder / "run"),
        sampled_percent=sampled_percent,
        limits=limits or Limits(requests_per_10s=1_000_000),
    )
    (folder / "haproxy.cfg").write_text(haproxy_configuration(door))
    images = [
        VersionSummary(version=n, digest=None, variant=None, image="localhost/x@sha256:" + "0" * 64) for n in (1, 2)
    ]
    deployment = Deployment(
        model=MODEL, target="compose", strategy=strategy, stable=images[0], candidate=images[1], run="run"
    )  # fmt: skip
    (folder / DEPLOYMENT).write_text(deployment.model_dump_json())
    running = Stack(folder, port, _start(program, folder), program, keyed)
    try:
        yield running
    finally:
        running.stop()


@dataclass
class Load:
    """Clients that keep asking, each over one connection. `answers` counts what they got."""

    port: int
    clients: int = 2
    pause_s: float = 0.0
    most: int = 100_000
    answers: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(self.clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(600)

    def wait_for(self, requests: int) -> None:
        """Until so many more requests have been answered."""
        goal = self.answers.total() + requests
        while self.answers.total() < goal and any(thread.is_alive() for thread in self._threads):
            time.sleep(0.02)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        for _ in range(self.most // self.clients):
            if self._stop.wait(self.pause_s) if self.pause_s else self._stop.is_set():
                break
            try:
                connection.request("POST", PATH, body=BODY, headers={"content-type": "application/json"})
                response = connection.getresponse()
                response.read()
                self.answers[str(response.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.answers[type(error).__name__] += 1
                connection.close()
        connection.close()
