"""Select: the objective decides among those that passed, and only those."""

from __future__ import annotations

from stages.select import Candidate, Objective, select

BASELINE = Candidate("fp32", True, 10.0, 100.0, 90)
FAST = Candidate("int8", True, 4.0, 150.0, 23)
WIDE = Candidate("fp16", True, 6.0, 300.0, 45)
BROKEN = Candidate("int4", False, 1.0, 900.0, 12)
UNMEASURED = Candidate("bf16", True, None, None, None)


def chosen(objective: Objective, *candidates: Candidate) -> str | None:
    best = select(candidates, objective)
    return None if best is None else best.name


def test_the_objective_decides() -> None:
    everything = (BASELINE, FAST, WIDE, BROKEN, UNMEASURED)
    assert chosen("latency", *everything) == "int8"
    assert chosen("throughput", *everything) == "fp16"
    assert chosen("size", *everything) == "int8"


def test_what_has_not_passed_or_was_not_measured_is_never_taken() -> None:
    assert chosen("latency", BROKEN) is None
    assert chosen("latency", UNMEASURED) is None
    assert chosen("latency") is None
    assert chosen("latency", BASELINE, BROKEN) == "fp32"


def test_of_two_equal_ones_the_baseline_stays() -> None:
    assert chosen("latency", BASELINE, Candidate("fp16", True, 10.0, 100.0, 45)) == "fp32"
