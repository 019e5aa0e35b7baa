"""The search of `variants: auto`: a look at every candidate, and the full measuring for those that are worth it.

Cheapest evidence first. Every candidate is made and checked on few samples. Of those that are the same graph with other
numbers the nearest to the baseline stays; what fails for certain is dropped, unless fallback could save it and it is
faster than all others. What is left races beside the baseline, and what another one beats (`stages.pareto`) is dropped,
too. All this goes step by step through the runner: what was done once is taken from the store, and a search that ran
out of time goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.outcome import accuracy_limits, limits_of
from pipeline.plan import forms_of, measured_forms, variants_of
from pipeline.recipe import Recipe
from pipeline.runner import Runner
from pipeline.screen import Screen
from pipeline.screening import entrant, race_step, screening_check, screening_data
from pipeline.searched import CandidateResult
from pipeline.sift import TOO_LATE, Tried, drop_beaten, drop_failing, drop_hopeless, drop_late, drop_twins
from stages.artifact import Artifact
from stages.check.per_sample import PerSample
from stages.gate import judge
from stages.gate.figures import figure_gates
from stages.model import ASSETS
from stages.pareto import answer_errors

__all__ = ["Survey", "survey"]

_FULL = 0.25
"""The full measuring of speed may take so much of the time for all, if the recipe grants it that much."""
_LOOKING = 0.6
"""Looking at candidates may take so much of what is left; the rest is for races."""
_TOGETHER = 10
"""Forms in one race. Each has a process with a session of its own: this bounds the memory."""


@dataclass(frozen=True)
class Survey:
    """What a search found: the recipe with those `variants` that are worth measuring in full, and every candidate."""

    recipe: Recipe
    candidates: list[CandidateResult]


def survey(recipe: Recipe, runner: Runner, screen: Screen, deadline: float) -> Survey:
    """Find out which variants are worth measuring in full. The groundwork of the recipe must have been done.

    `deadline` (`time.monotonic()`) is the end of the whole search, the full measuring and its checks included. It is
    obeyed between steps; what was not tried by then is said to be so. Raises what `Runner.run` raises.
    """
    profile = recipe.profile.model_copy(update={"budget": min(recipe.profile.budget, _FULL * recipe.search_budget)})
    kept, candidates = _Search(recipe, runner, deadline - profile.budget).run()
    names = ", ".join(tried.config.name for tried in kept) or "none"
    screen.say(f"  {len(kept)} of {len(candidates)} candidates are measured in full: {names}")
    variants = tuple(tried.config for tried in kept)
    return Survey(recipe.model_copy(update={"variants": variants, "profile": profile}), candidates)


class _Search:
    def __init__(self, recipe: Recipe, runner: Runner, end: float) -> None:
        self._recipe = recipe
        self._runner = runner
        self._end = end
        baseline, *others = variants_of(recipe)
        self._baseline = Tried.of(baseline)
        self._before: PerSample | None = None
        self._tried = [Tried.of(config) for config in others]

    def run(self) -> tuple[list[Tried], list[CandidateResult]]:
        """Those that are worth measuring in full, and what there is to tell of all."""
        now = time.monotonic()
        if now < self._end:
            self._begin()
        self._look(now + _LOOKING * (self._end - now))
        drop_twins(self._alive())
        drop_failing(self._alive(), self._recipe.fallback)
        self._race()
        drop_beaten(self._alive(), self._baseline.told.size_bytes or 0)
        drop_hopeless(self._alive(), self._recipe.objective)
        samples: int = self._runner.artifacts["prepare"].metadata["samples"]
        drop_late(self._alive(), self._recipe.objective, samples, self._end - time.monotonic())
        for tried in self._alive():
            tried.told.reached = "full"
        return self._alive(), [tried.told for tried in self._tried]

    def _alive(self) -> list[Tried]:
        """Those that nothing speaks against so far."""
        return [tried for tried in self._tried if tried.told.reason is None]

    def _begin(self) -> None:
        self._make(self._baseline)
        self._runner.run([screening_data(self._recipe)])
        self._before = self._evaluated(self._baseline)

    def _look(self, until: float) -> None:
        """Make every candidate and check it on few samples."""
        for tried in self._tried:
            if time.monotonic() >= until:
                tried.told.reason = TOO_LATE
                continue
            self._make(tried)
            # Few samples can be too few for a metric: then nothing is known of any candidate but its speed.
            if tried.told.reason is None and self._before is not None:
                self._check(tried, self._before)

    def _make(self, tried: Tried) -> None:
        steps, choice = forms_of(self._recipe, tried.config)
        tried.told.reached = "make"
        self._runner.run(steps)
        made = {name: step for name, step in measured_forms(choice) if step in self._runner.artifacts}
        if not made:
            tried.told.reason = self._runner.failures[choice.unfused].reason
            return
        # Without measuring the fused form is taken, wherever fusion gave one.
        tried.forms = made if self._recipe.fuse == "measure" else {tried.config.name: list(made.values())[-1]}
        tried.model = self._runner.artifacts[next(iter(tried.forms.values()))]
        tried.told.size_bytes = _size_bytes(tried.model)
        tried.told.reason = self._broken_limits({"size_bytes": tried.told.size_bytes}, 1)

    def _evaluated(self, tried: Tried) -> PerSample | None:
        step = screening_check(self._recipe, tried.config, next(iter(tried.forms.values())))
        self._runner.run([step])
        if step.name in self._runner.artifacts:
            return PerSample.of(self._runner.artifacts[step.name])
        tried.told.reason = self._runner.failures[step.name].reason
        return None

    def _check(self, tried: Tried, before: PerSample) -> None:
        told = tried.told
        told.reached = "check"
        results = self._evaluated(tried)
        if results is None:
            return
        tried.errors = answer_errors(results)
        judgement = judge(results, before, accuracy_limits(self._recipe))
        told.samples = results.samples
        told.fidelity = {name: figure.value for name, figure in judgement.fidelity.items()}
        told.drop = None if judgement.metric is None else judgement.metric.drop
        if judgement.verdict == "fail":
            tried.failing = f"on {results.samples} samples: {judgement.reason}"

    def _race(self) -> None:
        """Measure those that are left beside the baseline, as many together as there may be, while there is time."""
        for number, group in enumerate(self._groups(), start=1):
            if time.monotonic() >= self._end:
                return
            forms = {name: step for tried in (self._baseline, *group) for name, step in tried.forms.items()}
            step = race_step(self._recipe, number, forms)
            self._runner.run([step])
            for tried in group:
                tried.told.reached = "race"
                if step.name in self._runner.artifacts:
                    self._arrive(tried, self._runner.artifacts[step.name])
                else:
                    tried.told.reason = f"it could not be measured: {self._runner.failures[step.name].reason}"

    def _groups(self) -> Iterator[list[Tried]]:
        group: list[Tried] = []
        for tried in self._alive():
            if group and sum(len(one.forms) for one in (self._baseline, *group, tried)) > _TOGETHER:
                yield group
                group = []
            group.append(tried)
        if group:
            yield group

    def _arrive(self, tried: Tried, measurement: Artifact) -> None:
        went = entrant(measurement, list(tried.forms), list(self._baseline.forms))
        told = tried.told
        if isinstance(went, str):
            told.reason = f"it could not be measured: {went}"
            return
        tried.entrant = went
        figures = went.figures
        ((size, speedup),) = figures["speedups"].items()
        told.speedup, told.speedup_low, told.speedup_high = speedup["value"], speedup["low"], speedup["high"]
        told.reason = self._broken_limits(figures, int(size))

    def _broken_limits(self, figures: Mapping[str, Any], batch_size: int) -> str | None:
        """The limits on speed and size that these figures break for certain, in words."""
        gates = figure_gates(figures, limits_of(self._recipe, batch_size))
        return "; ".join(gate.reason for gate in gates if gate.verdict == "fail") or None


def _size_bytes(model: Artifact) -> int:
    return sum((model.path / name).stat().st_size for name in model.files if not name.startswith(f"{ASSETS}/"))
