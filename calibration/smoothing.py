"""SmoothQuant: move what is hard to quantise from activations, where few channels are large, to weights.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
(arXiv:2211.10438): (X / s) · (s · W) = X · W with s_j = max|X_j|^a / max|W_j|^(1-a).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.ranges import activation_range, quantise_linear
from calibration.statistics import ActivationStatistics

__all__ = ["STRENGTHS", "best_smoothing", "smoothing"]

STRENGTHS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.95)
"""The strengths that `best_smoothing` tries."""

_WORTH_HAVING, _NEGLIGIBLE = 0.8, 5e-5
"""Smoothing costs an operator: it must take away at least a fifth of the error, and of an error (noise power over
signal power) that matters."""

_SMALLEST = 1e-5


def smoothing(
    statistics: ActivationStatistics, weights: Sequence[NDArray[np.float32]], strength: float
) -> NDArray[np.float32]:
    """[C] divisors for the channels of an activation that all of `weights` ([C, out] each) are multiplied with.

    A channel that is always nearly 0 is left as it is.
    """
    largest = np.maximum(np.abs(statistics.low), np.abs(statistics.high))
    heaviest = np.maximum.reduce([np.abs(weight).max(axis=1) for weight in weights])
    scale = np.maximum(largest, _SMALLEST) ** strength / np.maximum(heaviest, _SMALLEST) ** (1 - strength)
    alive = (largest > _SMALLEST) & (heaviest > _SMALLEST)
    return np.where(alive, np.maximum(scale, _SMALLEST), 1.0).astype(np.float32)


def best_smoothing(
    statistics: ActivationStatistics, weights: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32] | None:
    """The smoothing whose quantised products are nearest to the true ones on the vectors that were kept, or None if
    none is clearly nearer than doing without. Activations cover their whole range here."""
    plain = _error(statistics, weights, None)
    if plain < _NEGLIGIBLE:
        return None
    candidates = [smoothing(statistics, weights, strength) for strength in STRENGTHS]
    errors = [_error(statistics, weights, candidate) for candidate in candidates]
    best = int(np.argmin(errors))
    return candidates[best] if errors[best] < _WORTH_HAVING * plain else None


def _error(
    statistics: ActivationStatistics,
    weights: Sequence[NDArray[np.float32]],
    divisor: NDArray[np.float32] | None,
) -> float:
    """The squared error of all products together, over the squared products."""
    rows = statistics.rows
    low, high = activation_range(statistics, divisor=divisor)
    scaled = rows if divisor is None else rows / divisor
    quantised = quantise_linear(scaled, low, high)
    error = power = 0.0
    for weight in weights:
        true = rows @ weight
        rounded = _per_column(weight if divisor is None else weight * divisor[:, None])
        error += float(np.square(quantised @ rounded - true).sum())
        power += float(np.square(true).sum())
    return error / max(power, 1e-30)


def _per_column(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to ±127 steps of a size for each column."""
    step = np.maximum(np.abs(weight).max(axis=0), 1e-30) / 127
    rounded: NDArray[np.float32] = np.rint(weight / step) * step
    return rounded
