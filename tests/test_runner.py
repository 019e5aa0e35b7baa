"""The runner: what fails with a step, what goes on without it, and which form of a variant is taken."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from pipeline.plan import Choice, Step
from pipeline.runner import Runner
from pipeline.screen import QUIET
from pipeline.store import Store
from stages.artifact import Artifact
from stages.errors import StageError
from stages.progress import Progress
from stages.stage import Stage


class Text(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = "hello"
    fail: bool = False


class Times(BaseModel):
    """How long each form takes; a negative time is a form that could not be measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ms: dict[str, float]


def write(options: Text, out: Path, progress: Progress, **inputs: Artifact) -> Artifact:
    if options.fail:
        raise StageError(f"no {options.text}")
    (out / "text").write_text(options.text)
    return Artifact.write(out, "text", {"inputs": sorted(inputs)})


def measure(options: Times, out: Path, progress: Progress, **inputs: Artifact) -> Artifact:
    arrays = {f"{name}/1": np.full(60, ms) for name, ms in options.ms.items() if ms > 0}
    np.savez(out / "latencies.npz", **arrays)
    variants = {name: {"error": "killed by SIGSEGV" if ms < 0 else None} for name, ms in options.ms.items()}
    metadata = {"batch_sizes": [1], "calls_per_turn": {"1": 6}, "variants": variants}
    return Artifact.write(out, "measurement", metadata)


def crash(options: Text, out: Path, progress: Progress) -> Artifact:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("not reached")


WRITE = Stage("write", 1, write)
CRASH = Stage("crash", 1, crash)
MEASURE = Stage("measure", 1, measure, host_bound=True)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(Store(tmp_path), QUIET, "host", 60, lambda: None)


def step(name: str, text: str = "", fail: bool = False, **more: object) -> Step:
    settings = {"inputs": {}, **more}
    return Step(name, WRITE, Text(text=text or name, fail=fail), **settings)  # type: ignore[arg-type]


def test_a_step_that_the_run_can_do_without_fails_with_what_depends_on_it(runner: Runner) -> None:
    runner.run(
        [
            step("a"),
            step("b", fail=True, fails=False),
            step("c", inputs={"b": "b"}, fails=False),
            step("d", inputs={"a": "a", "b": "b"}, optional=frozenset({"b"})),
        ]
    )
    assert set(runner.artifacts) == {"a", "d"}
    assert runner.artifacts["d"].metadata["inputs"] == ["a"]
    assert (runner.failures["c"].step, runner.failures["c"].reason) == ("b", "no b")


def test_a_crash_in_one_variant_leaves_the_others(runner: Runner) -> None:
    runner.run(
        [Step("bad", CRASH, Text(), {}, fails=False), step("good"), Choice("b", "bad", None, None), step("last")]
    )
    assert set(runner.artifacts) == {"good", "last"}
    assert "killed by SIGSEGV" in runner.failures["b"].reason


def test_a_step_that_the_run_needs_ends_it(runner: Runner) -> None:
    with pytest.raises(StageError, match="no a"):
        runner.run([step("a", fail=True), step("b")])
    assert runner.artifacts == {}


def test_a_step_that_changed_nothing_gave_nothing(runner: Runner) -> None:
    runner.run([step("a", "same"), step("b", "same", fails=False, unlike="a"), step("c", inputs={"b": "b"})])
    assert set(runner.artifacts) == {"a"}
    assert runner.failures["c"].expected


@pytest.mark.parametrize(
    ("plain_ms", "fused_ms", "takes"),
    [(2.0, 1.0, "fused"), (1.0, 2.0, "plain"), (1.0, 1.0, "plain"), (1.0, -1, "plain"), (-1, 1.0, "fused")],
)
def test_the_faster_form_is_taken_and_a_tie_goes_to_the_unfused_one(
    runner: Runner, plain_ms: float, fused_ms: float, takes: str
) -> None:
    times = Times(ms={"v": plain_ms, "v+fused": fused_ms})
    runner.run(
        [step("plain"), step("fused"), Step("profile", MEASURE, times, {}), Choice("v", "plain", "fused", "profile")]
    )
    assert (runner.artifacts["v"].path / "text").read_text() == takes
    assert runner.choices["v"].form == ("v+fused" if takes == "fused" else "v")
    race = runner.choices["v"].race
    assert race is None if -1 in (plain_ms, fused_ms) else race is not None and race.ratio == plain_ms / fused_ms


def test_a_variant_whose_forms_all_died_failed_with_their_reason(runner: Runner) -> None:
    times = Times(ms={"v": -1, "v+fused": -1})
    runner.run(
        [step("plain"), step("fused"), Step("profile", MEASURE, times, {}), Choice("v", "plain", "fused", "profile")]
    )
    assert "v" not in runner.artifacts
    assert runner.failures["v"].reason == "killed by SIGSEGV"


def test_without_measuring_the_fused_form_is_taken_where_there_is_one(runner: Runner) -> None:
    runner.run([step("plain"), step("fused"), Choice("v", "plain", "fused", None), Choice("w", "plain", None, None)])
    assert (runner.artifacts["v"].path / "text").read_text() == "fused"
    assert (runner.artifacts["w"].path / "text").read_text() == "plain"
    assert runner.choices["v"].form == "v", "it is measured under the variant's own name"


def test_the_first_work_is_announced_once_and_not_at_all_when_everything_is_there(tmp_path: Path) -> None:
    calls: list[str] = []
    for _ in range(2):
        runner = Runner(Store(tmp_path), QUIET, "host", 60, lambda: calls.append("work"))
        runner.run([step("a"), step("b")])
    assert calls == ["work"]
    assert all(record.stored.cached for record in runner.records)
