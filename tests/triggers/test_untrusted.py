"""What a registry may say, and what comes of it here: nothing is read or written but what a model consists of.

A small server on loopback stands for a hostile one, which MLflow's own cannot be made to be.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner

from pipeline.triggers.registry import Registry, RegistryAwayError
from pipeline.triggers.text import one_line
from stages.errors import InputError, RequirementError
from stages.source.mlflow_model import download, unpack

Listing = Callable[[str], list[dict[str, Any]]]


class Hostile:
    """Says that version 1 of every model lies in its own artifact store, and lists there what it likes. Asked
    for the model `noisy` it answers with an error that would rename a terminal's window."""

    def __init__(self, listing: Listing) -> None:
        self.asked = 0
        hostile = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                address, status = urlsplit(self.path), 200
                if address.path.endswith("/model-versions/get-download-uri"):
                    answer: Any = {"artifact_uri": "mlflow-artifacts:/m"}
                elif address.path.endswith("/mlflow-artifacts/artifacts"):
                    hostile.asked += 1
                    answer = {"files": listing(parse_qs(address.query).get("path", [""])[0])}
                elif "/mlflow-artifacts/artifacts/" in address.path:
                    answer = {"pwned": True}
                elif parse_qs(address.query).get("name") != ["noisy"]:
                    answer = {}
                else:
                    status = 400
                    answer = {"error_code": "INVALID_PARAMETER_VALUE", "message": "no \x1b]0;owned\x07 \x9b31m"}
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Listing], Hostile]]:
    started: list[Hostile] = []
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def start(listing: Listing) -> Hostile:
        started.append(Hostile(listing))
        return started[-1]

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()


def file(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "is_dir": False, "file_size": 7} | more


@pytest.mark.parametrize("path", ["../../pwned", "/tmp/pwned", "a/../../pwned", "..%2f..%2fpwned"])
def test_a_listing_that_leads_elsewhere_is_refused_and_writes_nothing(
    hostile: Callable[[Listing], Hostile], tmp_path: Path, path: str
) -> None:
    server = hostile(lambda _: [file("MLmodel"), file(path)])
    with pytest.raises((InputError, RegistryAwayError)):
        Registry(server.uri).size_bytes("minilm", 1, 10**9)
    scratch = tmp_path / "deep" / "scratch"
    scratch.mkdir(parents=True)
    with pytest.raises((InputError, RequirementError)):
        download("models:/minilm/1", server.uri, scratch)
    assert {found.name for found in tmp_path.rglob("*") if found.is_file()} <= {"MLmodel"}
    assert not Path("/tmp/pwned").exists()


def test_a_listing_without_sizes_is_refused(hostile: Callable[[Listing], Hostile]) -> None:
    server = hostile(lambda _: [{"path": "weights", "is_dir": False}])
    with pytest.raises(InputError, match=r"lists 'weights' without a size"):
        Registry(server.uri).size_bytes("minilm", 1, 10**9)
    server = hostile(lambda _: [file("weights", file_size=-5)])
    with pytest.raises(InputError, match=r"lists 'weights' without a size"):
        Registry(server.uri).size_bytes("minilm", 1, 10**9)


def test_a_listing_without_end_is_refused(
    hostile: Callable[[Listing], Hostile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each folder has another one in it."""
    monkeypatch.setattr("pipeline.triggers.registry._MOST_FILES", 20)
    server = hostile(lambda _: [file("deeper", is_dir=True)])
    with pytest.raises(InputError, match="lists more than 20 files and folders"):
        Registry(server.uri).size_bytes("minilm", 1, 10**9)
    assert server.asked <= 21


@pytest.mark.parametrize(
    "flavour",
    [
        {"onnx": {"data": "../secret"}},
        {"onnx": {"data": "/etc/passwd"}},
        {"onnx": {"data": "link"}},
        {"transformers": {"model_binary": "../../secret"}},
        {"transformers": {"model_binary": "model", "components": ["../../secret"]}},
        {"pytorch": {"model_data": "../secret"}},
    ],
    ids=str,
)
def test_a_description_that_leads_out_of_the_models_folder_is_refused(tmp_path: Path, flavour: Any) -> None:
    root = tmp_path / "model"
    (root / "model").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "MLmodel").write_text(json.dumps({"flavors": flavour}))
    with pytest.raises(InputError, match=r"leaves the model's folder"):
        unpack(root, "models:/minilm/1", allow_pickle=False, scratch=tmp_path / "scratch")


def test_what_a_registry_says_is_no_command_to_a_terminal(
    hostile: Callable[[Listing], Hostile], tmp_path: Path
) -> None:
    from pipeline.cli.watch import watch

    server = hostile(lambda _: [])
    ended = CliRunner().invoke(
        watch, ["noisy", "--once", "--store", str(tmp_path), "--tracking-uri", server.uri, "--json"]
    )
    assert "owned" in ended.stderr
    assert not {"\x1b", "\x07", "\x9b"} & set(ended.output)
    assert one_line("a\x1b[31m\x7f\x9b\tb\r\nc") == "a\ufffd[31m\ufffd\ufffd b c"
