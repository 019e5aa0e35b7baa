"""A screening: the steps of a look at a variant on few samples and of a short race, and how a race went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.plan import Step, check_step, prepare_step, profile_step
from pipeline.recipe import Recipe
from stages.artifact import Artifact
from stages.profile import ProfileOptions, Race, faster
from stages.variants import BASELINE, VariantConfig

__all__ = ["SAMPLES", "Entrant", "entrant", "race_interval", "race_step", "screening_check", "screening_data"]

SAMPLES = 32

_DATA = "prepare screening"
_SECONDS_A_FORM = 3.0
"""Some twenty turns; an interval takes six, and those of a large model are long."""


def screening_data(recipe: Recipe) -> Step:
    """Few samples of the evaluation data, by the same rules as all of them."""
    return prepare_step(_DATA, "evaluation", recipe.evaluation, SAMPLES)


def screening_check(recipe: Recipe, variant: VariantConfig, model: str) -> Step:
    """The evaluation of one form of a variant, which the step `model` makes, on these samples."""
    return replace(check_step(recipe, variant, "screen", model, _DATA), fails=False)


def race_step(recipe: Recipe, number: int, forms: Mapping[str, str]) -> Step:
    """A short measuring of `forms`, the baseline's among them: it ends when each is known to be faster or slower.

    It is run at the batch size that decides: the first for latency (and for size, where speed comes second), the
    largest for throughput.
    """
    sizes = recipe.profile.batch_sizes
    options = ProfileOptions(
        baseline=BASELINE,
        batch_sizes=(max(sizes) if recipe.objective == "throughput" else sizes[0],),
        budget_s=_SECONDS_A_FORM * len(forms),
        threads=recipe.profile.threads,
        until="decided",
    )
    return replace(profile_step(recipe, forms), name=f"race {number}", options=options, fails=False)


@dataclass(frozen=True)
class Entrant:
    """A variant in a measurement, by the form it took, at one batch size; `baseline` is the baseline's form there."""

    measurement: Artifact
    form: str
    baseline: str
    batch_size: int

    @property
    def figures(self) -> dict[str, Any]:
        """Its figures, as a measurement has them, the speed-up that over this form of the baseline."""
        race = faster(self.measurement, self.form, self.baseline, self.batch_size)
        speedup = {"value": race.ratio, "low": race.low, "high": race.high}
        return {**self.measurement.metadata["variants"][self.form], "speedups": {str(self.batch_size): speedup}}

    @property
    def of_baseline(self) -> Entrant:
        """The baseline in the same measurement."""
        return replace(self, form=self.baseline)

    @property
    def samples_per_s(self) -> float:
        """Its throughput."""
        per_s: float = self.figures["batches"][str(self.batch_size)]["throughput_per_s"]
        return per_s


def entrant(measurement: Artifact, forms: Sequence[str], baseline: Sequence[str]) -> Entrant | str:
    """How a variant with these forms (the unfused one first) went through a race; or why it could not be measured."""
    size: int = measurement.metadata["batch_sizes"][0]
    own, other = (_faster_form(measurement, names, size) for names in (forms, baseline))
    if own is not None and other is not None:
        return Entrant(measurement, own, other, size)
    return str(measurement.metadata["variants"][(forms if own is None else baseline)[0]]["error"])


def race_interval(one: Entrant, other: Entrant) -> tuple[float, float] | None:
    """The 95 % interval of how many times faster `one` is; from two measurements, by way of the baseline. None: too few
    turns for one."""
    if one.measurement is other.measurement:
        return _interval(one.measurement, one.form, other.form, one.batch_size)
    a, b = (_interval(it.measurement, it.form, it.baseline, it.batch_size) for it in (one, other))
    return None if a is None or b is None else (a[0] / b[1], a[1] / b[0])


def _interval(measurement: Artifact, form: str, over: str, batch_size: int) -> tuple[float, float] | None:
    if form == over:
        return 1.0, 1.0
    race: Race = faster(measurement, form, over, batch_size)
    return None if race.low is None or race.high is None else (race.low, race.high)


def _faster_form(measurement: Artifact, forms: Sequence[str], batch_size: int) -> str | None:
    """The first, unless a later one is known to be faster. None if none could be measured."""
    alive = [form for form in forms if measurement.metadata["variants"][form]["error"] is None]
    best = alive[0] if alive else None
    for form in alive[1:]:
        race = faster(measurement, form, str(best), batch_size)
        if race.decided and race.ratio > 1:
            best = form
    return best
