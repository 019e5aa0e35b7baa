"""Without truth: how near a variant's answers stay to the baseline's, as a bound on the mean over all samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.check.per_sample import ERRORS, PerSample
from stages.gate.judgement import FidelityFigures, Gate, Limits, advice, more_than, verdict_on
from stages.gate.resampling import FEWEST_UNBOUNDED, mean_bounds, samples_to_decide

__all__ = ["fidelity_figures", "fidelity_gate"]

Floats = NDArray[np.float64]


def _error(name: str, column: Floats) -> tuple[Floats, float]:
    """A column as an error (0 = like the baseline), and the error of a sample that was not seen.

    An answer agrees or not, so the worst is known: 1. How far an embedding can stray is not; twice the worst that was
    seen keeps the promised error for distributions as skewed as a lognormal of sigma 1.5, from 50 samples on (see the
    gate's tests), which nothing short of hundreds of samples would if a cosine of -1 were held possible.
    """
    if name == "agreement":
        return 1 - column, 1.0
    error = 1 - column if name == "cosine" else column
    return error, 2 * float(error.max(initial=0.0))


def _as_figure(name: str, error: float) -> float:
    return error if name in ERRORS else 1 - error


def fidelity_figures(name: str, column: Floats, limits: Limits) -> FidelityFigures:
    error, worst = _error(name, column)
    tail = (1 - limits.confidence) / 2
    bounds = mean_bounds(error, 0.0, worst, (tail, 1 - tail), limits.resamples, limits.seed)
    low, high = sorted(_as_figure(name, bound) for bound in bounds)
    return FidelityFigures(value=float(column.mean()), low=low, high=high)


_LIMIT_OF = {"cosine": "min_cosine", "agreement": "min_agreement", "relative_error": "max_relative_error"}
_SAID = {"cosine": "mean cosine", "agreement": "agreement", "relative_error": "mean relative error"}


def fidelity_gate(name: str, variant: PerSample, limits: Limits) -> tuple[Gate, int | None]:
    """The mean of a column against its limit, judged as an error, so that small is good for all of them."""
    limit = float(getattr(limits, _LIMIT_OF[name]))
    error, worst = _error(name, variant.fidelity[name])
    count, estimate = len(error), float(error.mean())
    tail = 1 - limits.confidence
    lower, upper = mean_bounds(error, 0.0, worst, (tail, 1 - tail), limits.resamples, limits.seed)
    most = limit if name in ERRORS else 1 - limit
    verdict = verdict_on(lower, upper, most)
    said = f"{_SAID[name]} {_as_figure(name, estimate):.4f}"
    value, figure = _as_figure(name, estimate), _as_figure(name, lower if verdict == "fail" else upper)
    if verdict == "fail":
        reason = f"{said} is beyond the limit {limit:g} (at best {figure:.4f} with {limits.confidence:.0%} confidence)"
        return Gate.of(name, verdict, value, figure, limit, reason), None
    if count < FEWEST_UNBOUNDED and name != "agreement":
        reason = f"{said} on {count} samples; it takes {FEWEST_UNBOUNDED} to say how far others may stray"
        return Gate.of(name, "inconclusive", value, figure, limit, reason), FEWEST_UNBOUNDED
    if verdict == "pass":
        reason = f"{said}, at worst {figure:.4f} with {limits.confidence:.0%} confidence (limit {limit:g})"
        return Gate.of(name, verdict, value, figure, limit, reason), None
    needed = samples_to_decide(abs(most - estimate), float(error.std()), abs(worst - estimate), limits.confidence)
    beyond = "; the estimate itself is beyond the limit" if estimate > most else ""
    reason = (
        f"{said}, but {count} samples leave {figure:.4f} possible (limit {limit:g}){beyond}"
        f"{advice(needed, count, 'samples')}"
    )
    return Gate.of(name, verdict, value, figure, limit, reason), more_than(needed, count)
