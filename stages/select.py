"""Select: the best variant among those that pass every gate. A pure function; it measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Candidate", "Objective", "select"]

Objective = Literal["latency", "throughput", "size"]


@dataclass(frozen=True)
class Candidate:
    """What selection needs to know of a variant. Figures that were not measured are None."""

    name: str
    passed: bool
    p50_ms: float | None
    """Median latency at the first batch size of the recipe, in milliseconds."""
    throughput_per_s: float | None
    """Samples per second at the batch size where it is largest."""
    size_bytes: int | None


def select(candidates: Sequence[Candidate], objective: Objective) -> Candidate | None:
    """The best of `candidates` by `objective`, or None if none has passed (or none was measured).

    The median decides latency, not the 95th percentile: on a machine that is shared, the tail says more about the
    neighbours than about the variant. Of two equal ones the first is taken, so the baseline, which comes first,
    is left only for something better.
    """

    def cost(candidate: Candidate) -> float | None:
        if objective == "size":
            return candidate.size_bytes
        if objective == "throughput":
            return None if candidate.throughput_per_s is None else -candidate.throughput_per_s
        return candidate.p50_ms

    costs = [(cost(candidate), candidate) for candidate in candidates if candidate.passed]
    measured = [(value, candidate) for value, candidate in costs if value is not None]
    if not measured:
        return None
    return min(measured, key=lambda pair: pair[0])[1]
