"""The search on a real model: what is beaten is dropped early, what is left is judged, and no work is done twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from workplace import Classifier

from pipeline import Recipe
from pipeline.candidates import candidates
from pipeline.front import front
from pipeline.outcome import judge_variants
from pipeline.plan import Step, groundwork, judging_plan, variants_of
from pipeline.runner import Runner
from pipeline.screen import QUIET
from pipeline.screening import race_step, screening_check
from pipeline.search import Survey, survey
from pipeline.searched import CandidateResult
from pipeline.sift import Tried, drop_failing, drop_hopeless, drop_late
from pipeline.store import Store
from stages.host import fingerprint_digest, host_fingerprint
from stages.prepare import locate_data
from stages.source import locate
from stages.variants import GRAPH_VARIANTS, VariantConfig, parse_variant

SPECS = [
    "bf16-openvino",
    "int8-static",
    "int8-static-openvino",
    "fp16",
    {"type": "int8-static", "observer": "moving-average", "name": "int8-static-again"},
]
NAMES = ["bf16-openvino", "int8-static", "int8-static-openvino", "fp16", "int8-static-again"]
LONG = 1e6


@dataclass
class Searched:
    """A search that has ended."""

    runner: Runner
    found: Survey

    @property
    def told(self) -> dict[str, CandidateResult]:
        return {candidate.name: candidate for candidate in self.found.candidates}

    @property
    def steps(self) -> list[str]:
        return [record.name for record in self.runner.records]

    @property
    def made_now(self) -> list[str]:
        return [record.name for record in self.runner.records if not record.stored.cached]


Search = Callable[..., Searched]


@pytest.fixture(scope="module")
def search(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """A search for the small perceptron, among five candidates or some of them; all share a store."""
    store = Store(tmp_path_factory.mktemp("search"))
    data = tmp_path_factory.mktemp("data")
    with np.load(classifier.evaluation) as arrays:
        np.savez(data / "calibration.npz", x=arrays["x"][:64])
        np.savez(data / "unlabelled.npz", x=arrays["x"][64:192])
    host = fingerprint_digest(host_fingerprint())

    chosen: list[VariantConfig] = []

    def run(
        seconds: float = LONG,
        *,
        names: Sequence[str] = NAMES,
        unlabelled: bool = False,
        calibration: bool = True,
        **values: Any,
    ) -> Searched:
        chosen[:] = [config for config in map(parse_variant, SPECS) if config.name in names]
        recipe = Recipe.parse(
            {
                "model": str(classifier.model),
                "evaluation": str(data / "unlabelled.npz" if unlabelled else classifier.evaluation),
                "calibration": str(data / "calibration.npz") if calibration else None,
                "variants": "auto",
                "gates": {"max_drop": "10%"},
                "profile": {"batch_sizes": [1], "budget": "2s"},
                **values,
            }
        )
        runner = Runner(store, QUIET, host, 600, lambda: None)
        for name, artifact in [
            ("source", locate(recipe.model)),
            ("evaluation-data", recipe.evaluation and locate_data(recipe.evaluation.path)),
            ("calibration-data", recipe.calibration and locate_data(recipe.calibration.path)),
        ]:
            if artifact is not None:
                runner.give(name, artifact)
        runner.run(groundwork(recipe))
        return Searched(runner, survey(recipe, runner, QUIET, time.monotonic() + seconds))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.plan.candidates", lambda target, instruction_sets: chosen)
        yield run


@pytest.fixture(scope="module")
def searched(search: Search) -> Searched:
    return search()


def test_what_is_beaten_is_dropped_with_the_reason(searched: Searched) -> None:
    told = searched.told
    assert list(told) == NAMES
    # OpenVINO's call costs more than this whole model, and its file more than the weights.
    for name in ("bf16-openvino", "int8-static-openvino"):
        assert told[name].reached == "race"
        assert (told[name].speedup_high or 9) < 1
        assert "slower and larger than" in (told[name].reason or "")
    assert told["int8-static-again"].reached == "check"
    assert "the same operators as int8-static" in (told["int8-static-again"].reason or "")
    assert told["int8-static"].samples == 32
    assert told["int8-static"].fidelity["cosine"] > 0.99
    assert all((candidate.reason is None) == (candidate.reached == "full") for candidate in told.values())
    kept = [variant.name for variant in variants_of(searched.found.recipe)]
    assert kept[0] == "fp32"
    assert kept[1:] == [name for name, candidate in told.items() if candidate.reached == "full"]
    assert "int8-static" in kept, "nothing is smaller"


def test_only_what_is_left_is_measured_in_full_and_judged(searched: Searched) -> None:
    recipe, runner = searched.found.recipe, searched.runner
    runner.run(judging_plan(recipe))
    outcome = judge_variants(recipe, runner)
    assert [row.name for row in outcome.rows] == [variant.name for variant in variants_of(recipe)]
    assert {row.verdict for row in outcome.rows} == {"pass"}
    assert "check bf16-openvino" not in searched.steps
    ends = front(recipe, runner, outcome.rows)
    assert "int8-static" in ends
    slower = next(row for row in outcome.rows if row.name == "int8-static")
    assert slower.size_bytes is not None
    slower.size_bytes = 10**9
    assert "int8-static" not in front(recipe, runner, outcome.rows)
    slower.verdict = "fail"
    assert set(front(recipe, runner, outcome.rows)) <= {row.name for row in outcome.rows if row.verdict == "pass"}


def test_the_same_search_again_takes_everything_from_the_store(searched: Searched, search: Search) -> None:
    again = search()
    assert again.made_now == []
    assert again.found == searched.found
    assert len(again.steps) == len(set(again.steps)), "no step is taken twice"


def test_without_any_time_the_baseline_is_left(search: Search) -> None:
    nothing = search(0)
    assert nothing.found.recipe.variants == ()
    assert [variant.name for variant in variants_of(nothing.found.recipe)] == ["fp32"]
    assert {(told.reached, told.reason) for told in nothing.found.candidates} == {("none", "the time was up")}
    assert "screen fp32" not in nothing.steps


def test_a_search_that_ran_out_of_time_goes_on_where_it_stopped(
    search: Search, monkeypatch: pytest.MonkeyPatch, searched: Searched
) -> None:
    """On a clock that goes a second further whenever it is looked at."""
    looks: list[float] = []

    def clock() -> float:
        looks.append(looks[-1] + 1 if looks else time.monotonic())
        return looks[-1]

    monkeypatch.setattr("pipeline.search.time", SimpleNamespace(monotonic=clock))
    # Two seconds are kept for measuring. Looking at candidates ends after 3.6, races may begin until 6.
    short = search(2 + 6)
    assert [told.reached for told in short.found.candidates] == ["full", "check", "check", "none", "none"]
    assert [told.reason for told in short.found.candidates][1:] == 4 * ["the time was up"]
    assert not [step for step in short.steps if step.startswith("race")]
    assert set(short.steps) < set(searched.steps)


def test_what_fails_for_certain_is_dropped_before_it_races(search: Search) -> None:
    few: dict[str, Any] = {"names": NAMES[1:4], "unlabelled": True, "gates": {"min_cosine": 0.9999999}}
    found = search(**few, fallback=False)
    for name in ("int8-static", "int8-static-openvino"):
        assert found.told[name].reached == "check"
        assert "on 32 samples: mean cosine" in (found.told[name].reason or "")
        assert "is beyond the limit 1" in (found.told[name].reason or "")
    assert found.told["fp16"].speedup is not None
    hoping = search(**few)
    assert hoping.told["int8-static"].speedup is not None, "fallback may save it: it races"
    assert "on 32 samples: mean cosine" in (hoping.told["int8-static-openvino"].reason or ""), "and is too slow"


def test_what_is_too_large_or_too_slow_is_dropped(search: Search) -> None:
    found = search(names=NAMES[:2], gates={"max_drop": "10%", "max_size": "12kB"})
    assert found.told["bf16-openvino"].reached == "make"
    assert "size_bytes" in (found.told["bf16-openvino"].reason or "")
    assert [variant.name for variant in variants_of(found.found.recipe)] == ["fp32", "int8-static"]
    slow = search(names=NAMES[:2], gates={"max_drop": "10%", "max_p99": "1us"})
    assert slow.found.recipe.variants == ()
    assert "p99_ms" in (slow.told["int8-static"].reason or "")


def test_what_cannot_be_made_says_why(search: Search) -> None:
    found = search(names=["int8-static", "fp16"], calibration=False)
    assert found.told["int8-static"].reached == "make"
    assert "give calibration data" in (found.told["int8-static"].reason or "")
    assert found.told["fp16"].reached in ("race", "full")


def test_where_few_samples_are_too_few_for_the_metric_speed_alone_is_known(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfit(recipe: Recipe, variant: VariantConfig, model: str) -> Step:
        step = screening_check(recipe, variant, model)
        return replace(step, options=step.options.model_copy(update={"metric": "recall@1"}))

    monkeypatch.setattr("pipeline.search.screening_check", unfit)
    found = search(names=["fp16"])
    assert found.told["fp16"].reached == "full"
    assert found.told["fp16"].samples is None
    assert found.told["fp16"].speedup is not None


@pytest.mark.parametrize(("objective", "size"), [("latency", 4), ("size", 4), ("throughput", 16)])
def test_the_race_is_run_at_the_batch_size_that_decides(objective: str, size: int) -> None:
    recipe = Recipe.parse({"model": "m", "objective": objective, "profile": {"batch_sizes": [4, 16, 8]}})
    step = race_step(recipe, 1, {"fp32": "convert", "fp16": "make fp16"})
    assert step.options.model_dump()["batch_sizes"] == (size,)


def test_every_candidate_can_be_made_and_has_a_name_of_its_own() -> None:
    strong, weak = (candidates("cpu", sets) for sets in (["avx512_vnni", "amx_bf16"], ["avx2"]))
    for found in (strong, weak):
        names = [config.name for config in found]
        assert len(set(names)) == len(names)
        assert "fp32" not in names, "that is the baseline"
        assert all(config.name.endswith("-openvino") == (config.runtime == "openvino") for config in found)
    assert {config.type for config in strong} == {
        name for name, config in GRAPH_VARIANTS.items() if "cpu" in config.targets
    }
    only_strong, only_weak = ({config.name for config in found} for found in (strong, weak))
    assert only_strong - only_weak == {"bf16-openvino"}
    assert only_weak - only_strong == {"int8-dynamic-7bit"}
    assert candidates("moon", []) == []


def tried(spec: str, error: float, speedup: float | None, failing: bool = False) -> Tried:
    one = Tried.of(parse_variant(spec))
    one.errors = np.full(32, error)
    one.told.speedup, one.told.size_bytes = speedup, 1000
    one.failing = "it fails" if failing else None
    return one


def test_of_what_fails_only_what_fallback_could_make_the_best_is_kept() -> None:
    plain, other = tried("int8-static", 0.02, 4.0, failing=True), tried("int8-static-openvino", 0.02, 5.0, failing=True)
    worse, half = tried("int8-static", 0.05, 4.0, failing=True), tried("bf16", 0.9, 9.0, failing=True)
    good = tried("int8-dynamic", 0.001, 2.0)
    everyone = [plain, worse, other, half, good]
    drop_failing(everyone, fallback=True)
    assert [one.told.reason for one in everyone] == [None, "it fails", None, "it fails", None]
    left = [one for one in everyone if one.told.reason is None]
    drop_hopeless(left, "latency")
    assert [one.told.reason for one in left] == ["it fails", None, None], "the fastest of all"
    good.told.speedup, other.told.reason = 6.0, None
    drop_hopeless([other, good], "latency")
    assert other.told.reason == "it fails"
    without = [tried("int8-static", 0.02, 4.0, failing=True)]
    drop_failing(without, fallback=False)
    assert without[0].told.reason == "it fails"


def test_checks_that_would_take_too_long_are_left_out_the_best_one_aside() -> None:
    def raced(spec: str, speedup: float) -> Tried:
        one = tried(spec, 0.001, speedup)
        baseline = SimpleNamespace(samples_per_s=100.0)
        one.entrant = SimpleNamespace(samples_per_s=100 * speedup, of_baseline=baseline)  # type: ignore[assignment]
        return one

    for seconds, kept in [(100.0, 3), (27.0, 3), (25.0, 2), (15.0, 1), (-5.0, 1)]:
        three = [raced("fp16", 1.0), raced("int8-dynamic", 5.0), raced("int8-static", 2.5)]
        drop_late(three, "latency", 1000, seconds)
        left = [one.config.name for one in three if one.told.reason is None]
        assert len(left) == kept, seconds
        assert "int8-dynamic" in left
