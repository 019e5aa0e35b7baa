"""Fallback: where a quantised variant fails its accuracy gate, groups of its operators return to higher precision.

The groups are ranked once by what quantising each alone does to the outputs (`stages.sensitivity`). How many of them
must return, the most sensitive first, is then found by bisection (`pipeline.bisection`): evaluations grow with the
logarithm of the groups. Every evaluation is two ordinary steps of the runner, so that a search that was interrupted
goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.bisection import SUFFIX, Bisection, Search
from pipeline.figures import times_text
from pipeline.flow import Flow, flow_of
from pipeline.outcome import Outcome, accuracy_limits, deciding_batch
from pipeline.recipe import Recipe
from pipeline.result import KeptGroup, VariantResult
from pipeline.runner import Chosen, Runner
from stages.check.per_sample import ERRORS, PerSample
from stages.gate import judge
from stages.select import Objective, select
from stages.variant import Variant

__all__ = ["Search", "can_fall_back", "fall_back", "tell"]

_MEASUREMENT = "profile fallback"


def can_fall_back(variant: Variant) -> bool:
    """Whether something of a variant could return to higher precision, and has not yet."""
    return variant.can_fall_back and not variant.name.endswith(SUFFIX)


def fall_back(recipe: Recipe, runner: Runner, outcome: Outcome) -> list[Search]:
    """Search for every quantised variant of `recipe` that accuracy keeps from passing, and measure what was found.

    Left alone are variants that nothing could bring through, because the data cannot decide it; where speed is the
    objective those that are no faster than the baseline, as higher precision makes no variant faster; and the recipe's
    own `+fallback` variants. `recipe.fallback_budget` ends a search between two evaluations; the fewest groups that
    passed by then count. Afterwards the runner has artifact, evaluation and choice of each found variant under its
    name. A step that fails is told, not raised.
    """
    if not recipe.fallback:
        return []
    flow = flow_of(recipe)
    rows = {row.name: row for row in outcome.rows}
    hopeful = [variant for variant in flow.variants(recipe) if _hopeful(recipe, runner, variant, rows)]
    searches = [Bisection(recipe, runner, variant).run() for variant in hopeful]
    if found := [search for search in searches if search.found]:
        best = select(outcome.candidates, recipe.objective)
        _measure(recipe, flow, runner, found, None if best is None or best.baseline else best.name)
    return searches


def tell(searches: Sequence[Search], rows: Sequence[VariantResult], objective: Objective) -> list[str]:
    """Note in the variants' rows what is quantised in them, and say in words how each search ended."""
    said = []
    by_name = {row.name: row for row in rows}
    for search in searches:
        told = search.told
        if told.sensitivity:
            failed = by_name[told.variant]
            failed.operators = search.operators
            failed.quantised_operators = sum(len(group.operators) for group in told.sensitivity)
        if search.found is None:
            said.append(f"no form of {told.variant} was brought through its gate: {told.reason}")
            continue
        row = by_name[search.found.name]
        row.kept = [KeptGroup(name=group.name, operators=group.operators) for group in told.sensitivity if group.kept]
        row.operators = search.operators
        row.quantised_operators = sum(len(group.operators) for group in told.sensitivity if not group.kept)
        if row.verdict == "pass" and not _gains(row, objective, surely=True):
            told.reason += "; it is not known to be faster than the baseline: the speed gain is gone"
        said.append(f"{row.name} is {told.variant} with {told.reason}")
        batch = deciding_batch(row, objective)
        if batch is not None and batch.beside is not None:
            times = times_text(batch.beside.value)
            said.append(f"{row.name} was measured after the others, beside {row.beside}: {times} as fast as that")
    return said


def _hopeful(recipe: Recipe, runner: Runner, variant: Variant, rows: Mapping[str, VariantResult]) -> bool:
    row = rows[variant.name]
    if not can_fall_back(variant) or variant.name + SUFFIX in rows or row.verdict not in ("fail", "inconclusive"):
        return False
    return _gains(row, recipe.objective) and _short_of_accuracy(recipe, runner, variant)


def _gains(row: VariantResult, objective: Objective, *, surely: bool = False) -> bool:
    """Whether a variant is faster than the baseline where that counts; `surely`: with its whole interval."""
    if objective == "size":
        return True
    batch = deciding_batch(row, objective)
    if batch is None or batch.speedup is None:
        return False
    return ((batch.speedup.low or 0.0) if surely else batch.speedup.value) > 1


def _short_of_accuracy(recipe: Recipe, runner: Runner, variant: Variant) -> bool:
    """Whether its answers fail the gate, and the baseline's own answers in their place would pass."""
    limits = accuracy_limits(recipe)
    given = PerSample.of(runner.artifacts[f"check {variant.name}"])
    before = PerSample.of(runner.artifacts[f"check {flow_of(recipe).baseline}"])
    perfect = replace(
        given,
        fidelity={name: np.full_like(column, name not in ERRORS) for name, column in given.fidelity.items()},
        statistics=before.statistics,
    )
    return judge(given, before, limits).verdict != "pass" and judge(perfect, before, limits).verdict == "pass"


def _measure(recipe: Recipe, flow: Flow, runner: Runner, found: Sequence[Search], best: str | None) -> None:
    """Measure what was found beside what it came of, the baseline, and the `best` of the others that passed.

    Each form has as much time as before.
    """
    names = [flow.baseline] if best is None else [flow.baseline, best]
    for search in found:
        assert search.found is not None
        names += [search.variant.name, search.found.name]
        runner.choices[search.found.name] = Chosen(search.found.name, None, _MEASUREMENT, best)
        runner.run(flow.suites(recipe, search.found))
    share = min(1.0, len(names) / len(runner.artifacts["profile"].metadata["names"]))
    step = flow.profile(recipe, {name: name for name in names})
    options = step.options.model_copy(update={"budget_s": recipe.profile.budget * share})
    runner.run([replace(step, name=_MEASUREMENT, options=options, fails=False, optional=frozenset())])
