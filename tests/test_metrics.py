"""Metrics: the values of scikit-learn and of the SQuAD script, as sums that can be weighed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

from stages.check.metrics import FORMS, Predictions, metric_for
from stages.check.squad import answer_f1, best_span, exact_match
from stages.errors import InputError


def classes_of(values: Any) -> list[Any]:
    return [np.array([value], dtype=np.int32) for value in values]


@pytest.fixture
def labels() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    right = random.integers(0, 6, 300)
    right[right == 4] = 0  # a class that is only ever predicted, and class 5, which occurs in both
    given = np.where(random.random(300) < 0.7, right, random.integers(0, 6, 300))
    return right, given


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("accuracy", accuracy_score),
        ("f1", lambda right, given: f1_score(right, given, average="macro")),
        ("f1_micro", lambda right, given: f1_score(right, given, average="micro")),
    ],
)
def test_classification_metrics_are_those_of_scikit_learn(labels: Any, name: str, oracle: Any) -> None:
    right, given = labels
    metric = metric_for({"kind": "label"}, name)
    predictions = Predictions(classes=classes_of(given), class_count=7)
    statistics = metric.statistics(predictions, {"kind": "label", "label": right.tolist()})
    assert metric.value(statistics) == pytest.approx(oracle(right, given))
    # A resample is a weighted sum: the same rows drawn several times give the metric of the drawn samples.
    drawn = np.random.default_rng(1).integers(0, len(right), len(right))
    weights = np.bincount(drawn, minlength=len(right)).astype(float)
    value = FORMS[metric.form].value(np.stack([weights @ statistics, statistics.sum(axis=0)]))
    assert value == pytest.approx([oracle(right[drawn], given[drawn]), oracle(right, given)])


def test_top5_accuracy_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    scores, right = random.random((200, 12)), random.integers(0, 12, 200)
    ranks = (scores > scores[np.arange(200), right][:, None]).sum(axis=1)
    metric = metric_for({"kind": "label"}, "top5_accuracy")
    value = metric.value(metric.statistics(Predictions(ranks=ranks), {"label": right}))
    assert value == pytest.approx(top_k_accuracy_score(right, scores, k=5))


@pytest.mark.parametrize("name", ["accuracy", "f1", "f1_micro"])
def test_token_metrics_leave_out_what_is_not_counted(name: str) -> None:
    random = np.random.default_rng(0)
    right = [random.integers(0, 4, length) for length in random.integers(1, 9, 50)]
    given = [np.where(random.random(len(one)) < 0.7, one, 3).astype(np.int32) for one in right]
    truth = [np.where(random.random(len(one)) < 0.2, -100, one) for one in right]
    metric = metric_for({"kind": "labels"}, name)
    statistics = metric.statistics(
        Predictions(classes=given, class_count=4), {"labels": [one.tolist() for one in truth]}
    )
    flat, predicted = np.concatenate(truth), np.concatenate(given)
    flat, predicted = flat[flat != -100], predicted[np.concatenate(truth) != -100]
    expected = {
        "accuracy": accuracy_score(flat, predicted),
        "f1": f1_score(flat, predicted, average="macro"),
        "f1_micro": f1_score(flat, predicted, average="micro"),
    }
    assert metric.value(statistics) == pytest.approx(expected[name])
    assert len(statistics) == 50


def test_retrieval_metrics_rank_the_documents_by_cosine() -> None:
    random = np.random.default_rng(0)
    queries, documents = random.normal(size=(40, 8)), random.normal(size=(60, 8))
    relevant = random.integers(0, 60, 40)
    queries += 0.8 * documents[relevant]
    embeddings = np.concatenate([queries, 3 * documents]).astype(np.float32)
    cosines = (queries @ documents.T) / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(documents, axis=1))
    order = np.argsort(-cosines, axis=1)
    ranks = np.array([np.flatnonzero(row == right)[0] for row, right in zip(order, relevant, strict=True)])
    truth = {"kind": "retrieval", "queries": 40, "documents": 60, "relevant": relevant.tolist()}
    for name, expected in [
        ("recall@1", (ranks == 0).mean()),
        ("recall@7", (ranks < 7).mean()),
        ("mrr", (1 / (1 + ranks)).mean()),
    ]:
        metric = metric_for(truth, name)
        assert metric.value(metric.statistics(Predictions(embeddings=embeddings), truth)) == pytest.approx(expected)


def test_documents_that_are_equal_but_for_rounding_count_as_found() -> None:
    embeddings = np.array([[1, 0], [1, 0], [1, 1e-3], [0, 1]], dtype=np.float32)
    truth = {"kind": "retrieval", "queries": 1, "documents": 3, "relevant": [1]}
    metric = metric_for(truth)
    assert metric.name == "recall@1"
    assert metric.value(metric.statistics(Predictions(embeddings=embeddings), truth)) == 1.0


def test_pearson_is_the_correlation_of_cosine_and_score() -> None:
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(80, 5)).astype(np.float32)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = (units[0::2] * units[1::2]).sum(axis=1)
    score = cosines + 0.3 * random.normal(size=40)
    truth = {"kind": "similarity", "pairs": 40, "score": score.tolist()}
    metric = metric_for(truth)
    value = metric.value(metric.statistics(Predictions(embeddings=embeddings), truth))
    assert value == pytest.approx(np.corrcoef(cosines, score)[0, 1], abs=1e-6)


def test_answers_are_scored_as_squad_does() -> None:
    assert exact_match("The  Eiffel-Tower!", ["eiffeltower", "x"]) == 1.0
    assert exact_match("Eiffel Tower in Paris", ["Eiffel Tower"]) == 0.0
    assert answer_f1("Eiffel Tower in Paris", ["Louvre", "the Eiffel Tower"]) == pytest.approx(2 * 2 / (4 + 2))
    assert answer_f1("", []) == 1.0  # a question without an answer, and none given
    assert answer_f1("Paris", []) == 0.0


def test_the_best_span_runs_forwards_within_the_context() -> None:
    start = np.array([9.0, 0.0, 5.0, 1.0, 0.0])
    end = np.array([9.0, 6.0, 0.0, 2.0, 1.0])
    allowed = np.array([False, True, True, True, True])
    assert best_span(start, end, allowed) == (2, 3)  # 2..1 scores more but runs backwards, 0..0 is outside
    assert best_span(start, end, allowed, may_refuse=True) == (0, 0)
    start, end = np.zeros(60), np.zeros(60)
    start[0], end[59] = 5, 6
    assert best_span(start, end) == (30, 59)  # 0..59 would score more, but no answer has more than 30 tokens


def test_a_metric_that_does_not_fit_is_refused_with_those_that_do() -> None:
    with pytest.raises(InputError, match=r"exact_match.*retrieval.*recall@1, recall@5, recall@10, mrr, recall@<k>"):
        metric_for({"kind": "retrieval"}, "exact_match")
    with pytest.raises(InputError, match="accuracy, f1, f1_micro, top5_accuracy"):
        metric_for({"kind": "label"}, "acuracy")


@pytest.mark.parametrize("form", list(FORMS))
def test_a_unit_that_is_lost_worsens_every_form(form: str) -> None:
    random = np.random.default_rng(0)
    if form == "pearson":
        x = random.normal(size=50)
        y = x + random.normal(size=50)
        statistics = np.stack([np.ones(50), x, y, x * x, y * y, x * y], axis=1)
    elif form in ("ratio", "perplexity"):
        statistics = np.stack([random.random(50), np.ones(50)], axis=1)
    else:
        statistics = np.repeat([[1.0, 1, 0, 0, 1, 0]], 50, axis=0)
    after = statistics * [1.1, 1] if form == "perplexity" else statistics
    value, better = FORMS[form].value, -1 if FORMS[form].lower_is_better else 1
    total = after.sum(axis=0)
    unseen = FORMS[form].unseen(statistics, after)
    assert better * value(total + unseen.lost[1]) < better * value(total + unseen.lost[0])
    assert better * value(total + unseen.won[1]) > better * value(total + unseen.won[0])
    assert better * value(total + unseen.lost[1]) < better * value(total)


def test_perplexity_is_that_of_the_mean_loss_of_all_predictions() -> None:
    sums = np.array([[30.0, 10], [50, 30]])
    assert FORMS["perplexity"].value(sums.sum(axis=0)) == pytest.approx(np.exp(2))
    assert FORMS["perplexity"].value(sums) == pytest.approx(np.exp([3, 5 / 3]))
    assert np.isfinite(FORMS["perplexity"].value(np.array([1e9, 10.0])))  # a broken model's
    assert np.isnan(FORMS["perplexity"].value(np.zeros(2)))


def test_the_unseen_window_strays_twice_as_far_as_any_that_was_seen_in_either_direction() -> None:
    before = np.array([[20.0, 10], [30, 10], [4, 1]])
    after = before + np.array([[1.0, 0], [-3, 0], [0, 0]])
    unseen = FORMS["perplexity"].unseen(before, after)
    usual = before.mean(axis=0)
    assert unseen.lost[0] == pytest.approx(usual)
    assert unseen.lost[1] == pytest.approx(usual + np.array([6, 0]))
    assert unseen.won[1] == pytest.approx(usual - np.array([6, 0]))
