"""The emitted Compose stack, brought up as its README says: two real Tritons, HAProxy and Prometheus in containers.

Podman and podman-compose stand for Docker; HAProxy and Prometheus are this machine's own, in images made like the
published ones. All of it runs in namespaces of its own, with the stack's real ports, and ends with them.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_host import PROMETHEUS, STORE, Host, engine_host, fetch, needed, program_image, wait_for
from workplace import Classifier

from model_repository import Repository
from model_repository.config import ConfigOptions, build, to_text
from pipeline.rollout.runtime_socket import FrontDoorSocket
from stages.deploy.keys import key_digests
from stages.deploy.options import DeployOptions
from stages.deploy.release import read_deployed
from stages.deploy.render import deploy

MODEL = "digits"
KEY = "a-key-for-the-tests-of-the-whole-stack"
OWNER = 1000
"""Whose deployment it is: not root's."""
INFER = f"/v2/models/{MODEL}/infer"


@dataclass(frozen=True)
class Stack:
    """The deployment while it runs. `folder`: what `optimize deploy` has written."""

    host: Host
    folder: Path

    def compose(self, *words: str) -> str:
        return self.host("podman-compose", *words, cwd=self.folder)

    def container(self, service: str) -> str:
        label = f"label=com.docker.compose.service={service}"
        return self.host("podman", "ps", "--all", "--quiet", "--filter", label).strip()

    def inspect(self, service: str, what: str) -> str:
        return self.host("podman", "inspect", self.container(service), "--format", what).strip()

    def ask(self, method: str, path: str, body: bytes | None = None, key: str | None = KEY) -> tuple[int, str]:
        """Status and text of an answer of the front door, over TLS with a certificate that is checked; 0 for none."""
        headers = {"x-api-key": key} if key else {}

        def asked() -> tuple[int, str]:
            connection = http.client.HTTPSConnection("localhost", 8443, context=self.trusted(), timeout=60)
            return fetch(connection, method, path, body, headers)

        return self.host.there(asked)

    def trusted(self) -> ssl.SSLContext:
        """Goes by a certificate's names alone, as browsers and most clients do; Python asks its subject too."""
        context = ssl.create_default_context(cafile=str(self.folder / "c.pem"))
        context.hostname_checks_common_name = False
        return context

    @property
    def socket(self) -> FrontDoorSocket:
        return FrontDoorSocket(self.folder / "run")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with engine_host(tmp_path_factory.mktemp("host")) as made:
        yield made


@pytest.fixture(scope="module")
def released(host: Host, classifier: Classifier) -> Iterator[dict[int, str]]:
    """Two versions of the trained classifier in a repository (the folder `repository`), and the images of both."""
    needed("docker-registry", "mmdebstrap", "busybox")
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(host.path / "store")}},
        "http": {"addr": STORE},
        "log": {"level": "error", "accesslog": {"disabled": True}},
    }
    (host.path / "store.yml").write_text(json.dumps(config))
    with (host.path / "store.log").open("w") as log:
        words = host.words("docker-registry", "serve", host.path / "store.yml")
        with subprocess.Popen(words, stdout=log, stderr=log) as running:
            wait_for(
                lambda: (
                    host.there(lambda: fetch(http.client.HTTPConnection(STORE, timeout=60), "GET", "/v2/"))[0] == 200
                )
            )
            yield build_both(host, classifier)
            running.terminate()


def build_both(host: Host, classifier: Classifier) -> dict[int, str]:
    from stages.runtime.onnxruntime import signature_of

    images = {}
    for version, most in ((1, 32), (2, 64)):
        tree = host.path / f"tree-{version}"
        tree.mkdir()
        shutil.copy(classifier.model, tree / "model.onnx")
        options = ConfigOptions(max_batch_size=most, threads=1)
        (tree / "config.pbtxt").write_text(to_text(build(MODEL, signature_of(tree / "model.onnx"), options)))
        Repository(host.path / "repository").publish(MODEL, tree, {})
        said = host(
            Path(sys.executable).with_name("optimize"), "image", host.path / "repository", f"{MODEL}@{version}",
            "--to", f"{STORE}/{MODEL}:{version}", "--kind", "serving", "--base", "local", "--plain-http", "--json",
        )  # fmt: skip
        (built,) = json.loads(said)
        images[version] = built["reference"]
    return images


