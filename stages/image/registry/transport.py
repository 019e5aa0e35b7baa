"""Requests to one registry: who we are, what to try again, and what its answers mean.

Protocol: OCI Distribution Specification 1.1; tokens as in the Docker Registry v2 authentication specification
(a `WWW-Authenticate: Bearer` challenge, a token for each scope).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import httpx

from stages.errors import InputError, StageError
from stages.image.registry.credentials import Credentials, find_credentials

__all__ = ["AGAIN", "Access", "Retries", "Transport", "described", "expect", "reason"]

AGAIN = (429, 500, 502, 503, 504)
"""What a registry answers when it may do better a moment later."""
_UNAUTHORIZED = 401
_FORBIDDEN = 403
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_CLIENT = "optimize"
_DOCUMENT_BYTES = 8 * 1024 * 1024
"""More than any manifest (registries take 4 MiB at most)."""


@dataclass(frozen=True)
class Retries:
    """How often a request is tried, and the pause between: doubled each time from the first, up to the longest.

    A registry that asks for a longer pause (`Retry-After`) gets it up to `patience_s`; for more, the request fails.
    """

    attempts: int = 6
    first_s: float = 0.5
    longest_s: float = 20
    patience_s: float = 120

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures."""
        return min(self.longest_s, self.first_s * 2.0 ** (failures - 1))


@dataclass(frozen=True)
class Access:
    """How registries are reached.

    `plain_http` for those without TLS; `config` is the file of credentials (`~/.docker/config.json` by convention);
    `ca` a file of certificates to trust instead of the usual ones. `timeout_s` bounds each wait for the network, not a
    whole transfer; `chunk_bytes` is what one request of an upload carries.
    """

    plain_http: bool = False
    config: Path | None = None
    ca: Path | None = None
    retries: Retries = Retries()
    timeout_s: float = 60
    chunk_bytes: int = 64 * 1024 * 1024


