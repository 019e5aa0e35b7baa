"""The Pareto front of a finished run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.flow import flow_of
from pipeline.recipe import Recipe
from pipeline.result import VariantResult
from pipeline.runner import Runner
from pipeline.screening import Entrant, race_interval
from stages.check.per_sample import PerSample
from stages.pareto import Standing, answer_errors, beaten

__all__ = ["front"]


def front(recipe: Recipe, runner: Runner, rows: Sequence[VariantResult]) -> list[str]:
    """The variants that passed and that no other one that passed beats in speed, size and nearness to the baseline
    together (`stages.pareto`), by their races and their answers to all samples. In the order of `rows`."""
    passed = [row for row in rows if row.verdict == "pass"]
    entrants = {row.name: _entrant(recipe, runner, row.name) for row in passed}
    standings = [_standing(runner, row) for row in passed]
    lost = beaten(standings, lambda one, other: race_interval(entrants[one], entrants[other]))
    return [row.name for row in passed if row.name not in lost]


def _entrant(recipe: Recipe, runner: Runner, name: str) -> Entrant:
    first = flow_of(recipe).baseline
    chosen, baseline = runner.choices[name], runner.choices[first]
    measurement = runner.artifacts[chosen.measurement]
    sizes = measurement.metadata["batch_sizes"]
    # A later measurement has the chosen forms only, under the variants' own names.
    over = baseline.form if chosen.measurement == baseline.measurement else first
    return Entrant(measurement, chosen.form, over, max(sizes) if recipe.objective == "throughput" else sizes[0])


def _standing(runner: Runner, row: VariantResult) -> Standing:
    results = PerSample.of(runner.artifacts[f"check {row.name}"])
    errors = np.zeros(results.samples) if row.baseline else answer_errors(results)
    return Standing(row.name, row.size_bytes, errors)
