"""`optimize bench`: a real server on this machine that streams completions, and what is told of it."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from small_tokenizers import load, save_tokenizer

from calibration.errors import DataError
from pipeline.bench_table import print_bench
from pipeline.cli.bench import bench as command
from pipeline.cli.failure import explain
from stages.errors import InputError, RequirementError, StageError
from stages.language.bench import Bench, BenchOptions, bench, completions
from stages.language.bench.completions import Endpoint
from stages.language.bench.prompts import Text, read_prompts

KEY = "sk-a-key-that-nobody-may-see"


@dataclass
class Manners:
    """How the server behaves."""

    models: list[dict[str, Any]] | None = field(default_factory=lambda: [{"id": "tiny"}, {"id": "other"}])
    key: str | None = None
    takes_tokens: bool = True
    takes_extras: bool = True
    status: int | None = None
    fails_every: int = 0
    breaks_off: bool = False
    counts: bool = True
    ends_after: int | None = None
    read_s: float = 0.0
    write_s: float = 0.0
    separate_end: bool = False
    first_piece: int = 1
    waits_for: int = 1


class Server(ThreadingHTTPServer):
    """Speaks OpenAI's completions as vLLM does: an event for every token, then the usage, then `[DONE]`."""

    daemon_threads = True

    def __init__(self, manners: Manners) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.manners = manners
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.connections: set[Any] = set()
        self.under_way = self.most_under_way = 0
        self.lock = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        manners = self.server.manners
        if manners.key and self.headers["Authorization"] != f"Bearer {manners.key}":
            self.answer(401, {"error": {"message": f"wrong: {self.headers['Authorization']}"}})
        elif manners.status:
            self.answer(manners.status, {"detail": "loading the model"})
        elif self.path != "/v1/models" or manners.models is None:
            self.answer(404, {"detail": "Not Found"})
        else:
            self.answer(200, {"object": "list", "data": manners.models})

    def do_POST(self) -> None:
        server, manners = self.server, self.server.manners
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append(body)
            server.headers.append(dict(self.headers))
            server.connections.add(self.client_address)
            number = len(server.asked)
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            server.lock.notify_all()
            if number > 1:  # the first is the one that does not count
                server.lock.wait_for(lambda: server.most_under_way >= manners.waits_for, timeout=5)
        try:
            self.complete(body, number)
        finally:
            with server.lock:
                server.under_way -= 1

    def complete(self, body: dict[str, Any], number: int) -> None:
        manners = self.server.manners
        if self.path != "/v1/completions":
            return self.answer(404, {"detail": "Not Found"})
        if isinstance(body["prompt"], list) and not manners.takes_tokens:
            return self.answer(422, {"error": "prompt: expected a string"})
        if "ignore_eos" in body and not manners.takes_extras:
            return self.answer(400, {"error": {"message": "Unrecognized request argument supplied: ignore_eos"}})
        if manners.fails_every and number > 1 and number % manners.fails_every == 0:
            return self.answer(503, {"message": f"out of blocks in request {number}, key {KEY}"})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        wanted = body["max_tokens"]
        count = min(wanted, manners.ends_after or wanted)
        time.sleep(manners.read_s)
        for step in range(count - manners.first_piece + 1):
            if manners.breaks_off and step == 2 and number > 1:
                return self.chunk(b"")
            time.sleep(manners.write_s if step else 0)
            last = step == count - manners.first_piece and not manners.separate_end
            # The first token is half a character: no text yet.
            choice = {"index": 0, "text": " a" if step else "", "finish_reason": "length" if last else None}
            told = {"usage": {"completion_tokens": step + manners.first_piece}} if manners.counts else {}
            self.event({"choices": [choice], **told})
        if manners.separate_end:
            self.event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        if manners.counts:
            length = len(body["prompt"])
            self.event({"choices": [], "usage": {"prompt_tokens": length, "completion_tokens": count}})
        self.chunk(b"data: [DONE]\n\n")
        return self.chunk(b"")

    def event(self, content: dict[str, Any]) -> None:
        self.chunk(f"data: {json.dumps(content)}\n\n".encode())

    def chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(Manners()) as started:
        thread = threading.Thread(target=started.serve_forever, args=(0.01,))
        thread.start()
        yield started
        started.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    words, random = ["the", "cat", "sat", "on", "mat", "and", "dog", "log"], np.random.default_rng(0)
    texts = [" ".join(random.choice(words, 6 * count)) for count in range(1, 21)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def options(texts: Path) -> BenchOptions:
    return BenchOptions(data=texts, concurrency=(1, 3), requests=6, new_tokens=5, seed=1)


def but(options: BenchOptions, **update: Any) -> BenchOptions:
    return options.model_copy(update=update)


def optimize(*arguments: Any, **environment: str | None) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], env=environment)


