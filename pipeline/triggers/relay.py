"""Passing deliveries on to continuous integration. MLflow sends neither a GitHub nor a GitLab its own headers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, urlsplit

from pipeline.triggers.inbox import Delivery
from stages.errors import InputError

if TYPE_CHECKING:
    import httpx

__all__ = ["GitHub", "GitLab", "Relay", "RelayError"]

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class RelayError(Exception):
    """A delivery could not be passed on. `final`: trying again would change nothing."""

    def __init__(self, message: str, final: bool) -> None:
        super().__init__(message)
        self.final = final


class Relay(Protocol):
    """Passes deliveries on."""

    @property
    def name(self) -> str:
        """Which one it is, in messages and in the inbox."""

    async def send(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        """Pass a delivery on. Raises `RelayError`."""


@dataclass(frozen=True)
class GitHub:
    """Starts the workflows of a repository that wait for `repository_dispatch` with the type `event_type`.

    The event's `client_payload` is the object that `payload` makes. Needs a token that may write contents.
    (GitHub REST API, "Create a repository dispatch event".)
    """

    repository: str
    token: str = field(repr=False)
    url: str = "https://api.github.com"
    event_type: str = "mlflow-model"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9-]{1,39}/[A-Za-z0-9._-]{1,100}", self.repository):
            raise InputError(f"--github: {self.repository!r} is no OWNER/REPOSITORY")
        _check_url(self.url, "--github-url")

    @property
    def name(self) -> str:
        """Which one it is."""
        return "github"

    async def send(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        """Pass a delivery on. Raises `RelayError`."""
        request = client.build_request(
            "POST",
            f"{self.url.rstrip('/')}/repos/{self.repository}/dispatches",
            headers={
                "Authorization": f"Bearer {self.token}",
                "Accept": "application/vnd.github+json",
                "X-GitHub-Api-Version": "2022-11-28",
            },
            json={"event_type": self.event_type, "client_payload": payload(delivery)},
        )
        await _send(client, request, "GitHub")


@dataclass(frozen=True)
class GitLab:
    """Starts a pipeline of a project on the branch or tag `ref`, by a trigger token.

    The pipeline's variables are `OPTIMIZE_MODEL`, `OPTIMIZE_VERSION`, … as `payload` has them.
    (GitLab REST API, "Trigger a pipeline with a token".)
    """

    project: str
    token: str = field(repr=False)
    ref: str = "main"
    url: str = "https://gitlab.com"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", self.project):
            raise InputError(f"--gitlab: {self.project!r} is no project (its number, or GROUP/PROJECT)")
        _check_url(self.url, "--gitlab-url")

    @property
    def name(self) -> str:
        """Which one it is."""
        return "gitlab"

    async def send(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        """Pass a delivery on. Raises `RelayError`."""
        variables = {f"variables[OPTIMIZE_{name.upper()}]": str(value) for name, value in payload(delivery).items()}
        request = client.build_request(
            "POST",
            f"{self.url.rstrip('/')}/api/v4/projects/{quote(self.project, safe='')}/trigger/pipeline",
            data={"token": self.token, "ref": self.ref, **variables},
        )
        await _send(client, request, "GitLab")


def payload(delivery: Delivery) -> dict[str, str | int]:
    """What is passed on: `event`, `delivery`, `model`, and `version` and `alias` where there are any.

    All of it is well-formed (letters, digits, `.`, `_`, `-`), for it may reach a shell.
    """
    content = {
        "event": delivery.event,
        "delivery": delivery.id,
        "model": delivery.model,
        "version": delivery.version,
        "alias": delivery.alias,
    }
    return {name: value for name, value in content.items() if value is not None}


async def _send(client: httpx.AsyncClient, request: httpx.Request, who: str) -> None:
    import httpx

    try:
        answer = await client.send(request, follow_redirects=False)
    except httpx.HTTPError as error:
        raise RelayError(f"{who} cannot be reached: {type(error).__name__}", final=False) from error
    if answer.is_success:
        return
    final = answer.status_code < 500 and answer.status_code not in (408, 425, 429)
    raise RelayError(f"{who} answered {answer.status_code} to {request.url.path}", final)


def _check_url(url: str, option: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise InputError(f"{option}: {url!r} is no https address, and a token is sent there")
