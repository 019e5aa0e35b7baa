"""The webhook on MLflow's side, and what breaks it in silence, with a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from registries import MlflowServer

from pipeline.cli.doctor import doctor
from pipeline.triggers.hooks import EVENTS, examine, register_hook
from pipeline.triggers.registry import Registry
from stages.errors import InputError, RequirementError

SECRET = "another secret"
OTHER_KEY = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU="


@pytest.fixture
def registry(server: MlflowServer) -> Iterator[Registry]:
    registry = Registry(server.uri)
    yield registry
    for hook in registry.client().list_webhooks():
        registry.client().delete_webhook(hook.webhook_id)


def states(uri: str) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.state, finding.text) for finding in examine(uri, seconds=120)}


def test_a_hook_is_made_once_and_brought_up_to_date(registry: Registry) -> None:
    assert "made (id" in register_hook(registry, "mine", "https://1.1.1.1/webhook", SECRET)
    assert "brought up to date" in register_hook(registry, "mine", "https://1.1.1.1/other", SECRET)
    [hook] = registry.client().list_webhooks()
    assert hook.url == "https://1.1.1.1/other"
    assert {str(event) for event in hook.events} == set(EVENTS)


def test_a_test_delivery_that_nobody_receives_is_told(registry: Registry) -> None:
    with pytest.raises(RequirementError, match=r"a test delivery to http://127\.0\.0\.1:9/webhook failed"):
        register_hook(registry, "mine", "http://127.0.0.1:9/webhook", SECRET, test=True)


def test_an_address_that_the_server_refuses(registry: Registry) -> None:
    with pytest.raises(InputError, match=r"refuses ftp://x/webhook: .*scheme"):
        register_hook(registry, "mine", "ftp://x/webhook", SECRET)


def test_a_database_sends_none(database: str) -> None:
    with pytest.raises(InputError, match="is no server"):
        register_hook(Registry(database), "mine", "https://1.1.1.1/webhook", SECRET)


def test_what_is_well_is_told(registry: Registry, server: MlflowServer) -> None:
    assert states(server.uri)["webhooks"][0] == "unknown", "without a webhook the key cannot be tried"
    register_hook(registry, "mine", "https://1.1.1.1/webhook", SECRET)
    found = states(server.uri)
    assert found["server"][0] == "ok"
    assert found["webhooks"][0] == "ok"
    assert re.fullmatch(r"1, readable in ([1-8]) of \1 requests", found["webhooks"][1]), (
        "one that is too slow is no error"
    )
    assert "webhook" not in found


def test_an_address_that_needs_an_exception_is_told(registry: Registry, server: MlflowServer) -> None:
    register_hook(registry, "mine", "http://127.0.0.1:9/webhook", SECRET)
    state, text = states(server.uri)["webhook"]
    assert state == "unknown"
    assert "ALLOWED_SCHEMES=http,https and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true" in text


def test_a_server_that_has_lost_its_key_is_told(
    registry: Registry, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart without the key: everything answers but what has to do with webhooks."""
    register_hook(registry, "mine", "https://1.1.1.1/webhook", SECRET)
    server.stop()
    server.start(OTHER_KEY)
    try:
        state, text = states(server.uri)["webhooks"]
        assert state == "wrong"
        assert re.match(r"([1-8]) of \1 requests for the webhooks failed", text)
        assert "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY" in text
        with pytest.raises(RequirementError, match="MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"):
            register_hook(registry, "mine", "https://1.1.1.1/webhook", SECRET)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        assert re.search(r"WRONG: ([1-8]) of \1", CliRunner().invoke(doctor).output)
    finally:
        server.stop()
        server.start()


def test_a_server_that_is_not_there_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states("http://me:password@127.0.0.1:9")["server"][0] == "wrong"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///x.db")
    found = states("http://127.0.0.1:9")
    assert "fires nothing" in found["registry"][1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:password@127.0.0.1:9")
    assert "password" not in CliRunner().invoke(doctor).output


def test_a_server_that_says_nothing_is_left_in_time() -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        [finding] = examine(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.5)
        assert (finding.name, finding.state) == ("server", "wrong")
