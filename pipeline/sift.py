"""Which candidates of a search are not worth going on with, and why. Nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.fallback import can_fall_back
from pipeline.screening import Entrant, race_interval
from pipeline.searched import CandidateResult
from stages.artifact import Artifact
from stages.model import Model
from stages.pareto import ALIKE, Standing, beaten
from stages.select import Objective
from stages.variants import BASELINE, VariantConfig

__all__ = ["TOO_LATE", "Tried", "drop_beaten", "drop_failing", "drop_hopeless", "drop_late", "drop_twins"]

TOO_LATE = "the time was up"


@dataclass
class Tried:
    """A candidate and what is known of it. It is dropped by giving `told` a reason.

    `forms`: what can be measured of it, by name, and the step that makes it; `model`: the first of them. `errors`
    [samples] float64: how far its answers are from the baseline's (`stages.pareto.answer_errors`). `failing`: why it
    cannot pass its accuracy gate as it is.
    """

    config: VariantConfig
    told: CandidateResult
    forms: dict[str, str] = field(default_factory=dict)
    model: Artifact | None = None
    errors: NDArray[np.float64] | None = None
    failing: str | None = None
    entrant: Entrant | None = None

    @classmethod
    def of(cls, config: VariantConfig) -> Tried:
        """One of which nothing is known yet."""
        told = CandidateResult(name=config.name, type=config.type, runtime=config.runtime, precision=config.precision)
        return cls(config, told)


def drop_twins(tried: Sequence[Tried]) -> None:
    """Of those that are one graph with other numbers (other ranges, say) leave the nearest to the baseline, or an
    earlier one that is as near but for a tenth: the others can be no faster and no smaller."""
    groups: list[list[Tried]] = []
    for one in tried:
        if one.errors is None or one.model is None:
            continue
        twins = next((group for group in groups if _same_graph(one, group[0])), None)
        if twins is None:
            groups.append([one])
        else:
            twins.append(one)
    for group in groups:
        errors = [_mean_error(one) for one in group]
        place = next(place for place, error in enumerate(errors) if error <= 1.1 * min(errors))
        for one, error in zip(group, errors, strict=True):
            if one is not group[place]:
                one.told.reason = (
                    f"the same operators as {group[place].config.name}, which is as near to the baseline or nearer "
                    f"(mean error {errors[place]:.2g}, here {error:.2g})"
                )


def drop_failing(tried: Sequence[Tried], fallback: bool) -> None:
    """Drop what fails for certain. With `fallback` the nearest to the baseline of a quantised type and runtime stays if
    all of them fail."""
    for one in tried:
        if one.failing is None:
            continue
        kin = [other for other in tried if (other.told.type, other.told.runtime) == (one.told.type, one.told.runtime)]
        hopeful = fallback and can_fall_back(one.config) and all(other.failing for other in kin)
        if not (hopeful and one is min(kin, key=_mean_error)):
            one.told.reason = one.failing


def drop_hopeless(tried: Sequence[Tried], objective: Objective) -> None:
    """Of those that fail leave only the best one, and it only if it is better than all that do not: returning operators
    to higher precision makes none of them any better."""
    best_first = sorted(tried, key=lambda one: _cost(one, objective))
    for place, one in enumerate(best_first):
        if place and one.failing is not None:
            one.told.reason = one.failing


def drop_beaten(tried: Sequence[Tried], baseline_bytes: int) -> None:
    """Drop what another one, the baseline perhaps, beats for certain."""
    racing = {one.config.name: one for one in tried if one.entrant and one.errors is not None and one.failing is None}
    standings = [Standing(name, one.told.size_bytes, one.errors) for name, one in racing.items()]
    if not standings:
        return
    assert standings[0].errors is not None
    standings.insert(0, Standing(BASELINE, baseline_bytes, np.zeros_like(standings[0].errors)))

    def interval(name: str, other: str) -> tuple[float, float] | None:
        a, b = (racing[one].entrant if one in racing else None for one in (name, other))
        if a is None or b is None:
            # One of them is the baseline, which takes part in every race.
            entrant = a or b
            assert entrant is not None
            a, b = a or entrant.of_baseline, b or entrant.of_baseline
        return race_interval(a, b)

    for name, how in beaten(standings, interval).items():
        if name in racing:
            racing[name].told.reason = f"{_listed(how.ways)} than {how.by}, and better in nothing"


def drop_late(tried: Sequence[Tried], objective: Objective, samples: int, seconds: float) -> None:
    """Leave the best one, and of the others those whose full checks, on so many samples, will likely end in time."""
    best_first = sorted(tried, key=lambda one: (one.entrant is None, _cost(one, objective)))
    if best_first and best_first[0].entrant is not None:
        seconds -= samples / best_first[0].entrant.of_baseline.samples_per_s
    for place, one in enumerate(best_first):
        seconds -= math.inf if one.entrant is None else samples / one.entrant.samples_per_s
        if place and seconds < 0:
            one.told.reason = TOO_LATE


def _cost(one: Tried, objective: Objective) -> float:
    if objective == "size" and one.told.size_bytes is not None:
        return one.told.size_bytes
    # What a short race has shown for certain counts, not what it happened to give.
    speedup = one.told.speedup_low or one.told.speedup
    return math.inf if speedup is None else 1 / speedup


def _mean_error(one: Tried) -> float:
    return math.inf if one.errors is None else float(one.errors.mean())


def _same_graph(one: Tried, other: Tried) -> bool:
    assert one.model is not None and one.told.size_bytes is not None
    assert other.model is not None and other.told.size_bytes is not None
    a, b = (Model.of(model).model_dump(exclude={"file", "signature"}) for model in (one.model, other.model))
    return a == b and 1 / ALIKE < one.told.size_bytes / other.told.size_bytes < ALIKE


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
