"""The Pareto front: what is beaten is dropped, what only seems to be is not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from stages.check.per_sample import PerSample
from stages.pareto import Race, Standing, answer_errors, beaten

SAMPLES = 32
NOISE = np.random.default_rng(0).uniform(0.5, 1.5, SAMPLES)


def standing(name: str, size: int | None, error: float | None) -> Standing:
    return Standing(name, size, None if error is None else error * NOISE)


def races(speeds: Mapping[str, float | None], spread: float = 0.01) -> Race:
    """A race between any two: their ratio, known to so much."""

    def race(one: str, other: str) -> tuple[float, float] | None:
        a, b = speeds[one], speeds[other]
        return None if a is None or b is None else (a / b * (1 - spread), a / b * (1 + spread))

    return race


BASELINE = standing("fp32", 90, 0.0)


def test_what_another_one_beats_is_told_in_which_ways() -> None:
    lost = beaten(
        [BASELINE, standing("fast", 23, 0.002), standing("slow", 60, 0.006), standing("even", 23, 0.0022)],
        races({"fp32": 1.0, "fast": 4.0, "slow": 2.0, "even": 1.5}),
    )
    assert {name: (how.by, how.ways) for name, how in lost.items()} == {
        "slow": ("fast", ("slower", "larger", "farther from the baseline")),
        "even": ("fast", ("slower",)),
    }


@pytest.mark.parametrize(
    ("size", "error", "speed"),
    [(20, 0.006, 2.0), (60, 0.0005, 2.0), (60, 0.006, 4.5)],
    ids=["smaller", "nearer", "faster"],
)
def test_what_is_better_in_one_thing_stays(size: int, error: float, speed: float) -> None:
    lost = beaten([standing("one", 23, 0.002), standing("other", size, error)], races({"one": 4.0, "other": speed}))
    assert "other" not in lost


def test_what_may_be_better_stays() -> None:
    """Slower by its median, but the interval reaches beyond the other's."""
    two = [standing("one", 23, 0.002), standing("other", 60, 0.006)]
    assert beaten(two, races({"one": 4.0, "other": 3.5}, spread=0.3)) == {}
    assert "other" in beaten(two, races({"one": 4.0, "other": 3.5}, spread=0.05))


def test_errors_are_compared_sample_by_sample() -> None:
    """The same spread of errors: known to be farther if it is so on every sample, not known if on some."""
    one = standing("one", 23, 0.002)
    speeds = races({"one": 4.0, "other": 4.0})
    shifted = Standing("other", 23, one.errors + 0.002 if one.errors is not None else None)
    assert beaten([one, shifted], speeds)["other"].ways == ("farther from the baseline",)
    random = np.random.default_rng(1)
    assert one.errors is not None
    scattered = Standing("other", 23, one.errors + random.normal(0.002, 0.02, SAMPLES))
    assert beaten([one, scattered], speeds) == {}


def test_what_was_not_measured_beats_nothing_and_is_not_beaten() -> None:
    known = standing("known", 23, 0.002)
    speeds = races({"known": 4.0, "unraced": None, "unsized": 1.0, "unchecked": 1.0, "fp32": 1.0})
    for unknown in (
        standing("unraced", 90, 0.1),
        standing("unsized", None, 0.1),
        standing("unchecked", 90, None),
    ):
        assert beaten([known, unknown], speeds) == {}


def test_of_some_that_beat_each_other_in_turn_the_first_stays() -> None:
    """Each is faster than the next by more than counts, the last than the first, too: noise can draw such a circle."""
    circle = [standing("a", 1000, 0.001), standing("b", 1000, 0.001), standing("c", 1000, 0.001)]
    speeds = {"a": {"b": 1.05, "c": 0.99}, "b": {"a": 0.99, "c": 1.05}, "c": {"a": 1.05, "b": 0.99}}
    lost = beaten(circle, lambda one, other: (speeds[one][other], speeds[one][other]))
    assert set(lost) == {"b", "c"}


def test_the_errors_are_those_of_the_finest_measure_there_is() -> None:
    columns = {name: np.full(4, 0.75) for name in ("cosine", "relative_error", "agreement")}
    for names, error in (
        (("cosine", "relative_error", "agreement"), 0.25),
        (("relative_error", "agreement"), 0.75),
        (("agreement",), 0.25),
    ):
        errors = answer_errors(PerSample(4, fidelity={name: columns[name] for name in names}))
        assert errors is not None
        assert errors.tolist() == [error] * 4
    assert answer_errors(PerSample(4)) is None
