"""Who we are to a registry: `config.json` as `docker login` and `podman login` write it, and credential helpers."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.errors import InputError, RequirementError

__all__ = ["Credentials", "find_credentials"]

_HUB = "https://index.docker.io/v1/"
_HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io")
_TOKEN_USER = "<token>"  # noqa: S105 - the word by which a helper says that its secret is a token
_HELPER_S = 30


@dataclass(frozen=True)
class Credentials:
    """A user name with its password, or an identity token (OAuth2's refresh token). Neither is ever printed."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def find_credentials(host: str, config: Path | None) -> Credentials | None:
    """What `config` says for a registry; None if it says nothing, or is not there.

    A helper (`docker-credential-<name>` on the PATH) goes before what is written in the file.
    Raises `InputError` if the file is damaged and `RequirementError` if a helper that it names is missing or fails.
    """
    if config is None or not config.is_file():
        return None
    try:
        known: dict[str, Any] = json.loads(config.read_bytes())
        helper = _lookup(known.get("credHelpers") or {}, host) or known.get("credsStore")
        written = _lookup(known.get("auths") or {}, host)
        if helper:
            found = _ask(str(helper), host)
            if found is not None or not written:
                return found
        return _written(written) if written else None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{config} is not a file of registry credentials: {error}") from error


def _keys(host: str) -> list[str]:
    keys = [host, f"https://{host}", f"https://{host}/", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]
    return [_HUB, *keys] if host in _HUB_HOSTS else keys


def _lookup(table: Mapping[str, Any], host: str) -> Any:
    return next((table[key] for key in _keys(host) if key in table), None)


def _written(entry: Mapping[str, str]) -> Credentials | None:
    if entry.get("identitytoken"):
        return Credentials(identity_token=entry["identitytoken"])
    if entry.get("auth"):
        username, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        return Credentials(username, password)
    if entry.get("username"):
        return Credentials(entry["username"], entry.get("password", ""))
    return None


def _ask(helper: str, host: str) -> Credentials | None:
    program = f"docker-credential-{helper}"
    if "/" in helper:
        raise InputError(f"{helper!r} is no name of a credential helper")
    try:
        said = subprocess.run(
            [program, "get"],
            input=_HUB if host in _HUB_HOSTS else host,
            capture_output=True,
            text=True,
            timeout=_HELPER_S,
        )
    except FileNotFoundError as error:
        raise RequirementError(f"{program}, which the registry credentials name, is not on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise RequirementError(f"{program} gave no answer within {_HELPER_S} s") from error
    if said.returncode != 0:
        if "credentials not found" in said.stdout + said.stderr:
            return None
        raise RequirementError(f"{program} failed for {host}: {(said.stderr or said.stdout).strip()}")
    answer = json.loads(said.stdout)
    if answer["Username"] == _TOKEN_USER:
        return Credentials(identity_token=answer["Secret"])
    return Credentials(answer["Username"], answer["Secret"])
