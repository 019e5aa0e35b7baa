"""Fallback: a variant that fails its gate comes back with its most sensitive operators in higher precision."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_artifacts import linear
from planted import Planted, quick_run
from workplace import Finished, Workplace

from pipeline import Recipe, run
from pipeline.bisection import Search, fewest
from pipeline.fallback import tell
from pipeline.outcome import candidate_of, judge_variants
from pipeline.result import BatchFigures, FallbackResult, GroupEffect, Latency, Ratio, RunResult, VariantResult
from pipeline.runner import Chosen, Runner
from pipeline.screen import QUIET
from pipeline.store import Store
from stages.artifact import Artifact
from stages.select import select
from stages.sensitivity import SensitivityOptions, sensitivity
from stages.variants import parse_variant


def artifacts_of(place: Workplace, result: dict[str, Any]) -> dict[str, Artifact]:
    return {
        stage["name"]: Artifact.read(place.store / "steps" / stage["key"] / "artifact") for stage in result["stages"]
    }


def again(planted: Planted, place: Workplace, **more: Any) -> RunResult:
    """The run once more, from its store, with other words in the recipe."""
    recipe = Recipe.parse(
        {
            "model": str(planted.model),
            "name": "planted",
            "evaluation": str(planted.evaluation),
            "variants": ["int8-dynamic"],
            "fuse": "never",
            "objective": "size",
            "profile": {"batch_sizes": [1], "budget": "1s"},
            "verify": False,
            "repository": str(place.repository),
            **more,
        }
    )
    return run(recipe, store=place.store, record=False)


def test_a_planted_outlier_fails_int8_and_fallback_brings_it_through(planted_run: Finished, planted: Planted) -> None:
    result = planted_run.json
    fp32, int8, found = result["variants"]
    assert (int8["name"], int8["verdict"]) == ("int8-dynamic", "fail")
    assert (found["name"], found["verdict"]) == ("int8-dynamic+fallback", "pass")
    assert found["quantised_operators"] >= 0.8 * found["operators"]
    assert planted.damaged in [name for group in found["kept"] for name in group["operators"]]
    assert found["size_bytes"] < 0.5 * fp32["size_bytes"]
    assert result["release"]["variant"] == "int8-dynamic+fallback"
    (search,) = result["fallbacks"]
    assert [group["name"] for group in search["sensitivity"] if group["kept"]] == [
        kept["name"] for kept in found["kept"]
    ]
    assert search["sensitivity"] == sorted(search["sensitivity"], key=lambda group: -group["effect"])
    assert search["reason"] in planted_run.err


def test_evaluations_grow_with_the_logarithm_of_the_groups(planted_run: Finished) -> None:
    (search,) = planted_run.json["fallbacks"]
    assert 1 <= len(search["trials"]) <= math.ceil(math.log2(len(search["sensitivity"]))) + 2
    made = [stage["name"] for stage in planted_run.json["stages"] if stage["name"].startswith("make int8-dynamic+")]
    assert made == [f"make int8-dynamic+fallback {trial['groups']}" for trial in search["trials"]]


def test_the_release_names_the_operators_that_it_left_alone(planted_run: Finished, planted_place: Workplace) -> None:
    provenance = json.loads((planted_place.repository / "planted" / "1" / "provenance.json").read_text())
    kept = [name for group in planted_run.json["variants"][-1]["kept"] for name in group["operators"]]
    assert provenance["variant"]["name"] == "int8-dynamic+fallback"
    assert provenance["variant"]["exclude"] == kept
    assert provenance["measured"]["kept"] == planted_run.json["variants"][-1]["kept"]


def test_what_was_found_races_only_within_its_own_measurement(planted_run: Finished, planted_place: Workplace) -> None:
    fp32, int8, found = planted_run.json["variants"]
    assert (fp32["measurement"], int8["measurement"], found["measurement"]) == (
        "profile",
        "profile",
        "profile fallback",
    )
    measured = artifacts_of(planted_place, planted_run.json)["profile fallback"].metadata
    assert set(measured["names"]) == {"fp32", "int8-dynamic", "int8-dynamic+fallback"}
    told = measured["variants"]["int8-dynamic+fallback"]
    assert found["speedup"] == pytest.approx(told["speedups"]["1"]["value"])
    assert found["latency_ms"] == told["batches"]["1"]["latency_ms"]


def test_a_killed_search_goes_on_where_it_stopped(
    planted_run: Finished, planted_place: Workplace, planted: Planted, workplace: Workplace
) -> None:
    shutil.copytree(planted_place.store, workplace.store)
    keys = {stage["name"]: stage["key"] for stage in planted_run.json["stages"]}
    searched = list(keys)[list(keys).index("sensitivity int8-dynamic") :]
    for name in searched:
        shutil.rmtree(workplace.store / "steps" / keys[name])
    killed = workplace.start(*quick_run(planted))
    first = keys[next(name for name in searched if name.startswith("check"))]
    while not (workplace.store / "steps" / first).is_dir():
        assert killed.poll() is None
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    done = {name for name in searched if (workplace.store / "steps" / keys[name]).is_dir()}
    resumed = workplace.optimize(*quick_run(planted))
    assert resumed.code == 0, resumed.err
    cached = {stage["name"] for stage in resumed.json["stages"] if stage["cached"]}
    assert {"sensitivity int8-dynamic", "make int8-dynamic+fallback 3"} <= done <= cached
    assert not set(searched) <= cached, "it was killed before its end"
    assert resumed.json["fallbacks"] == planted_run.json["fallbacks"]


def test_without_time_nothing_is_searched(planted_run: Finished, planted_place: Workplace, planted: Planted) -> None:
    result = again(planted, planted_place, fallback_budget=1e-9)
    (search,) = result.fallbacks
    assert search.found is None
    assert "time" in search.reason
    assert search.trials == []
    assert not any(stage.name.startswith("sensitivity") for stage in result.stages)
    assert result.release is not None
    assert result.release.variant == "fp32"


def test_it_can_be_forbidden(planted_run: Finished, planted_place: Workplace, planted: Planted) -> None:
    result = again(planted, planted_place, fallback=False)
    assert result.fallbacks == []
    assert [row.name for row in result.variants] == ["fp32", "int8-dynamic"]


def test_what_accuracy_does_not_keep_from_passing_does_not_fall_back(
    planted_run: Finished, planted_place: Workplace, planted: Planted
) -> None:
    result = again(planted, planted_place, gates={"min_cosine": 0.5, "max_size": "1kB"})
    assert result.variants[1].verdict == "fail"
    assert result.fallbacks == []


def test_where_the_data_cannot_decide_there_is_no_search(
    planted_run: Finished, planted_place: Workplace, planted: Planted
) -> None:
    """On ten samples not even the baseline's own answers would pass."""
    data = {"path": str(planted.evaluation), "samples": 10}
    result = again(planted, planted_place, evaluation=data, gates={"min_cosine": 0.8})
    assert result.variants[1].verdict == "inconclusive"
    assert result.fallbacks == []