class Transport:
    """Sends requests to one registry and closes its connections at the end. For one thread."""

    def __init__(self, host: str, access: Access) -> None:
        self.host = host
        self.access = access
        scheme = "http" if access.plain_http else "https"
        # The Hub's registry has another name than its images.
        self.base = f"{scheme}://{'registry-1.docker.io' if host == 'docker.io' else host}"
        self._credentials: Credentials | None = None
        self._asked = False
        self._challenge: tuple[str, dict[str, str]] | None = None
        self._tokens: dict[tuple[str, ...], str] = {}
        verify: Any = True
        if access.ca is not None:
            import ssl

            try:
                verify = ssl.create_default_context(cafile=str(access.ca))
            except OSError as error:
                raise InputError(f"{access.ca} holds no certificates: {error}") from error
        self._client = httpx.Client(timeout=access.timeout_s, verify=verify, headers={"User-Agent": _CLIENT})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def url(self, place: str) -> str:
        """The address of a path, or of a `Location`, which may be either."""
        return urljoin(self.base, place)

    def request(
        self,
        method: str,
        place: str,
        scopes: Iterable[str],
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """A request with a small body and a small answer, tried again where that may help.

        Raises `StageError` if the registry cannot be reached or keeps failing, `InputError` if it refuses us.
        """
        failures = 0
        while True:
            try:
                with self.send(method, place, scopes, headers=headers, content=content) as response:
                    _read(response)
                if response.status_code not in AGAIN:
                    return response
                problem, after = reason(response), response.headers.get("Retry-After")
            except httpx.TransportError as error:
                problem, after = described(error), None
            failures += 1
            self.pause(failures, f"{method} {self.url(place)}", problem, after)

    @contextmanager
    def send(
        self,
        method: str,
        place: str,
        scopes: Iterable[str],
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Callable[[], Iterator[bytes]] | None = None,
        redirects: bool = False,
    ) -> Iterator[httpx.Response]:
        """One request, whose answer is still to be read. If the registry asks who we are, it is sent again once.

        A body that is produced must say its `Content-Length` in `headers`; it is produced anew each time.
        """
        wanted = tuple(scopes)
        url = self.url(place)
        ours = urlsplit(url)[:2] == urlsplit(self.base)[:2]  # nobody else is told who we are
        for last in (False, True):
            given = dict(headers or {})
            if ours and (authorization := self._authorization(wanted)):
                given["Authorization"] = authorization
            body = content() if callable(content) else content
            request = self._client.build_request(method, url, headers=given, content=body)
            response = self._client.send(request, stream=True, follow_redirects=redirects)
            try:
                if response.status_code == _UNAUTHORIZED and ours and not last and self._learn(response, wanted):
                    continue
                if response.status_code in (_UNAUTHORIZED, _FORBIDDEN) and ours:
                    _read(response)
                    raise InputError(self._refusal(method, url, response))
                yield response
                return
            finally:
                response.close()

    def pause(self, failures: int, what: str, problem: str, after: str | None = None) -> None:
        """Wait before the next try. Raises `StageError` if there is to be none."""
        retries = self.access.retries
        if failures >= retries.attempts:
            raise StageError(f"{what} failed {failures} times, the last time with: {problem}. Nothing was tagged")
        wait_s = max(retries.pause_s(failures), _seconds(after))
        if wait_s > retries.patience_s:
            raise StageError(
                f"{what}: {problem}; the registry asks to be left alone for {wait_s:.0f} s. Nothing was tagged"
            )
        time.sleep(wait_s)

    def _authorization(self, scopes: tuple[str, ...]) -> str | None:
        if self._challenge is None:
            return None
        scheme, parameters = self._challenge
        if scheme == "basic":
            known = self._known()
            return known.basic if known and known.username else None
        if scopes not in self._tokens:
            self._tokens[scopes] = self._token(parameters, scopes)
        return f"Bearer {self._tokens[scopes]}"

    def _learn(self, response: httpx.Response, scopes: tuple[str, ...]) -> bool:
        """Take in what a 401 asks for. False if we have nothing new to say."""
        scheme, _, rest = response.headers.get("WWW-Authenticate", "").partition(" ")
        scheme = scheme.lower()
        before = self._challenge
        if scheme not in ("basic", "bearer"):
            return False
        self._challenge = (scheme, {key.lower(): value for key, value in _PARAMETER.findall(rest)})
        self._tokens.pop(scopes, None)  # it may have run out in a long upload
        return scheme == "bearer" or (before is None and self._known() is not None)

    def _known(self) -> Credentials | None:
        if not self._asked:
            self._credentials, self._asked = find_credentials(self.host, self.access.config), True
        return self._credentials

    def _token(self, parameters: Mapping[str, str], scopes: tuple[str, ...]) -> str:
        realm = parameters.get("realm", "")
        place = urlsplit(realm)
        if place.scheme not in ("http", "https") or (place.scheme == "http" and not self.access.plain_http):
            raise InputError(
                f"{self.host} sends us for a token to {realm!r}, which is not https; nothing was sent there"
            )
        known = self._known()
        query: list[tuple[str, str | int | float | bool | None]] = [("service", parameters.get("service", self.host))]
        query += [("scope", scope) for scope in scopes]
        failures = 0
        while True:
            try:
                if known and known.identity_token:
                    form = {
                        "grant_type": "refresh_token",
                        "refresh_token": known.identity_token,
                        "client_id": _CLIENT,
                        "service": parameters.get("service", self.host),
                        "scope": " ".join(scopes),
                    }
                    response = self._client.post(realm, data=form)
                else:
                    headers = {"Authorization": known.basic} if known and known.username else {}
                    response = self._client.get(realm, params=query, headers=headers)
                if response.status_code not in AGAIN:
                    break
                problem, after = reason(response), response.headers.get("Retry-After")
            except httpx.TransportError as error:
                problem, after = described(error), None
            failures += 1
            self.pause(failures, f"asking {realm} for a token", problem, after)
        if response.status_code != httpx.codes.OK:
            raise InputError(self._refusal("GET", realm, response))
        try:
            answer = response.json()
            return str(answer.get("token") or answer["access_token"])
        except (ValueError, KeyError, AttributeError) as error:
            raise StageError(f"{realm} gave no token: {error!r}") from error

    def _refusal(self, method: str, url: str, response: httpx.Response) -> str:
        known = self._known()
        who = f"as {known.username or 'the holder of a token'!r}" if known else "without credentials"
        return (
            f"{self.host} refuses {method} {url} {who}: {reason(response)}. Log in (`docker login` or `podman login "
            "--authfile`), or name the file of credentials"
        )


def _read(response: httpx.Response) -> None:
    """Read an answer that is to be small."""
    content = bytearray()
    for piece in response.iter_bytes():
        content += piece
        if len(content) > _DOCUMENT_BYTES:
            raise StageError(
                f"{response.request.url} answers with more than {_DOCUMENT_BYTES} bytes, which is no document"
            )
    response._content = bytes(content)  # what `response.read` sets


def described(error: httpx.TransportError) -> str:
    """A failure of the network in words."""
    return f"{type(error).__name__} {error}".strip()


def reason(response: httpx.Response) -> str:
    """An answer in words: its status, and the registry's own message. The body must have been read."""
    said = ""
    try:
        errors = response.json()["errors"]
        said = "; ".join(f"{item.get('code', '')} {item.get('message', '')}".strip() for item in errors)
    except (ValueError, KeyError, TypeError, AttributeError, httpx.ResponseNotRead):
        pass  # the status says enough
    return f"{response.status_code} {response.reason_phrase}" + (f" ({said})" if said else "")


def expect(response: httpx.Response, what: str, *statuses: int) -> httpx.Response:
    """Return the answer if its status is one of these. Raises `StageError` otherwise."""
    if response.status_code not in statuses:
        raise StageError(f"{what}: the registry answered {reason(response)}. Nothing was tagged")
    return response


def _seconds(after: str | None) -> float:
    """`Retry-After`: seconds, or a date (RFC 9110, 10.2.3)."""
    if not after:
        return 0
    if after.strip().isdigit():
        return float(after)
    try:
        return max(0.0, (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0
