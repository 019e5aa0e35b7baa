"""Passing on to GitHub and GitLab. A small server on loopback stands for both, which cannot be had here."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_receiver import Start, body_of
from test_receiver import deliver as post

from pipeline.triggers.inbox import read_delivery
from pipeline.triggers.relay import GitHub, GitLab, payload
from stages.errors import InputError

TOKENS = {"OPTIMIZE_GITHUB_TOKEN": "github-token", "OPTIMIZE_GITLAB_TOKEN": "gitlab-token"}


class Forge:
    """Records what is posted to it; answers with `statuses` in turn, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        forge, left = self, list(statuses)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                forge.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def forge() -> Iterator[Callable[..., Forge]]:
    forges: list[Forge] = []

    def start(*statuses: int) -> Forge:
        forges.append(Forge(*statuses))
        return forges[-1]

    yield start
    for one in forges:
        one.server.shutdown()
        one.server.server_close()


def deliver(address: str, **data: Any) -> None:
    assert post(address, body_of(**data)) == 202


def wait_for(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.05)


def test_a_delivery_is_passed_on_to_both(receiver: Start, forge: Callable[..., Forge], tmp_path: Path) -> None:
    github, gitlab = forge(204), forge(500, 201)
    address, _ = receiver(
        "--github", "acme/models", "--github-url", github.address,
        "--gitlab", "acme/ml/models", "--gitlab-url", gitlab.address, "--gitlab-ref", "release", **TOKENS,
    )  # fmt: skip
    deliver(address, name="minilm-optimized")
    deliver(address, name="../up")
    deliver(address)
    wait_for(lambda: len(github.requests) >= 1 and len(gitlab.requests) >= 2)
    [(path, sent, body)] = github.requests
    assert path == "/repos/acme/models/dispatches"
    assert sent["authorization"] == "Bearer github-token"
    content = json.loads(body)
    assert content["event_type"] == "mlflow-model"
    assert {**content["client_payload"], "delivery": ""} == {
        "event": "model_version.created", "delivery": "", "model": "minilm", "version": 1,
    }  # fmt: skip
    assert gitlab.requests[0][2] == gitlab.requests[1][2], "tried again after the 500"
    path, _, body = gitlab.requests[1]
    assert path == "/api/v4/projects/acme%2Fml%2Fmodels/trigger/pipeline"
    form = dict(urllib.parse.parse_qsl(body.decode()))
    assert (form["token"], form["ref"], form["variables[OPTIMIZE_MODEL]"]) == ("gitlab-token", "release", "minilm")
    log = tmp_path / "store" / "receiver.log"
    wait_for(lambda: "passed on to gitlab" in log.read_text())
    assert "GitLab answered 500" in log.read_text()
    assert not any(token in log.read_text() for token in TOKENS.values())


def test_what_was_not_passed_on_survives_a_restart(
    receiver: Start, forge: Callable[..., Forge], tmp_path: Path
) -> None:
    log = tmp_path / "store" / "receiver.log"
    options = ("--github", "acme/models", "--github-url")
    address, process = receiver(*options, "http://127.0.0.1:9", **TOKENS)
    deliver(address)
    wait_for(lambda: "will be tried again: GitHub cannot be reached" in log.read_text())
    process.kill()
    process.wait()
    github = forge(204)
    receiver(*options, github.address, **TOKENS)
    wait_for(lambda: len(github.requests) == 1)


def test_what_will_never_be_taken_is_given_up(receiver: Start, forge: Callable[..., Forge], tmp_path: Path) -> None:
    github = forge(401)
    address, _ = receiver("--github", "acme/models", "--github-url", github.address, **TOKENS)
    deliver(address)
    log = tmp_path / "store" / "receiver.log"
    wait_for(lambda: "given up: GitHub answered 401 to /repos/acme/models/dispatches" in log.read_text())
    assert len(github.requests) == 1


def test_what_is_passed_on_is_harmless_in_a_shell() -> None:
    hostile = read_delivery("id", body_of(version="1; reboot", alias="$(reboot)"))
    assert payload(hostile) == {"event": "model_version.created", "delivery": "id", "model": "minilm"}
    assert not read_delivery("id", body_of(name="`x`")).to_relay


@pytest.mark.parametrize("repository", ["acme", "acme/../x", "acme/models/x", "a b/c", "/x"])
def test_a_repository_that_is_none(repository: str) -> None:
    with pytest.raises(InputError, match="--github"):
        GitHub(repository, "t")


def test_a_token_is_sent_over_tls_and_never_shown() -> None:
    with pytest.raises(InputError, match="no https address"):
        GitLab("7", "secret-token", url="http://gitlab.example")
    assert "secret-token" not in repr(GitLab("7", "secret-token"))