def test_groups_that_a_variant_refuses_alone_are_measured_in_company(
    planted_run: Finished, planted_place: Workplace, tmp_path: Path
) -> None:
    """Dynamic INT8 does not stand on embeddings alone. Where it leaves them as they are, they are no group at all."""
    (search,) = planted_run.json["fallbacks"]
    effects = {group["name"]: group["effect"] for group in search["sensitivity"]}
    assert 0 < effects["embeddings.word_embeddings"] < 1e-3
    artifacts = artifacts_of(planted_place, planted_run.json)
    without = parse_variant({"type": "int8-dynamic", "embeddings": False, "exclude": ["val_71", "val_79"]})
    options = SensitivityOptions(variant=without, samples=4)
    told = sensitivity(artifacts["convert"], artifacts["prepare"], options, tmp_path).metadata
    assert told["unquantised"] == ["embedding", "embedding_2", "val_71", "val_79"]
    assert {group["name"]: len(group["operators"]) for group in told["groups"]} == {
        "encoder.layer.0 attention": 2, "encoder.layer.0 MLP": 2, "encoder.layer.1 attention": 4,
        "encoder.layer.1 MLP": 2,
    }  # fmt: skip


def test_the_search_finds_the_fewest_groups_in_few_evaluations() -> None:
    for count in range(2, 70):
        for least in range(1, count + 1):
            tried: list[int] = []

            def passes(k: int, least: int = least, tried: list[int] = tried) -> bool:
                tried.append(k)
                return k >= least

            assert fewest(count, passes, lambda: False) == (least if least < count else 0, False)
            assert len(tried) <= math.ceil(math.log2(count))


