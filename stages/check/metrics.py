"""Metrics as sums over samples, so that a paired bootstrap of any of them is one matrix product.

A metric keeps `[units, k]` float64 statistics, one row a sample (a query in retrieval, a pair in similarity), and is a
function of their (weighted) column sums alone: `FORMS[form].value(weights @ statistics)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.check.squad import answer_f1, exact_match
from stages.errors import InputError

__all__ = ["FORMS", "Form", "Metric", "Predictions", "Unseen", "metric_for", "unit_of"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]


@dataclass(frozen=True)
class Unseen:
    """One unit that was not seen, at its worst: four rows [k] of what it would add to the statistics.

    `lost`: what it adds to those of the baseline and to those of the variant where the variant loses all that it can;
    `won`: the same where it gains all that it can.
    """

    lost: tuple[Floats, Floats]
    won: tuple[Floats, Floats]


@dataclass(frozen=True)
class Form:
    """How a metric's value comes from the column sums of its statistics.

    `value`: sums [..., k] -> [...], NaN where the metric is not defined.
    `unseen`: the statistics of the baseline and of the variant, [units, k] each -> the unit that the gate adds to
    account for what was not seen. `bounded`: whether a unit has a worst; where it has none, `unseen` is a guess from
    those that were seen, and takes enough of them.
    `lower_is_better`: the metric gets worse by rising.
    """

    value: Callable[[Floats], Floats]
    unseen: Callable[[Floats, Floats], Unseen]
    bounded: bool = True
    lower_is_better: bool = False


@dataclass(frozen=True)
class Predictions:
    """What a model answered, by sample. Each field is filled where the truth's kind needs it.

    `classes[i]`: int32, the predicted class (one), the class of each counted position, or [start, end] of a span;
    `ranks`: [N] int64, how many classes were preferred to the right one; `embeddings`: [N, D] float32;
    `texts[i]`: the answer to a question; `class_count`: the number of classes that the model knows.
    """

    classes: Sequence[Integers] = ()
    ranks: NDArray[np.int64] | None = None
    embeddings: NDArray[np.float32] | None = None
    texts: Sequence[str] = ()
    class_count: int = 0


@dataclass(frozen=True)
class Metric:
    """A metric by its name, the form of its statistics, and how they come from predictions and the truth."""

    name: str
    form: str
    statistics: Callable[[Predictions, Mapping[str, Any]], Floats]

    def value(self, statistics: Floats) -> float:
        """The metric over all units."""
        return float(FORMS[self.form].value(statistics.sum(axis=0)))


def metric_for(truth: Mapping[str, Any] | None, name: str | None = None) -> Metric | None:
    """The metric called `name`, or the usual one for this kind of truth; None where there is no truth.

    Raises `InputError` for a name that the truth does not fit, naming those that do, and for any without truth.
    """
    if not truth:
        if name is not None:
            raise InputError(f"the metric {name!r} needs the truth (labels, answers, …), and the data hold none")
        return None
    kind = truth["kind"]
    if kind not in _BY_KIND:
        raise InputError(f"the truth is of kind {kind!r}; known are {', '.join(_BY_KIND)}")
    fitting = _BY_KIND[kind]
    wanted = name or next(iter(fitting))
    if wanted in fitting:
        return fitting[wanted]
    if kind == "retrieval" and (matched := re.fullmatch(r"recall@([1-9]\d*)", wanted)):
        return _recall(int(matched[1]))
    shown = ", ".join(fitting) + (", recall@<k>" if kind == "retrieval" else "")
    raise InputError(f"the metric {name!r} does not fit this data (its truth is of kind {kind!r}); choose from {shown}")


def unit_of(truth: Mapping[str, Any]) -> str:
    """What one row of the statistics is, as a plural."""
    return {"retrieval": "queries", "similarity": "pairs"}.get(truth["kind"], "samples")


# --- forms -----------------------------------------------------------------------------------------------------------


def _ratio(sums: Floats) -> Floats:
    """Columns: score, count."""
    return _divide(sums[..., 0], sums[..., 1])


def _right_or_wrong(extremes: Callable[[Floats], tuple[Floats, Floats]]) -> Callable[[Floats, Floats], Unseen]:
    """`extremes`: the baseline's statistics -> what an average unit adds if all of it is right, and if all is wrong."""

    def unseen(before: Floats, after: Floats) -> Unseen:
        right, wrong = extremes(before)
        return Unseen(lost=(right, wrong), won=(wrong, right))

    return unseen


