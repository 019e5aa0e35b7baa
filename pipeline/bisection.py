"""The search for the fewest groups of operators that must return to higher precision in one variant."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.figures import seconds_text
from pipeline.flow import flow_of
from pipeline.outcome import accuracy_limits
from pipeline.recipe import Recipe
from pipeline.result import FallbackResult, FallbackTrial, GroupEffect
from pipeline.runner import Failure, Runner
from stages.artifact import Artifact
from stages.gate import judge
from stages.variant import Variant

__all__ = ["SUFFIX", "Bisection", "Search", "fewest"]

SUFFIX = "+fallback"
"""What the name of a variant that fallback found ends with."""


@dataclass(frozen=True)
class Search:
    """What came of a search: `found` is the variant that passed, None if none did. `operators`: how many operators with
    constant weights the graph has."""

    variant: Variant
    found: Variant | None
    told: FallbackResult
    operators: int = 0


def fewest(count: int, passes: Callable[[int], bool], out_of_time: Callable[[], bool]) -> tuple[int, bool]:
    """The fewest k, 0 < k < `count`, that `passes`, and whether time ended before that was known; k = 0 if none does.

    k = 0 is known to fail, k = `count` is of no use. Between a k that failed and one that passed the middle is tried
    next: at most log2(`count`) evaluations, rounded up. Where passing is not monotonic in k, it is some k that passed.
    """
    failing, passing = 0, count
    while passing - failing > 1 and not out_of_time():
        middle = (failing + passing) // 2
        if passes(middle):
            passing = middle
        else:
            failing = middle
    return passing if passing < count else 0, passing - failing > 1


class Bisection:
    """The search for a variant whose artifact and evaluation the runner has. It has failed with no group returned; with
    all of them nothing would be quantised."""

    def __init__(self, recipe: Recipe, runner: Runner, variant: Variant) -> None:
        self._recipe = recipe
        self._flow = flow_of(recipe)
        self._runner = runner
        self._variant = variant
        self._name = variant.name + SUFFIX
        self._make = next(
            step
            for step in self._flow.make(recipe, variant)
            if runner.artifacts.get(step.name) is runner.artifacts[variant.name]
        )
        self._told = FallbackResult(variant=variant.name, reason="")
        self._end = time.monotonic() + recipe.fallback_budget

    def run(self) -> Search:
        """Afterwards the runner has artifact and evaluation of the found variant under its name."""
        told = self._told
        if self._out_of_time():
            told.reason = f"{self._time_up()} before its operators were ranked"
            return Search(self._variant, None, told)
        ranking = self._rank()
        if isinstance(ranking, Failure):
            told.reason = f"its operators could not be ranked: {ranking.reason}"
            return Search(self._variant, None, told)
        told.samples = ranking.metadata["samples"]
        told.sensitivity = [GroupEffect.model_validate(group) for group in ranking.metadata["groups"]]
        operators = sum(len(group.operators) for group in told.sensitivity) + len(ranking.metadata["unquantised"])
        found, undecided = fewest(len(told.sensitivity), self._passes, self._out_of_time)
        for group in told.sensitivity[:found]:
            group.kept = True
        told.reason = self._ended(found, undecided)
        if not found:
            return Search(self._variant, None, told, operators)
        config = self._config(found)
        told.found = config.name
        self._runner.give(config.name, self._runner.artifacts[f"make {self._name} {found}"])
        self._runner.give(f"check {config.name}", self._runner.artifacts[f"check {self._name} {found}"])
        return Search(self._variant, config, told, operators)

    def _out_of_time(self) -> bool:
        return time.monotonic() >= self._end

    def _rank(self) -> Artifact | Failure:
        data = "prepare calibration" if "prepare calibration" in self._runner.artifacts else "prepare"
        step = self._flow.rank(self._recipe, self._variant, self._make, data)
        self._runner.run([step])
        return self._runner.failures.get(step.name) or self._runner.artifacts[step.name]

    def _config(self, count: int) -> Variant:
        returned = [name for group in self._told.sensitivity[:count] for name in group.operators]
        return self._variant.with_higher_precision(returned).model_copy(update={"name": self._name})

    def _passes(self, count: int) -> bool:
        config = self._config(count)
        make = replace(self._make, name=f"make {self._name} {count}", options=config, unlike=None)
        check = replace(self._flow.check(self._recipe, config, make.name), name=f"check {self._name} {count}")
        self._runner.run([make, check])
        operators = sum(len(group.operators) for group in self._told.sensitivity[:count])
        trial = FallbackTrial(groups=count, operators=operators, verdict="error")
        if check.name in self._runner.failures:
            trial.reason = self._runner.failures[check.name].reason
        else:
            evaluation, before = (self._runner.artifacts[name] for name in (check.name, f"check {self._flow.baseline}"))
            judgement = judge(evaluation, before, accuracy_limits(self._recipe))
            trial.verdict, trial.reason = judgement.verdict, judgement.reason
        self._told.trials.append(trial)
        return trial.verdict == "pass"

    def _ended(self, found: int, undecided: bool) -> str:
        """In words."""
        groups, trials = self._told.sensitivity, len(self._told.trials)
        count = f"{trials} evaluation{'s' if trials != 1 else ''}"
        if found:
            operators = sum(len(group.operators) for group in groups)
            returned = sum(len(group.operators) for group in groups[:found])
            said = f"{found} of {len(groups)} groups ({returned} of {operators} operators) in higher precision"
            known = f"; {self._time_up()} before it was known whether fewer will do" if undecided else ""
            return f"{said}, found in {count}{known}"
        if undecided:
            return f"{self._time_up()} after {count}, none of which passed"
        if len(groups) == 1:
            return "its operators are all in one group: to return it would leave nothing quantised"
        return f"even with only the least sensitive group quantised it does not pass ({count})"

    def _time_up(self) -> str:
        return f"the time for it ({seconds_text(self._recipe.fallback_budget)}) ended"