@pytest.mark.parametrize("passing", [{1, 2, 6}, {3}, {5, 7}, {4, 6}])
def test_what_is_found_has_itself_passed_also_where_more_groups_can_do_worse(passing: set[int]) -> None:
    tried: list[int] = []

    def passes(k: int) -> bool:
        tried.append(k)
        return k in passing

    found, _ = fewest(8, passes, lambda: False)
    assert found in passing & set(tried) or (found == 0 and not passing & set(tried))


def test_out_of_time_the_best_so_far_counts() -> None:
    tried: list[int] = []

    def passes(k: int) -> bool:
        tried.append(k)
        return True

    assert fewest(16, passes, lambda: len(tried) == 2) == (4, True)
    assert fewest(16, passes, lambda: True) == (0, True)


@pytest.mark.parametrize(("low", "gone"), [(0.97, True), (1.2, False)])
def test_a_speed_gain_that_is_gone_is_told(low: float, gone: bool) -> None:
    row = measured("x+fallback", 1.0, 1.3)
    row.batches[0].speedup = Ratio(value=1.3, low=low, high=1.5)
    effect = GroupEffect(name="head", operators=["y", "z"], effect=0.1, sqnr_db=10, kept=True)
    other = GroupEffect(name="body", operators=["a"], effect=0.01, sqnr_db=20)
    told = FallbackResult(variant="x", found="x+fallback", reason="1 of 2 groups", sensitivity=[effect, other])
    config = parse_variant({"type": "int8-dynamic", "name": "x"})
    search = Search(config, config.model_copy(update={"name": "x+fallback"}), told, operators=4)
    rows = [VariantResult(name="x", precision="int8", verdict="fail"), row]
    (said,) = tell([search], rows, "latency")
    assert ("the speed gain is gone" in said) == gone
    assert (row.quantised_operators, row.operators, rows[0].quantised_operators) == (1, 4, 3)
    assert tell([search], rows, "size")


def test_a_speed_up_is_that_over_the_baseline_in_the_same_measurement(tmp_path: Path) -> None:
    """The baseline took its fused graph. A later measurement has only the forms that were taken, by their names."""
    runner = Runner(Store(tmp_path / "store"), QUIET, "host", 60, lambda: None)
    runner.give("profile", measurement(tmp_path / "first", {"fp32": 8.0, "fp32+fused": 6.0, "int8-dynamic": 2.0}))
    runner.give("profile fallback", measurement(tmp_path / "second", {"fp32": 12.0, "int8-dynamic+fallback": 6.0}))
    runner.choices["fp32"] = Chosen("fp32+fused", None)
    runner.choices["int8-dynamic"] = Chosen("int8-dynamic", None)
    runner.choices["int8-dynamic+fallback"] = Chosen("int8-dynamic+fallback", None, "profile fallback")
    config = parse_variant("int8-dynamic")
    recipe = Recipe.parse({"model": "x", "variants": [config]})
    found = config.model_copy(update={"name": "int8-dynamic+fallback"})
    assert [row.speedup for row in judge_variants(recipe, runner, [found]).rows] == [1.0, 3.0, 2.0]