def _ratio_extremes(statistics: Floats) -> tuple[Floats, Floats]:
    count = statistics[:, 1].mean()
    return np.array([count, count]), np.array([0.0, count])


def _macro_f1(sums: Floats) -> Floats:
    """Columns: true positives, false positives, false negatives, each a block of one column a class.

    The mean over the classes that occur in the truth or in the predictions.
    """
    hits, errors = _confusion(sums)
    occurs = (hits + errors) > 0
    scores = np.divide(2 * hits, 2 * hits + errors, out=np.zeros_like(hits), where=occurs)
    return _divide(scores.sum(axis=-1), occurs.sum(axis=-1).astype(np.float64))


def _micro_f1(sums: Floats) -> Floats:
    hits, errors = (part.sum(axis=-1) for part in _confusion(sums))
    return _divide(2 * hits, 2 * hits + errors)


def _confusion(sums: Floats) -> tuple[Floats, Floats]:
    hits, false_positives, false_negatives = np.split(sums, 3, axis=-1)
    return hits, false_positives + false_negatives


def _confusion_extremes(statistics: Floats) -> tuple[Floats, Floats]:
    hits, _, false_negatives = np.split(statistics, 3, axis=1)
    per_class = (hits + false_negatives).mean(axis=0)
    nothing = np.zeros_like(per_class)
    return np.concatenate([per_class, nothing, nothing]), np.concatenate([nothing, per_class, per_class])


