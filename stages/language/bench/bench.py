"""Send requests to a served language model, so many at once, and tell how long its tokens took."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from calibration.tokenizer import has_tokenizer
from stages.errors import InputError, StageError
from stages.language.bench.completions import Completion, Endpoint
from stages.language.bench.prompts import Prompt, Text, read_prompts
from stages.language.profile.prompts import SHORTEST
from stages.profile.latency import percentile_figures
from stages.progress import SILENT, Progress

__all__ = ["Bench", "BenchOptions", "Level", "bench"]

_REFUSED = (400, 415, 422)
_UNKNOWN = 404


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BenchOptions(_Frozen):
    """What is sent. `concurrency`: how many requests are under way at once, one measurement for each. `requests`: in
    each of them, and never fewer than are under way. `model` None: the first that the server names. `tokenizer` None:
    that of the served model where its directory is at hand, else text is cut by characters. `seed` None: another text
    each time, so that no server answers from its cache of prefixes."""

    model: str | None = None
    concurrency: tuple[int, ...] = Field(default=(1, 4), min_length=1)
    requests: int = Field(default=32, ge=1)
    new_tokens: int = Field(default=64, ge=1)
    longest_prompt: int = Field(default=1024, ge=SHORTEST)
    data: Path | None = None
    tokenizer: Path | None = None
    timeout_s: float = Field(default=600.0, gt=0)
    seed: int | None = Field(default=None, ge=0)

    @field_validator("concurrency")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(count < 1 for count in value):
            raise ValueError("at least one request is under way at once")
        return value


class Level(_Frozen):
    """What was measured with `concurrency` requests under way at once.

    `requests` are those that were answered, `errors` those that were not, `first_error` why the first of them was not.
    `ttft_ms`: time to the first token, or to the first few where they come together; `tpot_ms`: time for each token
    after them, where there is one; `latency_ms`: time to the last. Each has p50, p95 and p99 with `_low` and `_high`,
    their 95 % interval; None where nothing was answered. `tokens_per_s` counts generated tokens, `prompt_tokens` and
    `new_tokens` are means.
    """

    concurrency: int
    requests: int
    errors: int
    first_error: str | None
    seconds: float
    requests_per_s: float
    tokens_per_s: float
    ttft_ms: dict[str, float] | None
    tpot_ms: dict[str, float] | None
    latency_ms: dict[str, float] | None
    prompt_tokens: float | None
    new_tokens: float | None


class Bench(_Frozen):
    """What was measured of a server. `prompts` says how they were sent; `text` where they are from."""

    url: str
    model: str
    measured_at: str
    prompts: str
    tokenizer: str | None
    text: str
    seed: int
    asked_tokens: int
    levels: list[Level]
    warnings: list[str]


def bench(url: str, options: BenchOptions, key: str | None = None, progress: Progress = SILENT) -> Bench:
    """Measure the server at `url`. `key` is sent as a bearer token.

    Where an event loop runs already, as in a notebook, call it in a thread (`asyncio.to_thread`).

    Raises `RequirementError` if the server cannot be reached or is not ready; `InputError` if it has no (such) model,
    is no OpenAI-compatible one, or wants another key; `DataError` for data or a tokenizer that cannot be read; and
    `StageError` if no request is answered.
    """
    return asyncio.run(_bench(url, options, key, progress))


async def _bench(url: str, options: BenchOptions, key: str | None, progress: Progress) -> Bench:
    async with Endpoint(url, key, options.timeout_s) as endpoint:
        progress.update("asking for the model")
        model = _model(await endpoint.models(), options.model, endpoint.url)
        seed = secrets.randbelow(2**31) if options.seed is None else options.seed
        random = np.random.default_rng(seed)
        counts = [max(options.requests, concurrency) for concurrency in options.concurrency]
        longest = _longest(model, options)
        progress.update("reading prompts")
        directory = options.tokenizer or _directory(model)
        text = read_prompts(options.data, directory, seed, longest * (sum(counts) + 1))
        asker = _Asker(endpoint, str(model["id"]), text, options.new_tokens)
        await asker.learn(text.prompts(1, longest, random)[0])
        levels = []
        for concurrency, count in zip(options.concurrency, counts, strict=True):
            await endpoint.connect(concurrency)
            prompts = text.prompts(count, longest, random)
            levels.append(await _level(asker, prompts, concurrency, progress))
    if not any(level.requests for level in levels):
        raise StageError(f"{endpoint.url} answered none of the requests: {levels[0].first_error}")
    return Bench(
        url=endpoint.url,
        model=asker.model,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        prompts="tokens" if asker.as_tokens else "text",
        tokenizer=None if directory is None else str(directory),
        text=text.source,
        seed=seed,
        asked_tokens=options.new_tokens,
        levels=levels,
        warnings=[*asker.warnings, *_shortfalls(levels, options.new_tokens)],
    )


@dataclass
class _Asker:
    """Puts prompts as the server takes them. `learn` finds that out, and what it cannot take is in `warnings`."""

    endpoint: Endpoint
    model: str
    text: Text
    new_tokens: int

    def __post_init__(self) -> None:
        self.as_tokens = self.text.tokenizer is not None
        told = {"include_usage": True, "continuous_usage_stats": True}
        self._extras: dict[str, Any] = {"ignore_eos": True, "stream_options": told}
        self.warnings: list[str] = []

    async def ask(self, prompt: Prompt) -> Completion:
        body = {
            "model": self.model,
            "prompt": prompt if self.as_tokens else self.text.as_text(prompt),
            "max_tokens": self.new_tokens,
            "temperature": 0,
            "stream": True,
            **self._extras,
        }
        return await self.endpoint.complete(body)

    async def learn(self, prompt: Prompt) -> None:
        """Send a request that does not count, and again in plainer words if it is refused."""
        answer = await self.ask(prompt)
        if answer.status in _REFUSED and self.as_tokens:
            self.as_tokens = False
            self.warnings.append(f"the server takes no tokens, the prompts are sent as text ({answer.error})")
            answer = await self.ask(prompt)
        if answer.status in _REFUSED:
            self._extras = {}
            self.warnings.append(f"the server takes neither ignore_eos nor stream_options ({answer.error})")
            answer = await self.ask(prompt)
        if answer.status == _UNKNOWN:
            raise InputError(f"{self.endpoint.url} has no completions of {self.model} ({answer.error})")
        if answer.error is not None:
            raise StageError(f"{self.endpoint.url} does not answer a request: {answer.error}")
        if not answer.counted:
            self.warnings.append("the server does not count tokens: the pieces that it sends are counted")


async def _level(asker: _Asker, prompts: Sequence[Prompt], concurrency: int, progress: Progress) -> Level:
    """Send all prompts, each as soon as one of `concurrency` requests under way has its answer."""
    waiting = iter(prompts)
    answers: list[Completion] = []

    async def keep_asking() -> None:
        for prompt in waiting:
            answers.append(await asker.ask(prompt))
            progress.update(f"concurrency {concurrency}", len(answers), len(prompts))

    progress.update(f"concurrency {concurrency}", 0, len(prompts))
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(keep_asking())
    seconds = time.perf_counter() - started
    answered = [answer for answer in answers if answer.error is None]
    failed = [answer.error for answer in answers if answer.error is not None]
    counted = [answer.prompt_tokens for answer in answered if answer.prompt_tokens is not None]
    tokens = sum(answer.tokens for answer in answered)
    return Level(
        concurrency=concurrency,
        requests=len(answered),
        errors=len(failed),
        first_error=failed[0] if failed else None,
        seconds=seconds,
        requests_per_s=len(answered) / seconds,
        tokens_per_s=tokens / seconds,
        ttft_ms=_percentiles([answer.first_ms for answer in answered]),
        tpot_ms=_percentiles([_each(answer) for answer in answered if answer.tokens > answer.first_tokens]),
        latency_ms=_percentiles([answer.total_ms for answer in answered]),
        prompt_tokens=float(np.mean(counted)) if counted else None,
        new_tokens=tokens / len(answered) if answered else None,
    )


def _each(answer: Completion) -> float:
    return (answer.total_ms - answer.first_ms) / (answer.tokens - answer.first_tokens)


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    return percentile_figures(np.array(values), np.zeros(len(values), dtype=np.int64)) if values else None


def _model(served: Sequence[Mapping[str, Any]], wanted: str | None, url: str) -> Mapping[str, Any]:
    names = [str(model["id"]) for model in served]
    if wanted is None:
        if not served:
            raise InputError(f"{url} names no model that it serves: name one with --model")
        return served[0]
    if wanted in names:
        return served[names.index(wanted)]
    if names:
        raise InputError(f"{url} has no model {wanted!r}; it has {', '.join(names)}")
    return {"id": wanted}


def _directory(model: Mapping[str, Any]) -> Path | None:
    """The directory of the served model, where it is on this machine and has a tokenizer. (vLLM names it as `root`.)"""
    for place in (model.get("root"), model["id"]):
        if isinstance(place, str) and Path(place).is_absolute() and has_tokenizer(Path(place)):
            return Path(place)
    return None


def _longest(model: Mapping[str, Any], options: BenchOptions) -> int:
    """The longest prompt: vLLM says how many tokens the model takes in all."""
    positions = model.get("max_model_len")
    if not isinstance(positions, int):
        return options.longest_prompt
    room = positions - options.new_tokens
    if room < SHORTEST:
        raise InputError(
            f"{model['id']} takes {positions} tokens: {options.new_tokens} new tokens leave no room for a prompt of "
            f"{SHORTEST}; ask for fewer"
        )
    return min(options.longest_prompt, room)


def _shortfalls(levels: Sequence[Level], asked: int) -> list[str]:
    mean = min(level.new_tokens for level in levels if level.new_tokens is not None)
    if mean >= asked:
        return []
    return [f"answers had {mean:.1f} tokens on average, not {asked}: the server ends them where the model does"]