def test_what_was_found_is_compared_with_the_best_that_was_measured_beside_it(tmp_path: Path) -> None:
    """Between the two measurements the machine became twice as fast in 8-bit arithmetic, and little faster in 32 bits.
    Over the baseline what was found gains more than int8-dynamic did, beside int8-dynamic it is slower."""
    runner = Runner(Store(tmp_path / "store"), QUIET, "host", 60, lambda: None)
    runner.give("profile", measurement(tmp_path / "first", {"fp32": 6.0, "int8-dynamic": 4.0, "int8-static": 4.4}))
    later = {"fp32": 5.0, "int8-dynamic": 1.6, "int8-static": 1.8, "int8-static+fallback": 2.0}
    runner.give("profile fallback", measurement(tmp_path / "second", later))
    for name in ("fp32", "int8-dynamic", "int8-static"):
        runner.choices[name] = Chosen(name, None)
    name = "int8-static+fallback"
    runner.choices[name] = Chosen(name, None, "profile fallback", "int8-dynamic")
    for made in runner.choices:
        runner.give(made, linear(tmp_path / made, np.ones((4, 2))))
    config = parse_variant("int8-static")
    recipe = Recipe.parse({"model": "x", "calibration": "y", "variants": [parse_variant("int8-dynamic"), config]})
    outcome = judge_variants(recipe, runner, [config.model_copy(update={"name": name})])
    row = outcome.rows[-1]
    assert (row.beside, row.speedup) == ("int8-dynamic", 2.5)
    assert row.batches[0].beside is not None
    assert row.batches[0].beside.value == pytest.approx(0.8)
    assert outcome.rows[1].beside is None
    times = {candidate.name: candidate.p50_ms for candidate in outcome.candidates}
    assert times == {"fp32": 6.0, "int8-dynamic": 4.0, "int8-static": 4.4, name: pytest.approx(5.0)}


def measurement(path: Path, ms: dict[str, float]) -> Artifact:
    path.mkdir()
    np.savez(path / "latencies.npz", **{f"{name}/1": np.full(60, value) for name, value in ms.items()})  # type: ignore[arg-type]
    variants = {
        name: {"error": None, "batches": {"1": batch(None, value).model_dump(mode="json")}}
        for name, value in ms.items()
    }
    return Artifact.write(path, "measurement", {"batch_sizes": [1], "calls_per_turn": {"1": 6}, "variants": variants})


def test_variants_of_two_measurements_are_compared_by_their_speed_ups() -> None:
    """While fallback was measured the machine was three times as slow; relative to the baseline it is the fastest."""
    fp32 = measured("fp32", 6.0, 1.0)
    rows = [fp32, measured("fp16", 4.0, 1.5), measured("x+fallback", 9.0, 2.0, "profile fallback")]
    candidates = [candidate_of(row, fp32) for row in rows]
    assert [candidate.p50_ms for candidate in candidates] == [6.0, 4.0, 3.0]
    assert candidates[2].throughput_per_s == pytest.approx(2000 / 6.0)
    winner = select(candidates, "latency")
    assert winner is not None
    assert winner.name == "x+fallback"


def measured(name: str, ms: float, speedup: float, measurement: str = "profile") -> VariantResult:
    ratio = Ratio(value=speedup, low=0.95 * speedup, high=1.05 * speedup)
    row = VariantResult(
        name=name, baseline=name == "fp32", precision="", verdict="pass", batches=[batch(ratio, ms)],
        measurement=measurement,
    )  # fmt: skip
    row.latency_ms = row.batches[0].latency_ms
    return row


def batch(speedup: Ratio | None, ms: float = 1.0) -> BatchFigures:
    figures = {f"p{p}{end}": ms for p in (50, 95, 99) for end in ("", "_low", "_high")}
    return BatchFigures(
        batch_size=1, latency_ms=Latency(**figures), throughput_per_s=1000 / ms, calls=60, relative_interval=0.01,
        settled=True, speedup=speedup,
    )  # fmt: skip
