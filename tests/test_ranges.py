"""Observers and smoothing on activations whose best range is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.ranges import activation_range, quantise_linear
from calibration.smoothing import best_smoothing, smoothing
from calibration.statistics import ActivationStatistics, Collector

RANDOM = np.random.default_rng(0)


def collected(*batches: NDArray[Any]) -> ActivationStatistics:
    collector = Collector()
    for batch in batches:
        collector.add("x", batch.astype(np.float32))
    return collector.finish()["x"]


def with_one_outlier() -> ActivationStatistics:
    """100,000 standard normal values, and one that is 200."""
    values = RANDOM.standard_normal((500, 200))
    values[3, 5] = 200
    return collected(values)


def test_min_max_covers_every_value_and_zero() -> None:
    assert activation_range(collected(np.array([[1.0, 2], [4, 3]]))) == (0.0, 4.0)
    assert activation_range(collected(np.array([[-5.0, -2]]), np.array([[3.0, -1]]))) == (-5.0, 3.0)


def test_a_moving_average_forgets_the_first_batch() -> None:
    batches = [np.array([[-100.0, 100.0]]), *[np.array([[-1.0, 1.0]])] * 60]
    low, high = activation_range(collected(*batches), "moving-average")
    assert -1.5 < low < -1
    assert 1 < high < 1.5


def test_a_percentile_leaves_out_the_rare() -> None:
    low, high = activation_range(with_one_outlier(), "percentile", percentile=99.9)
    assert 2.5 < high < 4
    assert -4 < low < -2.5


@pytest.mark.parametrize("observer", ["mse", "entropy"])
def test_a_searched_range_is_narrower_where_an_outlier_costs_the_others_more(observer: Any) -> None:
    _, high = activation_range(with_one_outlier(), observer)
    assert high < 190


def test_mse_finds_the_range_of_least_error() -> None:
    statistics = with_one_outlier()

    def error(ends: tuple[float, float]) -> float:
        return float(np.mean((quantise_linear(statistics.rows, *ends) - statistics.rows) ** 2))

    found = error(activation_range(statistics, "mse"))
    assert found < 0.9 * error(activation_range(statistics))
    assert found <= error(activation_range(statistics, "percentile"))


@pytest.mark.parametrize("observer", ["min-max", "moving-average", "mse", "entropy", "percentile"])
def test_values_that_are_all_zero_have_a_range(observer: Any) -> None:
    statistics = collected(np.zeros((20, 3)))
    low, high = activation_range(statistics, observer)
    assert (low, high) == (0.0, 0.0)
    assert (quantise_linear(statistics.rows, low, high) == 0).all()


def test_rounding_keeps_zero_and_stays_within_half_a_step() -> None:
    values = RANDOM.uniform(-1, 3, 1000).astype(np.float32)
    rounded = quantise_linear(values, -1.0, 3.0)
    step = 4 / 255
    assert np.abs(rounded - values).max() <= step / 2 * 1.01 + step / 2  # zero is on a level: the ends give way
    assert quantise_linear(np.zeros(1, np.float32), -1.0, 3.0)[0] == 0


def test_a_divisor_is_applied_to_each_channel() -> None:
    statistics = collected(np.array([[100.0, 1.0], [-50.0, 2.0]]))
    assert activation_range(statistics, divisor=np.array([100, 1], np.float32)) == (-0.5, 2.0)


def test_smoothing_balances_an_activation_with_its_weights() -> None:
    statistics = collected(np.array([[100.0, 1.0]]))
    weights = [np.array([[1.0, 1.0], [4.0, 1.0]], np.float32)]
    assert np.allclose(smoothing(statistics, weights, 0.5), [10, 0.5])


def test_a_dead_channel_is_left_as_it_is() -> None:
    statistics = collected(np.array([[0.0, 1.0]]))
    assert smoothing(statistics, [np.ones((2, 2), np.float32)], 0.5)[0] == 1


def test_the_best_smoothing_takes_an_outlier_away() -> None:
    rows = RANDOM.standard_normal((400, 32))
    rows[:, 3] *= 100
    statistics = collected(rows)
    weights = [RANDOM.standard_normal((32, 16)).astype(np.float32)]
    weights[0][3] /= 100
    divisor = best_smoothing(statistics, weights)
    assert divisor is not None
    assert divisor[3] > 10 * np.median(divisor)


def test_what_needs_no_smoothing_gets_none() -> None:
    statistics = collected(RANDOM.uniform(-1, 1, (400, 32)))
    assert best_smoothing(statistics, [RANDOM.uniform(-1, 1, (32, 16)).astype(np.float32)]) is None