@pytest.fixture(scope="module")
def stack(host: Host, released: dict[int, str]) -> Iterator[Stack]:
    """As its README says, without Grafana, by a user whose files are nobody else's unless somebody makes them so."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("prometheus is not on the PATH: apt install --no-install-recommends prometheus")
    program_image(host, "prometheus", PROMETHEUS % prometheus, prometheus)
    repository = Repository(host.path / "repository")
    (host.path / "keys.txt").write_text(KEY + "\n")
    options = DeployOptions(
        to="compose", image=released[1], candidate_image=released[2], host="localhost", cpus=1,
        keys=key_digests(host.path / "keys.txt"), requests_per_10s=1_000_000,
        haproxy_image="localhost/front-door", prometheus_image="localhost/prometheus",
    )  # fmt: skip
    folder = host.path / "deployment"
    usual = os.umask(0o077)
    try:
        deploy(read_deployed(repository, MODEL, 1), read_deployed(repository, MODEL, 2), options, folder)
    finally:
        os.umask(usual)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OWNER, OWNER)
    for step in steps_of((folder / "README.md").read_text()):
        words: dict[str, Any] = {"user": OWNER, "group": OWNER, "extra_groups": [], "cwd": folder}
        subprocess.run(["sh", "-e", "-c", step], check=True, capture_output=True, **words)
    made = Stack(host, folder)
    made.compose("up", "--detach", "stable", "candidate", "front-door", "prometheus")
    yield made
    made.compose("down")


def steps_of(readme: str) -> list[str]:
    """The commands before `up`: what goes into `.env`, and the certificate."""
    start = readme.partition("## Start")[2].partition("docker compose up")[0]
    return [*re.findall(r"`(echo .* >> \.env)`", start), *re.findall(r"```\n(.*?)```", start, re.DOTALL)]


def test_the_front_door_asks_for_a_key_and_opens_nothing_else(stack: Stack, classifier: Classifier) -> None:
    import onnxruntime

    wait_for(lambda: stack.ask("GET", "/v2/health/ready")[0] == 200)
    sample = np.load(classifier.evaluation)["x"][:3]
    status, said = stack.ask("POST", INFER, request(sample))
    assert status == 200, said
    (right,) = onnxruntime.InferenceSession(classifier.model).run(None, {"x": sample})
    (output,) = json.loads(said)["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), right, rtol=1e-4, atol=1e-5)

    assert stack.ask("POST", INFER, request(sample), key=None)[0] == 401
    assert stack.ask("POST", INFER, request(sample), key="another")[0] == 401
    for method, path in [
        ("GET", "/metrics"), ("POST", "/v2/repository/index"), ("POST", f"/v2/repository/models/{MODEL}/unload"),
        ("POST", f"/v2/models/{MODEL}/versions/2/infer"), ("GET", "/v2/logging"),
    ]:  # fmt: skip
        assert stack.ask(method, path, b"{}")[0] == 403, path
    assert stack.host.there(lambda: chosen(stack.trusted())) == "http/1.1"
    for service in ("stable", "candidate"):
        published = json.loads(stack.inspect(service, "{{json .NetworkSettings.Ports}}")) or {}
        assert not any(published.values()), published


def test_containers_have_no_rights_and_write_nowhere(stack: Stack) -> None:
    users = {"stable": 1000, "candidate": 1000, "front-door": OWNER, "prometheus": 65534}
    for service, user in users.items():
        status = stack.host("cat", f"/proc/{stack.inspect(service, '{{.State.Pid}}')}/status")
        assert re.search(rf"^Uid:\t{user}\t{user}\t{user}\t{user}$", status, re.MULTILINE), service
        assert re.search(r"^CapEff:\t0{16}$", status, re.MULTILINE), service
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE), service
        assert stack.inspect(service, "{{.HostConfig.ReadonlyRootfs}}") == "true", service
    assert int(stack.inspect("stable", "{{.HostConfig.Memory}}")) > 1 << 30
    touched = "import pathlib; pathlib.Path('/models/x').touch()"
    said = stack.host.run("podman", "exec", stack.container("stable"), "python3", "-c", touched)
    assert "Read-only file system" in said.stderr


def test_prometheus_sees_both_versions(stack: Stack) -> None:
    def targets() -> dict[str, str]:
        connection = http.client.HTTPConnection("localhost", 9090, timeout=60)
        status, said = stack.host.there(lambda: fetch(connection, "GET", "/api/v1/targets"))
        found = json.loads(said)["data"]["activeTargets"] if status == 200 else []
        return {f"{one['labels']['track']} {one['labels']['version']}": one["health"] for one in found}

    wait_for(lambda: targets() == {"stable 1": "up", "candidate 2": "up"})


def test_a_rollout_goes_to_the_end_and_back(stack: Stack) -> None:
    wait_for(lambda: all(server.up for server in stack.socket.servers().values()))
    stack.socket.shift(0)
    wide = ["--slack-ms", "5000", "--cold-slack-ms", "5000", "--max-errors", "20%", "--spacing-ms", "0"]
    command = [Path(sys.executable).with_name("optimize"), "rollout", stack.folder, "--no-record"]
    assert version_asked(stack) == "1"
    with load(stack) as answers:
        wait_for(lambda: answers[:1] == [200])
        words = [*command, "--steps", "50", "--step-at-least", "0", *wide, "--json"]
        ended = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        document = json.loads(ended.stdout)
        assert (document["status"], document["candidate_percent"]) == ("promoted", 100)
        assert [step["candidate_percent"] for step in document["steps"]] == [50]
        assert version_asked(stack) == "2"
        subprocess.run([str(word) for word in (*command, "--mode", "roll-back")], check=True, capture_output=True)
        assert version_asked(stack) == "1"
    assert set(answers) == {200}


def test_a_promotion_survives_a_restart_of_the_front_door(stack: Stack) -> None:
    wait_for(lambda: all(server.up for server in stack.socket.servers().values()))
    stack.socket.shift(100)
    began = stack.inspect("front-door", "{{.State.StartedAt}}")
    stack.compose("restart", "front-door")
    assert stack.inspect("front-door", "{{.State.StartedAt}}") != began
    wait_for(lambda: stack.ask("GET", "/v2/health/ready")[0] == 200)
    assert version_asked(stack) == "2"
    stack.socket.shift(0)


def test_a_server_that_comes_back_elsewhere_is_found(stack: Stack) -> None:
    """The engine gives it another address; its name stays."""
    wait_for(lambda: stack.socket.servers()["candidate"].up)
    where = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    before = stack.inspect("candidate", where)
    stack.host("podman", "restart", "--time", "60", stack.container("candidate"))
    assert stack.inspect("candidate", where) != before
    wait_for(lambda: stack.socket.servers()["candidate"].up)


def test_the_stack_ends_with_success(stack: Stack) -> None:
    """The last: servers and the front door end by themselves when they are told to, and nothing of them stays."""
    stack.compose("stop", "--timeout", "120")
    for service in ("stable", "candidate", "front-door", "prometheus"):
        assert stack.inspect(service, "{{.State.ExitCode}}") == "0", service
    stack.compose("down", "--volumes")
    assert stack.host("podman", "ps", "--all", "--quiet") == ""
    assert "digits" not in stack.host("podman", "volume", "ls", "--quiet")


def request(samples: Any) -> bytes:
    rows = {"name": "x", "datatype": "FP32", "shape": list(samples.shape), "data": samples.ravel().tolist()}
    return json.dumps({"inputs": [rows]}).encode()


def version_asked(stack: Stack) -> str:
    status, said = stack.ask("POST", INFER, request(np.zeros((1, 64), np.float32)))
    assert status == 200, said
    return str(json.loads(said)["model_version"])


@contextmanager
def load(stack: Stack) -> Iterator[list[int]]:
    """A client that asks again and again over one connection; the statuses of its answers."""
    answers: list[int] = []
    over = threading.Event()
    body = request(np.zeros((1, 64), np.float32))

    def ask() -> None:
        stack.host.enter()
        connection = http.client.HTTPSConnection("localhost", 8443, context=stack.trusted(), timeout=60)
        while not over.wait(0.002):
            connection.request("POST", INFER, body, {"x-api-key": KEY})
            response = connection.getresponse()
            response.read()
            answers.append(response.status)
        connection.close()

    client = threading.Thread(target=ask, daemon=True)
    client.start()
    try:
        yield answers
    finally:
        over.set()
        client.join()


def chosen(context: ssl.SSLContext) -> str | None:
    """What the front door chooses of HTTP/2, in which its refusals would be cut off, and HTTP/1.1."""
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection(("localhost", 8443))
    with context.wrap_socket(plain, server_hostname="localhost") as connection:
        return connection.selected_alpn_protocol()
