"""A server over the wire: OpenAI's completions, streamed, as vLLM, SGLang, TGI and others serve them.

A request is timed where it is sent and where its answers arrive. What goes wrong with one request is told in its
`Completion`; what makes every request impossible is raised.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stages.errors import InputError, RequirementError

if TYPE_CHECKING:
    import httpx

__all__ = ["Completion", "Endpoint"]

_CONNECT_S = 10.0
_SHOWN = 300
_REFUSES_KEYS = (401, 403)


@dataclass(frozen=True)
class Completion:
    """What came of one request.

    `first_ms` and `total_ms`: from sending to the first piece of text and to the last. `tokens`: how many were
    generated, and `first_tokens`: how many of them the first piece has, as the server counts them; if it does not count
    (`counted` False), a piece is a token. `prompt_tokens`: None if it does not. `status`: that of HTTP, None where no
    answer came. `error`: why it failed, None if it did not.
    """

    status: int | None = None
    error: str | None = None
    first_ms: float = 0.0
    total_ms: float = 0.0
    tokens: int = 0
    first_tokens: int = 1
    prompt_tokens: int | None = None
    counted: bool = True


class Endpoint:
    """A server at `url` (`http://host:8000`, with or without `/v1`). Leaving the `async with` closes its connections.

    `key` is sent as a bearer token and shown nowhere. No proxy is used and nothing is read from the environment.
    Raises `InputError` for what is no such URL.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 600.0) -> None:
        import httpx

        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InputError(f"{url} is no URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InputError(f"{url} is no URL of a server: write it as http://localhost:8000")
        root = parsed.path.rstrip("/").removesuffix("/v1")
        key = key.strip() if key else None
        if key and not (key.isascii() and key.isprintable()):
            raise InputError("OPENAI_API_KEY is no key: it holds characters that cannot be sent in a header")
        self.url = str(parsed.copy_with(username=None, password=None, path=f"{root}/v1", query=None))
        self._key, self._timeout_s = key, timeout_s
        # A name and a password in the URL would be sent in the key's place.
        named = parsed.copy_with(username=None, password=None) if key else parsed
        self._client = httpx.AsyncClient(
            base_url=named.copy_with(path=f"{root}/v1", query=None),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None),
            verify=ssl.create_default_context(),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def models(self) -> list[Mapping[str, Any]]:
        """What the server says of its models; nothing if it keeps no list.

        Raises `RequirementError` if it cannot be reached or is not ready, `InputError` if it wants another key or is no
        server of this kind.
        """
        import httpx

        try:
            response = await self._client.get("/models", timeout=_CONNECT_S)
        except httpx.RequestError as error:
            raise RequirementError(
                f"{self.url} cannot be reached ({self._words(error)}): is the server up, and is this its address?"
            ) from error
        if response.status_code in _REFUSES_KEYS:
            wanted = "refuses the key in OPENAI_API_KEY" if self._key else "wants a key: set OPENAI_API_KEY"
            raise InputError(f"{self.url} {wanted} ({response.status_code})")
        if response.status_code >= 500:
            raise RequirementError(f"{self.url} is not ready ({self._said(response.status_code, response.content)})")
        if response.status_code == 404:
            return []
        try:
            listed = response.json()["data"]
            if response.is_success and all(isinstance(model["id"], str) for model in listed):
                return list(listed)
        except (ValueError, KeyError, TypeError):
            pass
        said = self._said(response.status_code, response.content)
        raise InputError(f"{self.url}/models is no list of models ({said}): is this an OpenAI-compatible server?")

    async def connect(self, count: int) -> None:
        """Open connections, so that no request waits for one."""
        # Where this fails, the requests will, and tell why.
        await asyncio.gather(*(self.models() for _ in range(count)), return_exceptions=True)

    async def complete(self, body: Mapping[str, Any]) -> Completion:
        """Send one request and read its answer to the end."""
        import httpx

        sent = time.perf_counter_ns()
        try:
            async with self._client.stream("POST", "/completions", json=body) as response:
                if response.status_code != 200:
                    said = self._said(response.status_code, await response.aread())
                    return Completion(response.status_code, said)
                return await self._read(response, sent)
        except httpx.TimeoutException:
            return Completion(None, f"no answer within {self._timeout_s:g} s")
        except httpx.RequestError as error:
            return Completion(None, self._words(error))

    async def _read(self, response: httpx.Response, sent: int) -> Completion:
        """An answer as server-sent events: one for every token or so, then perhaps the usage, then `[DONE]`."""
        first = last = ended = 0
        first_tokens = 1
        pieces, usage = 0, dict[str, Any]()
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            now = time.perf_counter_ns()
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                ended = ended or now
                continue  # read on: a connection is used again only once its answer has ended
            try:
                event = json.loads(data)
                if event.get("error") or event.get("object") == "error":
                    return Completion(200, self._said(None, data.encode()))
                usage = event.get("usage") or usage
                for choice in event["choices"][:1]:
                    if choice.get("finish_reason") is not None:
                        ended = now
                    # A token may be no text yet: half a character. An end without text is none, as a rule.
                    if choice.get("text") or choice.get("finish_reason") is None:
                        pieces += 1
                        if not first:  # a busy server puts several tokens into one event
                            first, first_tokens = now, usage.get("completion_tokens") or 1
                        last = now
            except (ValueError, KeyError, TypeError, AttributeError):
                return Completion(200, f"an event that is no completion: {self._shortened(data)}")
        if not ended:
            return Completion(200, "the answer broke off" if pieces else "no stream of events came")
        tokens = usage.get("completion_tokens")
        if not (pieces if tokens is None else tokens):
            return Completion(200, "not one token came")
        first, last = first or ended, last or ended
        return Completion(
            200,
            None,
            (first - sent) / 1e6,
            (last - sent) / 1e6,
            tokens or pieces,
            first_tokens,
            usage.get("prompt_tokens"),
            tokens is not None,
        )

    def _said(self, status: int | None, content: bytes) -> str:
        """The message in an error's body, wherever the server puts it."""
        text = content.decode(errors="replace").strip()
        try:
            found = json.loads(text)
            for name in ("error", "message", "detail"):
                found = found.get(name, found) if isinstance(found, dict) else found
            text = found if isinstance(found, str) else json.dumps(found)
        except ValueError:
            pass
        return (f"{status}: " if status else "") + (self._shortened(text) or "no reason given")

    def _words(self, error: Exception) -> str:
        return self._shortened(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    def _shortened(self, text: str) -> str:
        line = " ".join((text.replace(self._key, "…") if self._key else text).split())
        return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
