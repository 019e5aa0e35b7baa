"""The gate: what passes truly keeps its limits, whatever was not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stages.check import PerSample
from stages.errors import InputError
from stages.gate import Judgement, Limits, judge
from stages.gate.resampling import mean_bounds, resampled_sums

REPETITIONS = 1000
# 5 % of 1,000, and three standard deviations of a count of 50 for the draw itself.
MOST_WRONG = 50 + 3 * 6.9


def scored(right: Any, **about: Any) -> PerSample:
    """An evaluation by a metric that is the mean of one score a sample."""
    score = np.asarray(right, dtype=np.float64)
    statistics = np.stack([score, np.ones_like(score)], axis=1)
    return PerSample(len(score), metric="accuracy", form="ratio", statistics=statistics, **about)


def read(losses: Any, predictions: Any = 100, **about: Any) -> PerSample:
    """An evaluation by perplexity: the mean loss of each window, in nats, over its `predictions`."""
    loss = np.asarray(losses, dtype=np.float64)
    counts = np.broadcast_to(np.asarray(predictions, dtype=np.float64), loss.shape)
    statistics = np.stack([loss * counts, counts], axis=1)
    about = {"metric": "perplexity", "form": "perplexity", "units": "windows", **about}
    return PerSample(len(loss), statistics=statistics, **about)


def compared(name: str, column: Any, **about: Any) -> PerSample:
    """An evaluation without truth."""
    values = np.asarray(column, dtype=np.float64)
    return PerSample(len(values), fidelity={name: values}, decisive=(name,), **about)


def passed(verdicts: Callable[[np.random.Generator], Judgement]) -> int:
    random = np.random.default_rng(0)
    return sum(verdicts(random).verdict == "pass" for _ in range(REPETITIONS))


QUICK = Limits(resamples=200)


@pytest.mark.parametrize("samples", [100, 600])
@pytest.mark.parametrize("churn", [0.0, 0.02])
def test_a_variant_that_truly_loses_more_than_the_limit_passes_in_at_most_5_percent(samples: int, churn: float) -> None:
    """Accuracy 0.9 that drops by 1 % and a hair; `churn` samples more are lost, and as many won."""

    def repetition(random: np.random.Generator) -> Judgement:
        draw = random.random(samples)
        before = draw < 0.9
        lost, won = 0.0091 + churn, churn
        after = (draw >= lost) & (draw < 0.9 + won)
        return judge(scored(after), scored(before), QUICK)

    assert passed(repetition) <= MOST_WRONG


def test_a_variant_that_loses_nothing_but_a_few_samples_either_way_does_pass() -> None:
    """The promise above is not kept by refusing everything."""

    def repetition(random: np.random.Generator) -> Judgement:
        draw = random.random(2000)
        return judge(scored((draw >= 0.002) & (draw < 0.902)), scored(draw < 0.9), QUICK)

    assert passed(repetition) >= 0.9 * REPETITIONS


@pytest.mark.parametrize("samples", [60, 200])
def test_a_macro_f1_that_truly_drops_too_much_passes_in_at_most_5_percent(samples: int) -> None:
    confusion = {"metric": "f1", "form": "macro_f1"}

    def counts(right: Any, given: Any) -> Any:
        one_hot = np.eye(3)
        hit = (right == given)[:, None]
        r, g = one_hot[right], one_hot[given]
        return np.concatenate([r * hit, g * ~hit, r * ~hit], axis=1)

    def repetition(random: np.random.Generator) -> Judgement:
        right = random.integers(0, 3, samples)
        before = np.where(random.random(samples) < 0.9, right, (right + 1) % 3)
        after = np.where(random.random(samples) < 0.02, (right + 1) % 3, before)  # drops by 2 % of what is right
        return judge(
            PerSample(samples, statistics=counts(right, after), **confusion),
            PerSample(samples, statistics=counts(right, before), **confusion),
            Limits(resamples=200, max_drop=0.0199),
        )

    assert passed(repetition) <= MOST_WRONG


@pytest.mark.parametrize("samples", [50, 300])
def test_a_classifier_that_agrees_too_seldom_passes_in_at_most_5_percent(samples: int) -> None:
    assert passed(lambda random: judge(
        compared("agreement", random.random(samples) < 0.9899), compared("agreement", []), QUICK
    )) <= MOST_WRONG  # fmt: skip


@pytest.mark.parametrize("samples", [50, 400])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.5])
def test_embeddings_that_stray_too_far_pass_in_at_most_5_percent(samples: int, sigma: float) -> None:
    """1 - cosine is lognormal, of mean 0.0101: many are near and some far off."""

    def repetition(random: np.random.Generator) -> Judgement:
        error = 0.0101 * random.lognormal(-(sigma**2) / 2, sigma, samples)
        return judge(compared("cosine", 1 - error), compared("cosine", []), QUICK)

    assert passed(repetition) <= MOST_WRONG


RISES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "most are small and some large": lambda random, windows: random.lognormal(-(1.5**2) / 2, 1.5, windows),
    "all alike": lambda random, windows: random.lognormal(-(0.3**2) / 2, 0.3, windows),
    "many are gains": lambda random, windows: random.normal(1, 5, windows),
    "either way far out": lambda random, windows: 1 + 3 * random.standard_t(3, windows),
}
"""How much more one window loses than another, with mean 1."""

TRULY_TOO_MUCH = np.log(1.0101)
"""Of the mean loss, in nats: perplexity rises by 1 % and a hair."""


@pytest.mark.parametrize("windows", [50, 200])
@pytest.mark.parametrize("rises", RISES.values(), ids=RISES)
def test_a_perplexity_that_truly_rises_too_much_passes_in_at_most_5_percent(windows: int, rises: Any) -> None:
    """The loss of a window is anywhere between 1 and 5 nats, and the windows differ in what is counted of them."""

    def repetition(random: np.random.Generator) -> Judgement:
        before, counted = random.uniform(1, 5, windows), random.choice([64, 128, 255], windows)
        after = before + TRULY_TOO_MUCH * rises(random, windows)
        return judge(read(after, counted), read(before, counted), QUICK)

    assert passed(repetition) <= MOST_WRONG


def test_a_perplexity_that_truly_rises_a_little_does_pass() -> None:
    """By 0.25 %, in windows that stray four times as far."""

    def repetition(random: np.random.Generator) -> Judgement:
        before = random.uniform(1, 5, 64)
        return judge(read(before + 0.0025 * random.normal(1, 4, 64)), read(before), QUICK)

    assert passed(repetition) >= 0.9 * REPETITIONS


def test_a_perplexity_that_truly_keeps_the_limit_fails_in_at_most_5_percent() -> None:
    def repetition(random: np.random.Generator) -> Judgement:
        before = random.uniform(1, 5, 50)
        after = before + np.log(1.0099) * random.normal(1, 3, 50)
        return judge(read(after), read(before), QUICK)

    random = np.random.default_rng(0)
    assert sum(repetition(random).verdict == "fail" for _ in range(REPETITIONS)) <= MOST_WRONG


def test_perplexity_is_worse_when_it_rises() -> None:
    random = np.random.default_rng(0)
    before = random.uniform(2, 4, 200)
    little = judge(read(before + random.normal(0.0015, 0.003, 200)), read(before))
    assert little.verdict == "pass"
    assert little.reason.startswith("perplexity rises by 0.1")
    assert "; a rise of 0.1" in little.reason
    assert little.reason.endswith("at most with 95% confidence (limit 1.00%)")
    assert little.metric is not None
    assert 0 < little.metric.drop_lower < little.metric.drop < little.metric.drop_upper < 0.01
    assert little.metric.low < little.metric.value < little.metric.high

    much = judge(read(before + 0.05), read(before))
    assert much.verdict == "fail"
    assert much.reason.startswith("perplexity rises by 5.13%; a rise of 4.")
    assert "at least with" in much.reason

    alike = judge(read(np.full(60, 2.05)), read(np.full(60, 2.0))).metric
    assert alike is not None
    assert alike.low < alike.value < alike.high

    gained = judge(read(before - 0.05), read(before))
    assert "at least with" in gained.reason
    assert gained.verdict == "pass"
    assert gained.reason.startswith("perplexity falls by 4.88%; a fall of 4.")

    unclear = judge(read(before + random.normal(0.009, 0.03, 200)), read(before))
    assert unclear.verdict == "inconclusive"
    assert "but 200 windows leave a rise of 1." in unclear.reason
    assert unclear.samples_needed is not None
    assert f"about {unclear.samples_needed:,} windows would decide" in unclear.reason


def test_few_windows_cannot_bound_what_others_lose() -> None:
    before = np.linspace(2, 4, 49)
    judged = judge(read(before), read(before))
    assert (judged.verdict, judged.samples_needed) == ("inconclusive", 50)
    assert "on 49 windows; it takes 50" in judged.reason
    assert judge(read(before + 1), read(before)).verdict == "fail"
    before = np.linspace(2, 4, 50)
    assert judge(read(before), read(before)).verdict == "pass"


def test_a_broken_model_is_refused_in_words_that_can_be_read() -> None:
    before = np.linspace(2, 4, 60)
    judged = judge(read(before + 900), read(before))
    assert judged.verdict == "fail"
    assert len(judged.reason) < 150
    assert judged.metric is not None
    assert np.isfinite([judged.metric.value, judged.metric.drop, judged.metric.drop_upper]).all()


def test_divergence_is_told_as_an_error() -> None:
    random = np.random.default_rng(0)
    divergence = random.lognormal(-7, 1, 60)
    evaluation = read(np.full(60, 2.0), fidelity={"kl": divergence, "agreement": np.full(60, 0.98)})
    figures = judge(evaluation, read(np.full(60, 2.0))).fidelity
    assert figures["kl"].value == pytest.approx(divergence.mean())
    assert 0 < figures["kl"].low < figures["kl"].value < figures["kl"].high < 2 * figures["kl"].value
    assert figures["agreement"].low < 0.98 < figures["agreement"].high


def test_no_disagreement_in_50_samples_proves_nothing_and_in_300_enough() -> None:
    """The rule of three: of n samples without a failure, up to 3/n of all may fail."""
    few = judge(compared("agreement", np.ones(50)), compared("agreement", []))
    assert few.verdict == "inconclusive"
    assert few.gates[0].bound == pytest.approx(0.05 ** (1 / 50), abs=0.004)
    assert few.samples_needed == pytest.approx(299, abs=3)
    assert "50 samples leave 0.9" in few.reason
    assert judge(compared("agreement", np.ones(310)), compared("agreement", [])).verdict == "pass"


def test_an_accuracy_without_any_difference_still_needs_samples() -> None:
    few = judge(scored(np.ones(100)), scored(np.ones(100)))
    assert (few.verdict, few.gates[0].value) == ("inconclusive", 0.0)
    assert few.samples_needed is not None
    assert 280 <= few.samples_needed <= 320
    assert few.reason.startswith("accuracy drops by 0.00%, but 100 samples leave a drop of ")
    assert f"about {few.samples_needed} samples would decide ({few.samples_needed - 100} more)" in few.reason
    enough = judge(scored(np.ones(400)), scored(np.ones(400)))
    assert enough.verdict == "pass"
    assert enough.samples_needed is None


def test_the_number_of_samples_that_it_asks_for_decides() -> None:
    random = np.random.default_rng(5)

    def draw(samples: int) -> Judgement:
        draw = random.random(samples)
        return judge(scored((draw >= 0.01) & (draw < 0.91)), scored(draw < 0.9))

    needed = [judgement.samples_needed for judgement in (draw(400) for _ in range(5)) if judgement.samples_needed]
    assert needed
    decided = sum(draw(int(np.median(needed)) * 2).verdict == "pass" for _ in range(10))
    assert decided >= 8


def test_a_clear_loss_fails_and_an_unclear_one_says_that_the_estimate_is_above_the_limit() -> None:
    before = np.ones(1000)
    after = before.copy()
    after[:50] = 0
    lost = judge(scored(after), scored(before))
    assert lost.verdict == "fail"
    assert lost.metric is not None
    assert (lost.metric.drop, lost.metric.value) == (pytest.approx(0.05), pytest.approx(0.95))
    assert 0.03 < lost.metric.drop_lower < 0.05 < lost.metric.drop_upper < 0.07
    assert lost.metric.low < 0.95 < lost.metric.high
    assert lost.reason.startswith("accuracy drops by 5.00%; a drop of 3.")
    after[12:50] = 1
    unclear = judge(scored(after), scored(before))
    assert unclear.verdict == "inconclusive"
    assert "the estimate itself is above the limit" in unclear.reason
    assert unclear.samples_needed is not None
    assert unclear.samples_needed > 1000


def test_the_comparison_is_paired() -> None:
    """Half of all samples are wrong for both: unpaired, 1,000 samples could not show a drop of less than 1 %."""
    random = np.random.default_rng(0)
    right = random.random(1000) < 0.5
    assert judge(scored(right), scored(right)).verdict == "pass"
    shuffled = random.permutation(right)
    assert judge(scored(shuffled), scored(right)).verdict == "inconclusive"


def test_a_judgement_is_the_same_each_time_and_other_limits_need_no_new_measurement() -> None:
    before = np.ones(1000)
    after = before.copy()
    after[:20] = 0
    assert judge(scored(after), scored(before)) == judge(scored(after), scored(before))
    assert judge(scored(after), scored(before), Limits(max_drop=0.05)).verdict == "pass"
    assert judge(scored(after), scored(before), Limits(max_drop=0.005)).verdict == "fail"


def test_random_inputs_never_pass() -> None:
    judged = judge(compared("cosine", np.ones(500), evidence_kind="synthetic"), compared("cosine", []))
    assert judged.verdict == "inconclusive"
    assert judged.reason.startswith("no evaluation data; give --evaluation")
    assert judged.fidelity["cosine"].value == 1.0  # still told
    with_truth = judge(scored(np.ones(500), evidence_kind="synthetic"), scored(np.ones(500)))
    assert with_truth.verdict == "inconclusive"
    assert judge(scored(np.ones(500), evidence_kind="synthetic")).verdict == "pass"  # the baseline has nothing to keep


def test_without_truth_the_decisive_columns_are_judged() -> None:
    random = np.random.default_rng(0)
    near, far = 1 - 0.002 * random.random(200), 1 - 0.05 * random.random(200)
    assert judge(compared("cosine", near), compared("cosine", [])).verdict == "pass"
    lost = judge(compared("cosine", far), compared("cosine", []))
    assert lost.verdict == "fail"
    assert "mean cosine 0.97" in lost.reason
    columns = {"cosine": np.full(400, 0.9), "agreement": np.ones(400)}
    classifier = PerSample(400, fidelity=columns, decisive=("agreement",))
    assert judge(classifier, compared("cosine", [])).verdict == "pass"
    small = compared("relative_error", 0.001 * random.random(100))
    assert judge(small, small).verdict == "pass"
    assert judge(compared("relative_error", 0.2 * random.random(100)), small).verdict == "fail"


def test_few_cosines_cannot_bound_their_tail() -> None:
    judged = judge(compared("cosine", np.full(20, 0.9999)), compared("cosine", []))
    assert (judged.verdict, judged.samples_needed) == ("inconclusive", 50)
    assert judge(compared("cosine", np.full(20, 0.5)), compared("cosine", [])).verdict == "fail"


def test_nothing_compared_is_not_a_pass() -> None:
    figures = {"size_bytes": 1}
    judged = judge(PerSample(10), PerSample(10), Limits(max_size_bytes=10), figures)
    assert judged.verdict == "inconclusive"
    assert "nothing to compare" in judged.reason


def test_a_baseline_that_is_never_right_decides_nothing() -> None:
    judged = judge(scored(np.zeros(50)), scored(np.zeros(50)))
    assert judged.verdict == "inconclusive"
    assert "the baseline's own accuracy is 0" in judged.reason


def test_nan_in_the_results_decides_nothing() -> None:
    holed = np.ones(500)
    holed[3] = np.nan
    assert judge(scored(holed), scored(np.ones(500))).verdict == "inconclusive"
    assert judge(compared("cosine", holed), compared("cosine", [])).verdict == "inconclusive"
    assert judge(compared("agreement", holed), compared("agreement", [])).verdict == "inconclusive"


def test_only_like_is_compared_with_like() -> None:
    with pytest.raises(InputError, match="different data"):
        judge(scored(np.ones(5), data="one"), scored(np.ones(5), data="other"))


def figures(calls: int = 1000, **latency: float) -> dict[str, Any]:
    latencies = {
        f"{name}{end}": value * factor
        for name, value in {"p50": 10.0, "p95": 20.0, "p99": 30.0, **latency}.items()
        for end, factor in (("", 1), ("_low", 0.9), ("_high", 1.1))
    }
    return {
        "error": None,
        "size_bytes": 1000,
        "peak_memory_bytes": 5000,
        "speedups": {"1": {"value": 2.0, "low": 1.9, "high": 2.1}},
        "batches": {"1": {"latency_ms": latencies, "calls": calls}},
    }


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [
        ({"max_p99_ms": 33.5}, "pass"),
        ({"max_p99_ms": 32}, "inconclusive"),
        ({"max_p99_ms": 28}, "inconclusive"),
        ({"max_p99_ms": 26}, "fail"),
        ({"max_p95_ms": 50, "max_p99_ms": 26}, "fail"),
        ({"max_size_bytes": 1000}, "pass"),
        ({"max_size_bytes": 999}, "fail"),
        ({"max_peak_memory_bytes": 4999}, "fail"),
        ({"min_speedup": 1.9}, "pass"),
        ({"min_speedup": 2.0}, "inconclusive"),
        ({"min_speedup": 2.2}, "fail"),
        ({"max_p99_ms": 100, "batch_size": 8}, "inconclusive"),
    ],
)
def test_measured_figures_are_judged_by_their_interval_for_the_baseline_too(limits: Any, verdict: str) -> None:
    assert judge(scored(np.ones(5)), None, Limits(**limits), figures()).verdict == verdict
    assert judge(scored(np.ones(500)), scored(np.ones(500)), Limits(**limits), figures()).verdict == verdict


def test_a_99th_percentile_needs_enough_calls_to_be_bounded() -> None:
    judged = judge(scored(np.ones(5)), None, Limits(max_p99_ms=100), figures(calls=367))
    assert judged.verdict == "inconclusive"
    assert "367 calls cannot bound it from above, 368 can" in judged.reason
    assert judge(scored(np.ones(5)), None, Limits(max_p99_ms=100), figures(calls=368)).verdict == "pass"


def test_what_was_not_measured_is_not_claimed() -> None:
    assert judge(scored(np.ones(5)), None, Limits(max_p99_ms=100)).verdict == "inconclusive"
    crashed = judge(scored(np.ones(500)), scored(np.ones(500)), Limits(), {"error": "killed by SIGSEGV"})
    assert (crashed.verdict, crashed.reason) == ("fail", "it could not be measured: killed by SIGSEGV")


def test_bounds_of_zero_one_results_are_those_of_clopper_and_pearson() -> None:
    from scipy.stats import beta

    for failures in (0, 1, 7):
        values = np.zeros(120)
        values[:failures] = 1
        low, high = mean_bounds(values, 0.0, 1.0, (0.05, 0.95), 20_000, 0)
        assert high == pytest.approx(beta.ppf(0.95, failures + 1, 120 - failures), rel=0.03)
        exact = beta.ppf(0.05, failures, 120 - failures + 1) if failures else 0.0
        assert low == pytest.approx(exact, rel=0.03, abs=3e-5)


def test_resampling_in_blocks_covers_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.gate.resampling._BLOCK_VALUES", 3000)
    sums, extreme = resampled_sums(np.eye(7), 1000, 0)
    assert sums.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)
    assert extreme.mean() == pytest.approx(1, abs=0.15)
    assert abs(np.corrcoef(sums.T) - np.eye(7)).max() < 0.15
