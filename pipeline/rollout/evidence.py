"""What the requests of one step say: is the candidate worse than the stable version by more than the margin?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.rollout.document import Estimate, Measure, Verdict
from pipeline.rollout.sequences import quantile_sequence, rate_sequence
from stages.deploy.front_door import CANDIDATE, STABLE

__all__ = ["Evidence", "Margins", "verdict_of"]

_OTHERS_FAULT = "C"
"""In HAProxy's termination state: the client went away."""


@dataclass(frozen=True)
class Margins:
    """How much worse the candidate may be.

    `slower`: a fraction of the stable version's latency; `slack_ms`: a difference that never counts, since tenths of a
    millisecond of an idle connection are nobody's loss. `errors`: added to the stable version's error rate, a fraction.
    `quantiles` of the latency that are watched. `alpha`: the probability of a wrong word on this step, all measures
    together, however long it takes.
    """

    slower: float
    slack_ms: float
    errors: float
    quantiles: tuple[float, ...]
    alpha: float

    @property
    def alpha_each(self) -> float:
        """Of one interval: there are two for every measure."""
        return self.alpha / (2 * (len(self.quantiles) + 1))


@dataclass
class Evidence:
    """The finished inference requests of one step, as the front door saw them."""

    spacing_ms: float = 0.0
    latency_ms: dict[str, list[float]] = field(default_factory=lambda: {STABLE: [], CANDIDATE: []})
    errors: dict[str, int] = field(default_factory=lambda: {STABLE: 0, CANDIDATE: 0})
    requests: dict[str, int] = field(default_factory=lambda: {STABLE: 0, CANDIDATE: 0})
    _kept_us: dict[str, int] = field(default_factory=dict)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Count what a version has answered to a client who waited for it.

        Any answer but 2xx is an error, a refusal of the request (4xx) too: what the clients do wrong, they do to both
        versions in the same measure, and a candidate with other inputs shows in this way only. The latency of errors is
        left out: a version that fails at once is not a quick one; so is that of a request which began less than
        `spacing_ms` after the last one that was kept of its version. Requests of one moment share its luck (another
        program takes the processor, a collection of garbage), and the intervals are for independent ones.
        """
        for line in lines:
            server = line["server"]
            if line["asked"] != "1" or server not in self.requests or line["state"].startswith(_OTHERS_FAULT):
                continue
            self.requests[server] += 1
            if 200 <= line["status"] < 300 and line["us"].isdigit():
                began = int(line["at"])
                if began >= self._kept_us.get(server, 0) + 1000 * self.spacing_ms or began < self._kept_us[server]:
                    self._kept_us[server] = began
                    self.latency_ms[server].append(int(line["us"]) / 1000)
            else:
                self.errors[server] += 1

    def measures(self, margins: Margins) -> list[Measure]:
        """The errors, and the quantiles of latency, each with its verdict."""
        ordered = {name: np.sort(np.asarray(values)) for name, values in self.latency_ms.items()}
        return [
            self._errors(margins),
            *(_latency(ordered, quantile, margins) for quantile in margins.quantiles),
        ]

    def _errors(self, margins: Margins) -> Measure:
        both = {
            name: _estimate(
                self.errors[name] / self.requests[name] if self.requests[name] else None,
                rate_sequence(self.errors[name], self.requests[name], margins.alpha_each),
            )
            for name in (STABLE, CANDIDATE)
        }
        low, high = _ends(both[STABLE])
        return _judged("error_rate", both, low + margins.errors, high + margins.errors)


def verdict_of(measures: Sequence[Measure]) -> Verdict:
    """Worse if any measure is, not worse if all are known not to be."""
    verdicts = {measure.verdict for measure in measures}
    if "worse" in verdicts:
        return "worse"
    return "not_worse" if verdicts == {"not_worse"} else "undecided"


def _latency(ordered: Mapping[str, NDArray[np.float64]], quantile: float, margins: Margins) -> Measure:
    both = {
        name: _estimate(
            float(np.quantile(values, quantile)) if len(values) else None,
            quantile_sequence(values, quantile, margins.alpha_each),
        )
        for name, values in ordered.items()
    }

    def allowed(latency_ms: float) -> float:
        return max(latency_ms * (1 + margins.slower), latency_ms + margins.slack_ms)

    low, high = _ends(both[STABLE])
    return _judged(f"latency_p{100 * quantile:g}_ms", both, allowed(low), allowed(high))


def _judged(name: str, both: Mapping[str, Estimate], at_least: float, at_most: float) -> Measure:
    """`at_least` and `at_most`: where the limit for the candidate lies, given what is known of the stable version."""
    low, high = _ends(both[CANDIDATE])
    verdict: Verdict = "worse" if low > at_most else "not_worse" if high <= at_least else "undecided"
    return Measure(name=name, stable=both[STABLE], candidate=both[CANDIDATE], verdict=verdict)


def _estimate(value: float | None, bounds: tuple[float, float]) -> Estimate:
    low, high = bounds
    return Estimate(value=value, low=low, high=None if math.isinf(high) else high)


def _ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, math.inf if estimate.high is None else estimate.high
