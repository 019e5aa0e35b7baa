"""The webhook on MLflow's side: made once, and what silently breaks it.

MLflow delivers from a pool of threads inside its workers, without an outbox, and tells nobody when a delivery fails. So
what would break it is looked for beforehand (all of it seen with MLflow 3.17 and 3.18).
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.records.address import is_server, public
from pipeline.triggers.registry import Registry
from stages.errors import InputError, RequirementError

__all__ = ["EVENTS", "Finding", "examine", "register_hook"]

EVENTS = ("model_version.created", "model_version_alias.created")
"""What the watch wants to hear of."""

_CONNECTIONS = 8
"""Fresh connections to the server. Each may reach another of its workers; a client that keeps its own reaches one."""

_KEY = (
    "set MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY for the server, the same in all workers and after every restart: without "
    " it each worker makes a key of its own and cannot read what another has stored"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `state`: `ok`, `wrong`, or `unknown` where it cannot be told from here."""

    name: str
    state: Literal["ok", "wrong", "unknown"]
    text: str


def register_hook(registry: Registry, name: str, url: str, secret: str, *, test: bool = False) -> str:
    """Make the webhook `name` on the server, or bring the one of that name up to date; says in words what was done.

    `test`: have the server send an example delivery. Raises `InputError` if the server refuses the address or there is
    no server, `RequirementError` if its workers do not share a key or the example was not received.
    """
    from mlflow.exceptions import MlflowException

    if not is_server(registry.tracking_uri):
        raise InputError(f"{registry.name} is no server: MLflow sends webhooks only for what goes through one")
    shared = _key(registry.tracking_uri, time.monotonic() + 20)
    if shared.state == "wrong":
        raise RequirementError(shared.text)
    client = registry.client()
    with registry.errors("its list of webhooks"):
        found = [hook for hook in _hooks(client) if hook.name == name]
    about = {"name": name, "url": url, "events": list(EVENTS), "secret": secret, "status": "ACTIVE"}
    try:
        if found:
            hook = client.update_webhook(found[0].webhook_id, **about)
        else:
            hook = client.create_webhook(description="Wakes `optimize watch`.", **about)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise InputError(f"MLflow at {registry.name} refuses {url}: {error.message}. {_rule(url)}") from error
        raise RequirementError(
            f"MLflow at {registry.name} could not make the webhook: {error.message}. {_KEY}"
        ) from error
    said = f"webhook {name} {'brought up to date' if found else 'made'} (id {hook.webhook_id}); workers that have sent "
    said += "webhooks before learn of it within a minute"
    if test:
        with registry.errors("the test of the webhook"):
            result = client.test_webhook(hook.webhook_id, EVENTS[0])
        if not result.success:
            why = result.error_message or f"status {result.response_status}"
            raise RequirementError(f"{said}; but a test delivery to {url} failed: {why}")
        said += "; a test delivery was received"
    return said


def examine(tracking_uri: str, seconds: float = 10.0) -> list[Finding]:
    """Look at a server for what breaks webhooks in silence, for so many seconds at most. Changes nothing there."""
    deadline = time.monotonic() + seconds
    findings = [_answers(tracking_uri, deadline)]
    if findings[0].state == "ok":
        findings += [_key(tracking_uri, deadline), *_addresses(tracking_uri, deadline)]
    registry = os.environ.get("MLFLOW_REGISTRY_URI")
    if registry and not is_server(registry):
        text = f"MLFLOW_REGISTRY_URI is {public(registry)}: what is registered there fires nothing"
        findings.append(Finding("registry", "wrong", text))
    return findings