def test_requests_are_timed_to_their_first_token_and_for_each_after_it(server: Server, options: BenchOptions) -> None:
    server.manners = Manners(read_s=0.03, write_s=0.005)
    measured = bench(server.url, options)
    assert [level.concurrency for level in measured.levels] == [1, 3]
    assert (measured.model, measured.url, measured.text) == ("tiny", f"{server.url}/v1", "texts.jsonl")
    for level in measured.levels:
        assert (level.requests, level.errors, level.new_tokens, level.first_error) == (6, 0, 5, None)
        assert level.ttft_ms and level.tpot_ms and level.latency_ms
        # What the server waits is the least that can be seen.
        assert level.ttft_ms["p50"] >= 30
        assert level.latency_ms["p50"] >= 50
        for figures in (level.ttft_ms, level.tpot_ms, level.latency_ms):
            assert figures["p50_low"] <= figures["p50"] <= figures["p95"] <= figures["p99"] <= figures["p99_high"]
        assert level.requests_per_s == pytest.approx(6 / level.seconds)
        assert level.tokens_per_s == pytest.approx(30 / level.seconds)
    assert len(server.asked) == 1 + 6 + 6
    body = server.asked[0]
    assert body["stream"] and body["ignore_eos"] and body["stream_options"]["include_usage"]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 5, 0)


def test_the_clock_is_read_when_the_request_is_sent_and_at_every_token(
    server: Server, monkeypatch: pytest.MonkeyPatch, options: BenchOptions
) -> None:
    ticks = iter(range(0, 10**9, 1_000_000))
    monkeypatch.setattr(completions, "time", SimpleNamespace(perf_counter_ns=lambda: next(ticks)))
    for manners, total in ((Manners(), 5), (Manners(separate_end=True), 5), (Manners(first_piece=3), 3)):
        server.manners = manners
        measured = bench(server.url, but(options, concurrency=(1,), requests=3))
        [level] = measured.levels
        assert level.ttft_ms and level.tpot_ms and level.latency_ms
        assert (level.ttft_ms["p99"], level.tpot_ms["p99"], level.latency_ms["p99"]) == (1.0, 1.0, total)


def test_so_many_requests_are_under_way_at_once_and_no_more(server: Server, options: BenchOptions) -> None:
    server.manners = Manners(waits_for=4)
    measured = bench(server.url, but(options, concurrency=(4,), requests=2))
    # No fewer requests than are to be under way.
    assert (measured.levels[0].requests, server.most_under_way) == (4, 4)
    server.manners = Manners()
    server.connections.clear()
    bench(server.url, but(options, concurrency=(2,), requests=12))
    assert len(server.connections) <= 2


def test_prompts_are_tokens_of_the_served_model_where_its_directory_is_here(
    server: Server, tokenizer: Path, options: BenchOptions
) -> None:
    # As vLLM names it: `root` is the directory, `max_model_len` what a prompt and its answer have room in.
    server.manners = Manners(models=[{"id": "tiny", "root": str(tokenizer), "max_model_len": 45}])
    measured = bench(server.url, but(options, concurrency=(1,), requests=40))
    assert (measured.prompts, measured.tokenizer, measured.warnings) == ("tokens", str(tokenizer), [])
    prompts = [body["prompt"] for body in server.asked]
    begins = load(tokenizer).bos_token_id
    assert {prompt[0] for prompt in prompts} == {begins}
    lengths = [len(prompt) for prompt in prompts]
    assert max(lengths) == 40 and min(lengths) < 20
    assert len({tuple(prompt) for prompt in prompts}) > 30
    assert measured.levels[0].prompt_tokens == pytest.approx(np.mean(lengths[1:]))


