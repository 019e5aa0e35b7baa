"""The sequential test: how often it is wrong though one looks all the time, and that it finds what is there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.rollout.evidence import Evidence, Margins, verdict_of
from pipeline.rollout.sequences import quantile_sequence, rate_sequence

ALPHA = 0.05
MARGINS = Margins(slower=0.25, slack_ms=0.0, errors=0.01, quantiles=(0.5, 0.95), alpha=ALPHA)


def _looks(most: int) -> list[int]:
    return sorted({int(10 * 1.15**step) for step in range(80) if 10 * 1.15**step <= most} | {most})


@pytest.mark.parametrize("rate", [0.0, 0.002, 0.03, 0.4])
def test_a_rate_is_held_at_every_look_at_once(rate: float) -> None:
    random, missed = np.random.default_rng(0), 0
    for _ in range(400):
        sums = np.cumsum(random.random(3000) < rate)
        for look in _looks(3000):
            low, high = rate_sequence(int(sums[look - 1]), look, ALPHA)
            if not low <= rate <= high:
                missed += 1
                break
    assert missed <= 400 * ALPHA


@pytest.mark.parametrize("quantile", [0.5, 0.95])
@pytest.mark.parametrize("digits", [6, 1], ids=["fine", "values that repeat"])
def test_a_quantile_is_held_at_every_look_at_once(quantile: float, digits: int) -> None:
    random, missed = np.random.default_rng(1), 0
    draw = np.round(random.lognormal(0, 1, (400, 2000)), digits)
    true = float(np.quantile(np.round(random.lognormal(0, 1, 2_000_000), digits), quantile))
    for row in draw:
        for look in _looks(2000):
            low, high = quantile_sequence(np.sort(row[:look]), quantile, ALPHA)
            if not low - 0.005 <= true <= high + 0.005:
                missed += 1
                break
    assert missed <= 400 * ALPHA


def test_intervals_become_narrow() -> None:
    assert rate_sequence(0, 0, ALPHA) == (0.0, 1.0)
    low, high = rate_sequence(0, 1000, ALPHA)
    assert low == 0 and 0.003 < high < 0.01  # the rule of three says 0.003 for one look
    assert rate_sequence(10, 10, ALPHA)[0] > 0.1 and rate_sequence(10, 10, ALPHA)[1] == 1.0
    values = np.sort(np.random.default_rng(2).random(10_000))
    low, high = quantile_sequence(values, 0.5, ALPHA)
    assert low < 0.5 < high and high - low < 0.06
    assert quantile_sequence(values[:5], 0.5, ALPHA) == (0.0, math.inf)


def _lines(server: str, latency_ms: np.ndarray, failed: np.ndarray) -> list[dict[str, object]]:
    return [
        {
            "server": server,
            "asked": "1",
            "status": 500 if bad else 200,
            "state": "--",
            "at": "1",
            "us": str(int(1000 * value)),
        }
        for value, bad in zip(latency_ms, failed, strict=True)
    ]


def _verdict(seed: int, *, slower: float = 1.0, errors: float = 0.0, requests: int = 4000, share: int = 10) -> str:
    """What one looks at again and again comes to in the end."""
    random, evidence = np.random.default_rng(seed), Evidence()
    at = 0
    for look in _looks(requests):
        fresh, at = look - at, look
        ours, theirs = fresh * (100 - share) // share, fresh
        evidence.add(_lines("stable", random.lognormal(1, 0.5, ours), np.zeros(ours, bool)))
        evidence.add(_lines("candidate", slower * random.lognormal(1, 0.5, theirs), random.random(theirs) < errors))
        if (verdict := verdict_of(evidence.measures(MARGINS))) != "undecided":
            return verdict
    return "undecided"


def test_false_alarms_are_as_rare_as_promised() -> None:
    """The hardest cases: a candidate exactly as much worse as is allowed must hardly ever be called worse, and one that
    is just beyond must hardly ever pass."""
    at_the_margin = [_verdict(seed, slower=1.25, requests=600) for seed in range(150)]
    assert at_the_margin.count("worse") <= 150 * ALPHA
    assert at_the_margin.count("not_worse") <= 150 * ALPHA
    failing = [_verdict(seed, errors=0.01, requests=600) for seed in range(100)]
    assert failing.count("worse") <= 100 * ALPHA


def test_what_is_there_is_found() -> None:
    assert [_verdict(seed) for seed in range(15)] == ["not_worse"] * 15
    assert [_verdict(seed, slower=2.0) for seed in range(15)] == ["worse"] * 15
    assert [_verdict(seed, errors=0.1) for seed in range(15)] == ["worse"] * 15


def test_only_answers_to_waiting_clients_count() -> None:
    evidence = Evidence()
    line = {"server": "candidate", "asked": "1", "status": 200, "state": "--", "at": "1", "us": "1500"}
    evidence.add(
        [
            line,
            line | {"status": 503},
            line | {"status": 400},
            line | {"state": "CD"},
            line | {"asked": "-"},
            line | {"server": "<NOSRV>"},
        ]
    )
    assert evidence.requests == {"stable": 0, "candidate": 3}
    assert evidence.errors == {"stable": 0, "candidate": 2}
    assert evidence.latency_ms["candidate"] == [1.5]


def test_requests_of_one_moment_count_once() -> None:
    evidence = Evidence(spacing_ms=50)
    line = {"asked": "1", "status": 200, "state": "--"}
    for server in ("stable", "candidate"):
        evidence.add(
            line | {"server": server, "at": str(at_ms * 1000), "us": str(at_ms)} for at_ms in (100, 120, 149, 150, 210)
        )
    assert evidence.requests == {"stable": 5, "candidate": 5}
    assert evidence.latency_ms == {"stable": [0.1, 0.15, 0.21], "candidate": [0.1, 0.15, 0.21]}