def _pearson(sums: Floats) -> Floats:
    """Columns: 1, x, y, x², y², xy."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    return _divide(n * xy - x * y, spread)


def _pearson_extremes(statistics: Floats) -> tuple[Floats, Floats]:
    """Right: an average pair as it is; wrong: one whose similarity has nothing to do with its score."""
    usual = statistics.mean(axis=0)
    unrelated = usual.copy()
    unrelated[5] = usual[1] * usual[2]
    return usual, unrelated


_MOST_NATS = 100.0
"""A loss beyond this is that of a broken model (chance is 12 nats for the largest vocabularies); its perplexity is cut
off there, so that it remains a number."""


def _perplexity(sums: Floats) -> Floats:
    """Columns: negative log-likelihood in nats, number of predictions."""
    value: Floats = np.exp(np.minimum(_divide(sums[..., 0], sums[..., 1]), _MOST_NATS))
    return value


def _perplexity_unseen(before: Floats, after: Floats) -> Unseen:
    """An average unit whose loss changes by twice as much as that of any unit that was seen, in either direction.

    How far a loss can rise is not known: there is no worst. See `stages.gate.fidelity`, which guesses the same way.
    """
    usual = before.mean(axis=0)
    change = np.array([2 * np.abs(after[:, 0] - before[:, 0]).max(initial=0.0), 0.0])
    return Unseen(lost=(usual, usual + change), won=(usual, usual - change))


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    result = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


FORMS: dict[str, Form] = {
    "ratio": Form(_ratio, _right_or_wrong(_ratio_extremes)),
    "macro_f1": Form(_macro_f1, _right_or_wrong(_confusion_extremes)),
    "micro_f1": Form(_micro_f1, _right_or_wrong(_confusion_extremes)),
    "pearson": Form(_pearson, _right_or_wrong(_pearson_extremes)),
    "perplexity": Form(_perplexity, _perplexity_unseen, bounded=False, lower_is_better=True),
}


# --- statistics ------------------------------------------------------------------------------------------------------


def _mean_of(scores: NDArray[Any] | list[float] | list[bool]) -> Floats:
    score = np.asarray(scores, dtype=np.float64)
    return np.stack([score, np.ones_like(score)], axis=1)


def _label_accuracy(answered: Predictions, truth: Mapping[str, Any]) -> Floats:
    return _mean_of(np.concatenate(answered.classes) == np.asarray(truth["label"]))


def _top5_accuracy(answered: Predictions, truth: Mapping[str, Any]) -> Floats:
    assert answered.ranks is not None
    return _mean_of(answered.ranks < 5)


def _label_confusion(answered: Predictions, truth: Mapping[str, Any]) -> Floats:
    return _count_confusion(answered, [[label] for label in truth["label"]])


def _token_accuracy(answered: Predictions, truth: Mapping[str, Any]) -> Floats:
    rows = []
    for predicted, labels in zip(answered.classes, truth["labels"], strict=True):
        right = np.asarray(labels)
        counted = right != _NOT_COUNTED
        rows.append([(predicted[counted] == right[counted]).sum(), counted.sum()])
    return np.array(rows, dtype=np.float64)


def _token_confusion(answered: Predictions, truth: Mapping[str, Any]) -> Floats:
    return _count_confusion(answered, truth["labels"])


_NOT_COUNTED = -100


def _count_confusion(answered: Predictions, truth: Sequence[Sequence[int]]) -> Floats:
    classes = answered.class_count
    counts = np.zeros((len(truth), 3, classes))
    for row, predicted, labels in zip(counts, answered.classes, truth, strict=True):
        right = np.asarray(labels)
        counted = right != _NOT_COUNTED
        right, given = right[counted], predicted[counted]
        hit = right == given
        row[0] = np.bincount(right[hit], minlength=classes)
        row[1] = np.bincount(given[~hit], minlength=classes)
        row[2] = np.bincount(right[~hit], minlength=classes)
    return counts.reshape(len(truth), 3 * classes)


def _exact_match(answered: Predictions, truth: Mapping[str, Any]) -> Floats:
    return _mean_of([exact_match(text, right) for text, right in zip(answered.texts, truth["answers"], strict=True)])


def _answer_f1(answered: Predictions, truth: Mapping[str, Any]) -> Floats:
    return _mean_of([answer_f1(text, right) for text, right in zip(answered.texts, truth["answers"], strict=True)])


_TIE = 1e-6
"""Documents whose cosines differ by no more count as equally near: the rest is rounding, not retrieval."""


def _retrieval_ranks(answered: Predictions, truth: Mapping[str, Any]) -> NDArray[np.int64]:
    """[Q]: how many documents are nearer to the query than the right one. Block by block, to bound memory."""
    assert answered.embeddings is not None
    units = _normalised(answered.embeddings)
    queries, documents = units[: truth["queries"]], units[truth["queries"] :]
    relevant = np.asarray(truth["relevant"])
    ranks = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), 1024):
        block = slice(start, start + 1024)
        cosines = queries[block] @ documents.T
        right = cosines[np.arange(len(cosines)), relevant[block]]
        ranks[block] = (cosines > right[:, None] + _TIE).sum(axis=1)
    return ranks


def _recall(k: int) -> Metric:
    return Metric(f"recall@{k}", "ratio", lambda answered, truth: _mean_of(_retrieval_ranks(answered, truth) < k))


def _mrr(answered: Predictions, truth: Mapping[str, Any]) -> Floats:
    return _mean_of(1.0 / (1 + _retrieval_ranks(answered, truth)))


def _similarity(answered: Predictions, truth: Mapping[str, Any]) -> Floats:
    assert answered.embeddings is not None
    units = _normalised(answered.embeddings).astype(np.float64)
    x = (units[0::2] * units[1::2]).sum(axis=1)
    y = np.asarray(truth["score"], dtype=np.float64)
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def _normalised(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units: NDArray[np.float32] = np.divide(embeddings, norms, out=np.zeros_like(embeddings), where=norms > 0)
    return units


def _named(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


# The first of each kind is the one taken when none is named.
_BY_KIND: dict[str, dict[str, Metric]] = {
    "label": _named(
        Metric("accuracy", "ratio", _label_accuracy),
        Metric("f1", "macro_f1", _label_confusion),
        Metric("f1_micro", "micro_f1", _label_confusion),
        Metric("top5_accuracy", "ratio", _top5_accuracy),
    ),
    "labels": _named(
        Metric("accuracy", "ratio", _token_accuracy),
        Metric("f1", "macro_f1", _token_confusion),
        Metric("f1_micro", "micro_f1", _token_confusion),
    ),
    "answers": _named(
        Metric("f1", "ratio", _answer_f1),
        Metric("exact_match", "ratio", _exact_match),
    ),
    "mask": _named(
        Metric("accuracy", "ratio", _label_accuracy),
        Metric("top5_accuracy", "ratio", _top5_accuracy),
    ),
    "retrieval": _named(_recall(1), _recall(5), _recall(10), Metric("mrr", "ratio", _mrr)),
    "similarity": _named(Metric("pearson", "pearson", _similarity)),
}