def test_what_the_server_does_not_take_is_found_out_and_said(
    server: Server, tokenizer: Path, options: BenchOptions
) -> None:
    server.manners = Manners(takes_tokens=False, takes_extras=False, counts=False, separate_end=True)
    measured = bench(server.url, but(options, tokenizer=tokenizer))
    assert measured.prompts == "text"
    assert [body["prompt"].startswith("<s>") for body in server.asked[1:]] == [False] * 14
    assert all(isinstance(body["prompt"], str) and "ignore_eos" not in body for body in server.asked[2:])
    for number, said in enumerate(("takes no tokens", "takes neither ignore_eos nor stream_options", "not count")):
        assert said in measured.warnings[number]
    assert "422: prompt: expected a string" in measured.warnings[0]
    assert measured.levels[0].new_tokens == 5
    assert measured.levels[0].prompt_tokens is None


def test_answers_that_end_early_are_told(server: Server, options: BenchOptions) -> None:
    server.manners = Manners(ends_after=2)
    [warning] = bench(server.url, options).warnings
    assert warning.startswith("answers had 2.0 tokens on average, not 5")


def test_one_token_has_no_time_for_each_after_it(server: Server, options: BenchOptions) -> None:
    measured = bench(server.url, but(options, new_tokens=1))
    assert measured.levels[0].tpot_ms is None
    assert measured.levels[0].ttft_ms == measured.levels[0].latency_ms
    assert measured.levels[0].ttft_ms and measured.levels[0].ttft_ms["p50"] > 0


def test_failed_requests_are_counted_and_the_first_is_told(server: Server, options: BenchOptions) -> None:
    server.manners = Manners(fails_every=3)
    measured = bench(server.url, but(options, concurrency=(1,)))
    [level] = measured.levels
    assert (level.requests, level.errors) == (4, 2)
    assert level.first_error == f"503: out of blocks in request 3, key {KEY}"
    assert level.tokens_per_s == pytest.approx(4 * 5 / level.seconds)


def test_a_server_that_breaks_off_all_answers_has_given_none(server: Server, options: BenchOptions) -> None:
    server.manners = Manners(breaks_off=True)
    with pytest.raises(StageError, match="answered none of the requests: the answer broke off"):
        bench(server.url, options)


def test_prompts_are_the_same_with_a_seed_and_others_without(server: Server, options: BenchOptions) -> None:
    for seed in (1, 1, None, None):
        bench(server.url, but(options, concurrency=(1,), requests=3, seed=seed))
    prompts = [body["prompt"] for body in server.asked]
    first, again, third, fourth = (prompts[start : start + 4] for start in (0, 4, 8, 12))
    assert first == again
    assert len({*first, *third, *fourth}) == 12


def test_what_makes_every_request_impossible_has_its_exit_code(
    server: Server, tmp_path: Path, options: BenchOptions
) -> None:
    def fails(manners: Manners, **more: Any) -> tuple[str, int]:
        server.manners = manners
        with pytest.raises((InputError, RequirementError, StageError, DataError)) as caught:
            bench(server.url, but(options, **more))
        return explain(caught.value)

    for (message, code), said, expected in (
        (fails(Manners(models=[])), "names no model that it serves: name one with --model", 2),
        (fails(Manners(models=None)), "names no model that it serves", 2),
        (fails(Manners(), model="huge"), "has no model 'huge'; it has tiny, other", 2),
        (fails(Manners(key=KEY)), "wants a key: set OPENAI_API_KEY (401)", 2),
        (fails(Manners(models=[{"id": "tiny", "max_model_len": 10}])), "5 new tokens leave no room", 2),
        (fails(Manners(), data=tmp_path / "absent.jsonl"), "absent.jsonl", 2),
        (fails(Manners(status=503)), "is not ready (503: loading the model)", 5),
    ):
        assert said in message
        assert code == expected
    assert fails(Manners(status=302))[0].endswith("(302: loading the model): is this an OpenAI-compatible server?")
    server.server_close()
    with pytest.raises(RequirementError, match="cannot be reached"):
        bench("http://127.0.0.1:1", options)
    for wrong in ("localhost:8000", "ftp://localhost", "http://"):
        with pytest.raises(InputError, match="URL"):
            bench(wrong, options)


