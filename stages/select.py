"""Select: the best variant among those that pass every gate. A pure function; it measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Candidate", "Objective", "select"]

Objective = Literal["latency", "throughput", "size"]


@dataclass(frozen=True)
class Candidate:
    """What selection needs to know of a variant. Figures that were not measured are None.

    `p50_ms` is the median latency at the first batch size, `throughput_per_s` the largest of all batch sizes, in
    samples a second. `faster` and `higher`: whether the interval of the speed-up over the baseline lies above 1 at the
    batch size of the one and of the other.
    """

    name: str
    passed: bool
    baseline: bool
    p50_ms: float | None
    throughput_per_s: float | None
    size_bytes: int | None
    faster: bool = False
    higher: bool = False


def select(candidates: Sequence[Candidate], objective: Objective) -> Candidate | None:
    """The best of `candidates` by `objective`, or None if none has passed (or none was measured).

    The baseline is left only for a variant that is known to be faster, not for one that happened to be: where the
    interval of the speed-up holds 1, the difference may be the machine's. The median decides latency, not the 95th
    percentile, which on a shared machine says more about the neighbours than about the variant.
    """

    def cost(candidate: Candidate) -> float | None:
        if objective == "size":
            return candidate.size_bytes
        if objective == "throughput":
            return None if candidate.throughput_per_s is None else -candidate.throughput_per_s
        return candidate.p50_ms

    def known(candidate: Candidate) -> bool:
        return (
            candidate.baseline or {"latency": candidate.faster, "throughput": candidate.higher, "size": True}[objective]
        )

    passed = [candidate for candidate in candidates if candidate.passed]
    if any(candidate.baseline for candidate in passed):
        passed = [candidate for candidate in passed if known(candidate)]
    measured = [(value, candidate) for candidate in passed if (value := cost(candidate)) is not None]
    return min(measured, key=lambda pair: pair[0])[1] if measured else None
