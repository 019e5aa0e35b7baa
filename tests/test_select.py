"""Select: the objective decides among those that passed and are known to be better, and only those."""

from __future__ import annotations

from stages.select import Candidate, Objective, select

BASELINE = Candidate("fp32", True, True, 10.0, 100.0, 90)
FAST = Candidate("int8", True, False, 4.0, 150.0, 23, faster=True, higher=True)
WIDE = Candidate("fp16", True, False, 6.0, 300.0, 45, faster=True, higher=True)
BROKEN = Candidate("int4", False, False, 1.0, 900.0, 12, faster=True, higher=True)
UNMEASURED = Candidate("bf16", True, False, None, None, None)
LUCKY = Candidate("lucky", True, False, 9.9, 101.0, 89)


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


def test_the_baseline_stays_where_no_variant_is_known_to_be_faster() -> None:
    assert chosen("latency", BASELINE, LUCKY) == "fp32"
    assert chosen("throughput", BASELINE, LUCKY) == "fp32"
    assert chosen("size", BASELINE, LUCKY) == "lucky", "a size is known"


def test_without_a_baseline_that_passes_the_best_of_the_others_is_taken() -> None:
    failed = Candidate("fp32", False, True, 10.0, 100.0, 90)
    assert chosen("latency", failed, LUCKY) == "lucky"