def _answers(tracking_uri: str, deadline: float) -> Finding:
    """Whether the server is there, which version it is, and whether its database fits."""
    from importlib.metadata import version

    status, body = _get(tracking_uri, "/version", deadline)
    if status != 200:
        return Finding("server", "wrong", f"{public(tracking_uri)} does not answer ({_told(status, body)})")
    server, client = body.strip()[:40], version("mlflow")
    status, body = _get(tracking_uri, "/api/2.0/mlflow/registered-models/search?max_results=1", deadline)
    if status in (401, 403):
        return Finding("server", "unknown", f"MLflow {server} refuses to be asked without a password ({status})")
    if status != 200:
        # A schema that does not fit its program shows as an error of the database, in every answer.
        return Finding("server", "wrong", f"MLflow {server} cannot read its registry ({_told(status, body)})")
    text = f"MLflow {server} at {public(tracking_uri)}"
    if server.split(".")[:2] != client.split(".")[:2]:
        text += f"; this client is {client}"
    return Finding("server", "ok", text)


def _key(tracking_uri: str, deadline: float) -> Finding:
    """Whether all workers can read the secrets of the webhooks, asked over several fresh connections."""
    broken, hooks, asked, last = 0, 0, 0, ""
    for _ in range(_CONNECTIONS):
        status, body = _get(tracking_uri, "/api/2.0/mlflow/webhooks?max_results=100", deadline)
        if status in (404, 501):
            return Finding("webhooks", "unknown", "this server knows no webhooks")
        if status == 0:
            break
        asked += 1
        if status >= 500:
            broken, last = broken + 1, _told(status, body)
        elif status == 200:
            hooks = len(_listed(body))
    if not asked:
        return Finding("webhooks", "unknown", "the server did not answer in time")
    if broken:
        return Finding("webhooks", "wrong", f"{broken} of {asked} requests for the webhooks failed ({last}): {_KEY}")
    if not hooks:
        return Finding(
            "webhooks", "unknown", f"none is there, so the server's encryption key cannot be tried. Before: {_KEY}"
        )
    return Finding("webhooks", "ok", f"{hooks}, readable in {asked} of {asked} requests")


def _addresses(tracking_uri: str, deadline: float) -> list[Finding]:
    """Webhooks that the server sends only while it is told to make an exception."""
    status, body = _get(tracking_uri, "/api/2.0/mlflow/webhooks?max_results=100", deadline)
    findings = []
    for hook in _listed(body) if status == 200 else ():
        url, name = str(hook.get("url", "")), str(hook.get("name", ""))[:80]
        if hook.get("status") not in (None, "ACTIVE"):
            findings.append(Finding("webhook", "wrong", f"{name}: is {hook['status']}, so nothing is sent"))
        elif rule := _rule(url):
            findings.append(Finding("webhook", "unknown", f"{name}: {rule}"))
    return findings


def _rule(url: str) -> str:
    """Which exception MLflow must be started with to send to an address; empty if none."""
    parts = urlsplit(url)
    needed = [] if parts.scheme == "https" else ["MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https"]
    if _is_private(parts.hostname or ""):
        needed.append("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true")
    return f"{public(url)} is sent to only while the server runs with {' and '.join(needed)}" if needed else ""


def _is_private(host: str) -> bool:
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False  # cannot be told from here: the server may know another name service
    return any(not ipaddress.ip_address(str(address).partition("%")[0]).is_global for address in found)


def _hooks(client: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = client.list_webhooks(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _listed(body: str) -> list[dict[str, Any]]:
    try:
        hooks = json.loads(body).get("webhooks", [])
    except (ValueError, AttributeError):
        return []
    return [hook for hook in hooks if isinstance(hook, dict)] if isinstance(hooks, list) else []


def _get(tracking_uri: str, path: str, deadline: float) -> tuple[int, str]:
    """The status (0: none came) and the first megabyte of what a new connection gets."""
    left = deadline - time.monotonic()
    if left <= 0:
        return 0, "no time was left"
    request = urllib.request.Request(f"{public(tracking_uri).rstrip('/')}{path}")
    try:
        with urllib.request.urlopen(request, timeout=left) as answer:
            return int(answer.status), answer.read(1_000_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(10_000).decode(errors="replace")
    except (OSError, ValueError) as error:
        return 0, str(error)


def _told(status: int, body: str) -> str:
    try:
        message = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        message = body
    first = " ".join(str(message).split())[:200]
    return f"status {status}: {first}" if status else first
