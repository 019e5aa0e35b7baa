"""The profile of language models: requests in turns, prefill and decode apart, and what is said when a form fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from calibration.errors import DataError
from calibration.windows import Windows
from pipeline.result import BatchFigures, GenerationFigures, Latency
from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.gate.figures import figure_gates
from stages.gate.judgement import Limits
from stages.language.checkpoint import Attention, Checkpoint
from stages.language.profile import ProfileLanguageOptions, profile_language, requests
from stages.language.profile.generation import Point, generation_figures
from stages.language.profile.profile import _points
from stages.language.profile.prompts import cut_prompts, mixed_lengths
from stages.profile import faster, rounds
from stages.progress import SILENT

POSITIONS, VOCABULARY = 64, 96
OPTIONS = ProfileLanguageOptions(
    batch_sizes=(1, 2), prompt_tokens=(500, 16), new_tokens=4, budget_s=0.1, inputs=3, timeout_s=120, threads=1
)


def checkpoint(path: Path, hidden: int, layers: int) -> Artifact:
    """A llama of random weights, as `save_pretrained` writes it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=POSITIONS, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    about = Checkpoint(
        architecture="LlamaForCausalLM",
        model_type="llama",
        precision="fp32",
        dtype="float32",
        parameters=model.num_parameters(),
        vocabulary=VOCABULARY,
        hidden_size=hidden,
        positions=POSITIONS,
        attention=Attention(layers=layers, heads=4, kv_heads=2, head_size=hidden // 4, windows=(None,) * layers),
        tied_head=False,
        begins_with=None,
    )
    return Artifact.write(path, "checkpoint", about.metadata())


def dataset(path: Path) -> Artifact:
    """Windows over random tokens, cut from documents of 4 to 100."""
    path.mkdir()
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (6, 32))
    Windows(tokens, np.ones(6, np.int64), np.array([100, 30, 4, 20, 90, 25])).save(path)
    return Artifact.write(path, "dataset", {"role": "evaluation"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return dataset(tmp_path_factory.mktemp("windows") / "data")


class Kills:
    """A progress that kills a variant's process when it hears that measuring has begun."""

    def __init__(self, name: str) -> None:
        self.name, self.notes = name, list[str]()

    def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
        self.notes.append(note)
        if note.startswith("batch size") and self.name:
            [found] = [child for child in psutil.Process().children(recursive=True) if child.name() == self.name]
            os.kill(found.pid, signal.SIGKILL)
            self.name = ""


@pytest.fixture(scope="module")
def killed(
    tmp_path_factory: pytest.TempPathFactory, data: Artifact
) -> tuple[Artifact, dict[str, Artifact], Kills, list[psutil.Process]]:
    """One measurement for all: two forms that can be measured, one that is killed, and one that cannot be opened."""
    path = tmp_path_factory.mktemp("models")
    models = {
        "small": checkpoint(path / "small", 16, 1),
        "original": checkpoint(path / "original", 64, 3),
        "dies": checkpoint(path / "dies", 16, 1),
        "torn": checkpoint(path / "torn", 16, 1),
    }
    (path / "torn" / "model.safetensors").write_bytes(b"")
    (path / "out").mkdir()
    progress = Kills("dies")
    before = psutil.Process().children(recursive=True)
    measured = profile_language(data=data, options=OPTIONS, out=path / "out", progress=progress, **models)
    left = [child for child in psutil.Process().children(recursive=True) if child not in before]
    return measured, models, progress, left


@pytest.fixture(scope="module")
def measured(killed: tuple[Artifact, Any, Any, Any]) -> Artifact:
    return killed[0]


def test_the_outer_shape_is_that_of_every_measurement(
    killed: tuple[Artifact, dict[str, Artifact], Kills, list[psutil.Process]],
) -> None:
    measured, models, _, left = killed
    about = measured.metadata
    assert measured.kind == "measurement"
    assert (about["names"][0], about["baseline"], about["batch_sizes"]) == ("original", "original", [1, 2])
    assert not left
    with np.load(measured.path / "latencies.npz") as arrays:
        latencies = dict(arrays)
    for name in ("original", "small"):
        figures = about["variants"][name]
        assert (figures["error"], figures["runtime"]) == (None, "transformers")
        assert figures["size_bytes"] == models[name].size_bytes
        assert figures["cold_start_ms"] > 0
        assert 50e6 < figures["peak_memory_bytes"] < 2e9
        assert figures["batches"].keys() == {"1", "2"}
        for size, batch in figures["batches"].items():
            shown = BatchFigures.model_validate(batch)
            taken = latencies[f"{name}/{size}"]
            assert shown.latency_ms.p50 == pytest.approx(np.median(taken))
            assert shown.throughput_per_s == pytest.approx(1000 * int(size) * 4 / taken.mean())
            assert figures["speedups"][size]["value"] > 0
    assert about["variants"]["original"]["speedups"]["1"]["value"] == 1.0
    assert faster(measured, "small", over="original", batch=2).ratio == pytest.approx(
        about["variants"]["small"]["speedups"]["2"]["value"]
    )
    gates = figure_gates(about["variants"]["small"], Limits(max_p50_ms=1e-9, max_size_bytes=10**9))
    assert {gate.name: gate.verdict for gate in gates} == {"p50_ms": "fail", "size_bytes": "pass"}


def test_prefill_and_decode_are_told_apart_at_every_size_and_length(measured: Artifact) -> None:
    with np.load(measured.path / "latencies.npz") as arrays:
        latencies = dict(arrays)
    # A prompt of 500 tokens has no room: 64 positions, 4 of them for the new tokens.
    points = [(1, None), (2, None), (1, 16), (2, 16), (1, 60), (2, 60)]
    for name in ("original", "small"):
        figures = measured.metadata["variants"][name]
        assert all(GenerationFigures.model_validate(entry) for entry in figures["generation"])
        entries = figures["generation"]
        assert [(entry["batch_size"], entry["prompt_tokens"]) for entry in entries] == points
        for entry in entries:
            key = "/".join(str(part) for part in (name, entry["batch_size"], entry["prompt_tokens"]) if part)
            total, first = latencies[key], latencies[f"first_token/{key}"]
            assert (first > 0).all() and (first < total).all()
            assert entry["requests"] == len(total) == len(first)
            ttft, tpot = Latency.model_validate(entry["ttft_ms"]), Latency.model_validate(entry["tpot_ms"])
            assert ttft.p50 == pytest.approx(np.median(first))
            assert tpot.p50 == pytest.approx(np.median((total - first) / 3))
            assert ttft.p50_low <= ttft.p50 <= ttft.p95 <= ttft.p99 <= ttft.p99_high
            assert entry["new_tokens"] == 4
            assert entry["decode_tokens_per_s"] == pytest.approx(
                1000 * entry["batch_size"] * 3 * len(total) / (total - first).sum()
            )
            if entry["prompt_tokens"]:
                read = entry["batch_size"] * entry["prompt_tokens"] * len(first)
                assert entry["prefill_tokens_per_s"] == pytest.approx(1000 * read / first.sum())


def test_all_variants_take_turns_on_the_same_requests(measured: Artifact) -> None:
    with np.load(measured.path / "latencies.npz") as arrays:
        for key, calls in measured.metadata["calls_per_turn"].items():
            order = arrays[f"order/{key}"]
            assert len(arrays[f"original/{key}"]) == len(arrays[f"small/{key}"]) == calls * len(order)
            assert all({0, 1} <= set(row) for row in order.tolist())
            assert (arrays[f"inputs/{key}"] == np.arange(calls * len(order)) % 3).all()


def test_the_budget_ends_it_after_one_round(
    killed: tuple[Artifact, dict[str, Artifact], Kills, list[psutil.Process]],
) -> None:
    measured, _, progress, _ = killed
    # Three lengths of the documents, the middle one first: that of 100 tokens is cut.
    assert measured.metadata["prompt_lengths"] == [30, 20, 60]
    assert measured.metadata["documents"] == 6
    assert measured.metadata["budget_ended"]
    with np.load(measured.path / "latencies.npz") as arrays:
        assert {len(arrays[f"order/{key}"]) for key in measured.metadata["calls_per_turn"]} == {1}
    assert [note for note in progress.notes if note.startswith("batch size 2")] == [
        "batch size 2, prompts of all lengths",
        "batch size 2, prompts of 16 tokens",
        "batch size 2, prompts of 60 tokens",
    ]


def test_a_form_that_dies_or_cannot_be_opened_ends_alone(measured: Artifact) -> None:
    variants = measured.metadata["variants"]
    assert variants["dies"]["error"] == "killed by SIGKILL (out of memory?)"
    assert variants["torn"]["error"]
    for name in ("dies", "torn"):
        assert (variants[name]["batches"], variants[name]["generation"]) == ({}, [])
    with pytest.raises(InputError, match="dies was not measured at batch size 1: killed by SIGKILL"):
        faster(measured, "dies", over="original", batch=1)


def test_without_a_baseline_there_is_nothing_to_tell(tmp_path: Path, data: Artifact) -> None:
    about = checkpoint(tmp_path / "model", 16, 1).metadata | {"runtime": "onnxruntime-genai"}
    (tmp_path / "empty").mkdir()
    model = Artifact.write(tmp_path / "empty", "checkpoint", about)
    (tmp_path / "out").mkdir()
    with pytest.raises(StageError, match="original, the baseline, could not be measured: "):
        profile_language(data=data, options=OPTIONS, out=tmp_path / "out", original=model)


def test_what_cannot_be_profiled_is_refused_before_anything_is_started(tmp_path: Path, data: Artifact) -> None:
    model = checkpoint(tmp_path / "model", 16, 1)
    (tmp_path / "none").mkdir()
    for wrong, options, models, said in (
        (data, OPTIONS, {"gptq": model}, "the baseline 'original' is not among the models: gptq"),
        (data, OPTIONS.model_copy(update={"new_tokens": 60}), {"original": model}, "60 new tokens leave no room"),
        (data, OPTIONS, {"original": data}, "not a checkpoint of a language model"),
        (model, OPTIONS, {"original": model}, "is a checkpoint, not a dataset"),
    ):
        with pytest.raises(InputError, match=said):
            profile_language(data=wrong, options=options, out=tmp_path, **models)
    empty = Artifact.write(tmp_path / "none", "dataset", {})
    with pytest.raises(DataError, match="no windows of text"):
        profile_language(data=empty, options=OPTIONS, out=tmp_path, original=model)
    with pytest.raises(ValueError, match="1 or more"):
        ProfileLanguageOptions(prompt_tokens=(0,))


def test_the_mix_has_the_quantiles_of_the_documents() -> None:
    lengths = np.random.default_rng(0).permutation(np.arange(1, 1001))
    assert mixed_lengths(lengths, 4, 800) == [126, 376, 626, 800]
    assert mixed_lengths(np.array([3, 5]), 3, 100) == [8, 8, 8]


def test_prompts_begin_with_windows_and_go_on_into_the_next() -> None:
    tokens = np.arange(60).reshape(6, 10)
    windows = Windows(tokens, np.ones(6, np.int64), np.array([60]))
    prompts = cut_prompts(windows, 4, 25, np.random.default_rng(0))
    assert prompts.shape == (4, 25)
    assert len(set(prompts[:, 0])) == 4
    for prompt in prompts:
        assert prompt[0] % 10 == 0
        assert (np.diff(prompt) % 60 == 1).all()
    assert cut_prompts(windows, 8, 3, np.random.default_rng(0)).shape == (8, 3)


class Clock:
    """A session in which reading a token takes 2 ms and writing one 5 ms, and the clock that shows it."""

    def __init__(self, ends_after: int | None = None) -> None:
        self.now, self.ends_after, self.asked = 0, ends_after, list[tuple[int, int]]()

    def perf_counter_ns(self) -> int:
        return self.now

    def generate(self, prompts: Any, count: int) -> Iterator[Any]:
        self.asked.append((prompts.shape[1], count))
        self.now += 2_000_000 * prompts.shape[1]
        for step in range(count if self.ends_after is None else self.ends_after):
            self.now += 5_000_000 if step else 0
            yield prompts[:, 0]


def turn(clock: Any, monkeypatch: pytest.MonkeyPatch, prompts: Mapping[Any, Any], *how: Any) -> Any:
    monkeypatch.setattr(requests, "time", clock)
    return requests._run(clock, prompts, 5, *how)


def test_a_request_is_timed_to_its_first_token_and_to_its_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    prompts = {"1/4": [np.zeros((2, 10), np.int64), np.zeros((2, 20), np.int64)]}
    assert turn(clock, monkeypatch, prompts, "1/4", [0, 1], False) == [(40.0, 20.0), (60.0, 40.0)]
    assert clock.asked == [(10, 5), (20, 5)]
    assert len(turn(clock, monkeypatch, prompts, "1/4", [1], True)) == 1
    assert clock.asked[2:] == [(20, 5), (20, 5)]
    point = Point(2, calls=2, turns={"v": [[(40.0, 20.0), (60.0, 40.0)]]}, inputs=[0, 1], lengths=(10, 20))
    figures = generation_figures(point, "v", new_tokens=5)
    assert (figures["ttft_ms"]["p50"], figures["tpot_ms"]["p50"]) == (30.0, 5.0)
    assert figures["prefill_tokens_per_s"] == pytest.approx(2 * 30 / 0.060)
    assert figures["decode_tokens_per_s"] == pytest.approx(2 * 8 / 0.040)


def test_a_model_that_stops_early_is_not_taken_for_a_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="3 tokens were generated where 5 were asked for"):
        turn(Clock(ends_after=3), monkeypatch, {1: [np.zeros((1, 9), np.int64)]}, 1, [0], False)


class Asked:
    """Processes in which every request takes 100 ms of the clock that the budget is read from."""

    def __init__(self) -> None:
        self.now, self.alive, self.errors = 0.0, ["original"], dict[str, str]()

    def monotonic(self) -> float:
        return self.now

    def ask(self, name: str, request: str, size: Any, order: list[int], lead_in: bool) -> list[tuple[float, float]]:
        self.now += 0.1 * len(order)
        return [(100.0 + index, 10.0) for index in order]


def test_the_mix_that_decides_takes_half_of_the_time(monkeypatch: pytest.MonkeyPatch, data: Artifact) -> None:
    asked: Any = Asked()
    monkeypatch.setattr(rounds, "time", asked)
    options = OPTIONS.model_copy(update={"batch_sizes": (1,), "budget_s": 20.0, "min_calls": 10**6})
    points = _points(Windows.load(data.path), POSITIONS, ["original"], options)
    assert rounds.measure(asked, points, ["original"], options, SILENT)
    turns = [len(point.order) for point in points]
    assert turns[0] == pytest.approx(turns[1] + turns[2], abs=2)
    assert sum(turns) > 40