def test_the_key_is_sent_and_shown_nowhere(server: Server, texts: Path) -> None:
    server.manners = Manners(key=KEY, fails_every=2)
    url = server.url.replace("http://", "http://user:secret@")
    done = optimize(
        url + "/v1", "--data", texts, "--requests", 4, "--new-tokens", 2, "--json", OPENAI_API_KEY=f"{KEY}\n"
    )
    assert done.exit_code == 0, done.output
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in done.output and "secret" not in done.output
    assert "out of blocks in request 2, key …" in done.output
    server.manners.key = "another"
    refused = optimize(url, OPENAI_API_KEY=KEY)
    assert isinstance(refused.exception, InputError)
    assert "refuses the key in OPENAI_API_KEY (401)" in str(refused.exception)
    with pytest.raises(InputError, match="cannot be sent in a header"):
        Endpoint(server.url, "a\nb")


def test_the_table_and_the_document(server: Server, texts: Path) -> None:
    server.manners = Manners(fails_every=7)
    arguments = (
        server.url,
        "--data",
        texts,
        "--requests",
        4,
        "--concurrency",
        "1,2",
        "--new-tokens",
        3,
        "--model",
        "other",
    )
    shown = optimize(*arguments, OPENAI_API_KEY=None)
    assert shown.exit_code == 0, shown.output
    for word in ("other at http://127.0.0.1", "first token", "per token", "p99", "tokens", "3 new tokens each"):
        assert word in shown.output
    assert "1 of 4 failed at concurrency 2, the first: 503: out of blocks" in shown.output
    printed = optimize(*arguments, "--json", OPENAI_API_KEY=None)
    measured = Bench.model_validate_json(printed.stdout)
    assert [level.concurrency for level in measured.levels] == [1, 2]
    assert measured.asked_tokens == 3
    for wrong in ("1,x", "0", ""):
        assert optimize(server.url, "--concurrency", wrong).exit_code == 2


def test_the_table_fits_a_narrow_terminal(server: Server, options: BenchOptions) -> None:
    from rich.console import Console

    measured = bench(server.url, options)
    console = Console(width=80, file=io.StringIO())
    print_bench(measured, console)
    table = console.file.getvalue().splitlines()[1:5]  # type: ignore[attr-defined]
    assert max(map(len, table)) <= 80
    assert not any("…" in line for line in table)


def test_prompts_have_the_lengths_of_the_documents(texts: Path, tokenizer: Path) -> None:
    random = np.random.default_rng(0)
    text = read_prompts(texts, tokenizer, 0, 100_000)
    prompts = text.prompts(50, 60, random)
    lengths = sorted(len(prompt) for prompt in prompts)
    assert lengths[0] < 20 and lengths[-1] == 60
    own = np.sort(np.clip(text.lengths, 8, 59))
    assert np.median(lengths) - 1 == pytest.approx(np.median(own), abs=6)
    assert all(isinstance(prompt, list) and prompt[0] == text.begin[0] for prompt in prompts)
    assert not any("<s>" in shown or "</s>" in shown for shown in map(text.as_text, prompts))
    letters = read_prompts(texts, None, 0, 100)
    assert len(letters.units) <= 300
    assert max(len(prompt) for prompt in letters.prompts(20, 50, random)) == 150
    assert isinstance(read_prompts(None, None, 0, 1000), Text)
