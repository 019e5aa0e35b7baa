"""What a model's outputs say in the terms of its task: a class, a class a position, a span, or an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.check.metrics import Predictions
from stages.check.outputs import Answer, OutputSplitter
from stages.check.squad import best_span
from stages.errors import InputError, StageError
from stages.model import Task

__all__ = ["Head", "PredictionReader", "head_of"]

Head = Literal["class", "position_class", "mask", "span", "embedding"]

_OF_TRUTH: dict[str, Head] = {
    "label": "class",
    "labels": "position_class",
    "answers": "span",
    "mask": "mask",
    "retrieval": "embedding",
    "similarity": "embedding",
}

_OF_TASK: dict[Task, Head] = {
    "text-classification": "class",
    "image-classification": "class",
    "token-classification": "position_class",
    "question-answering": "span",
    "fill-mask": "position_class",
}


def head_of(task: Task, truth: Mapping[str, Any] | None) -> Head | None:
    """How the outputs are to be read: as the truth needs it, else as the task says; None: nothing is known."""
    return _OF_TRUTH[truth["kind"]] if truth else _OF_TASK.get(task)


class PredictionReader:
    """Reads answers sample by sample, in any order, into `Predictions`.

    Raises `InputError` where the outputs cannot be read so, or the truth names a class that the model does not have.
    """

    def __init__(self, head: Head, splitter: OutputSplitter, samples: int, truth: Mapping[str, Any] | None) -> None:
        self._head, self._splitter, self._truth = head, splitter, truth
        self._classes: list[NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)] * samples
        self._ranks = np.zeros(samples, dtype=np.int64)
        self._texts = [""] * samples
        self._labels: list[list[int]] = [[]] * samples
        self._embeddings: NDArray[np.float32] | None = None
        self._class_count = 0
        self._may_refuse = truth is not None and head == "span" and not all(truth["answers"])

    def read(self, sample: int, answer: Answer) -> None:
        """Take note of one sample's answer."""
        getattr(self, f"_read_{self._head}")(sample, answer)

    def predictions(self) -> Predictions:
        return Predictions(self._classes, self._ranks, self._embeddings, self._texts, self._class_count)

    def truth(self) -> Mapping[str, Any] | None:
        """The truth for what was read: labels of masked positions are left out, as the predictions for them are."""
        if self._truth is None or self._head != "position_class":
            return self._truth
        return {**self._truth, "labels": self._labels}

    def _read_class(self, sample: int, answer: Answer) -> None:
        scores = self._scores(sample, answer, axes=1)
        label = int(self._truth["label"][sample]) if self._truth else None
        if scores is None:
            predicted = self._class_itself(answer)
            self._class_count = max(self._class_count, predicted + 1, (label or 0) + 1)
            self._ranks[sample] = 0 if predicted == label else self._class_count
        else:
            predicted = self._best(sample, scores, label)
        self._classes[sample] = np.array([predicted], dtype=np.int32)

    def _read_position_class(self, sample: int, answer: Answer) -> None:
        scores = self._need(self._scores(sample, answer, axes=2), answer, "a row of scores for each position")
        self._class_count = scores.shape[-1]
        self._classes[sample] = scores.argmax(axis=-1).astype(np.int32)
        if self._truth is None:
            return
        labels = np.asarray(self._at_valid(sample, self._truth["labels"][sample], "labels"), dtype=np.int64)
        self._labels[sample] = labels.tolist()
        outside = labels[(labels >= self._class_count) | ((labels < 0) & (labels != -100))]
        if len(outside):
            raise self._no_such_class(sample, int(outside[0]))

    def _read_mask(self, sample: int, answer: Answer) -> None:
        assert self._truth is not None
        scores = self._need(self._scores(sample, answer, axes=2), answer, "a row of scores for each position")
        position = int(self._truth["position"][sample])
        valid = self._splitter.valid(sample)
        found = np.flatnonzero(np.arange(len(scores)) == position if valid is None else valid == position)
        if not len(found):
            raise InputError(
                f"the masked position {position} of sample {sample} lies outside its {len(scores)} positions"
            )
        predicted = self._best(sample, scores[found[0]], int(self._truth["label"][sample]))
        self._classes[sample] = np.array([predicted], dtype=np.int32)

    def _read_span(self, sample: int, answer: Answer) -> None:
        logits = [array for name, array in answer.items() if name in ("start_logits", "end_logits")]
        if len(logits) != 2:
            raise InputError(
                f"question answering needs start_logits and end_logits; the outputs are {', '.join(answer)}"
            )
        start, end = answer["start_logits"].ravel(), answer["end_logits"].ravel()
        if self._truth is None:
            self._classes[sample] = np.array(best_span(start, end), dtype=np.int32)
            return
        offsets = self._at_valid(sample, self._truth["offsets"][sample], "offsets")
        allowed = np.array([high > low for low, high in offsets])
        first, last = best_span(start, end, allowed, self._may_refuse)
        self._classes[sample] = np.array([first, last], dtype=np.int32)
        if allowed[first] and allowed[last]:
            self._texts[sample] = self._truth["contexts"][sample][offsets[first][0] : offsets[last][1]]

    def _read_embedding(self, sample: int, answer: Answer) -> None:
        floats = {name: array for name, array in answer.items() if array.dtype.kind == "f"}
        flat = [array for name, array in floats.items() if array.ndim == 1 and not self._splitter.has_positions(name)]
        rows = [array for array in floats.values() if array.ndim == 2]
        if flat:
            embedding = flat[0]
        elif rows:  # Token (or patch) embeddings and no pooling in the graph: their mean.
            embedding = rows[0].mean(axis=0, dtype=np.float64)
        else:
            shown = ", ".join(f"{name} {array.shape}" for name, array in answer.items())
            raise InputError(f"no output is an embedding: for one sample they are {shown}")
        if self._embeddings is None:
            self._embeddings = np.zeros((len(self._classes), len(embedding)), dtype=np.float32)
        if len(embedding) != self._embeddings.shape[1]:
            raise StageError(
                f"the embedding of sample {sample} has {len(embedding)} values, others have another number"
            )
        self._embeddings[sample] = embedding

    def _scores(self, sample: int, answer: Answer, axes: int) -> NDArray[Any] | None:
        """The first float output with scores of at least two classes, on `axes` axes."""
        for name, array in answer.items():
            if array.dtype.kind == "f" and array.ndim == axes and array.shape[-1] > 1:
                if axes == 1 and self._splitter.has_positions(name):
                    continue
                return array
        return None

    def _class_itself(self, answer: Answer) -> int:
        """For models that answer with the class and not with scores."""
        for array in answer.values():
            if array.dtype.kind in "iu" and array.size == 1:
                return int(array.ravel()[0])
        shown = ", ".join(f"{name} {array.shape}" for name, array in answer.items())
        raise InputError(f"no output holds the scores of two or more classes: for one sample they are {shown}")

    def _best(self, sample: int, scores: NDArray[Any], label: int | None) -> int:
        self._class_count = len(scores)
        if label is not None:
            if not 0 <= label < len(scores):
                raise self._no_such_class(sample, label)
            self._ranks[sample] = (scores > scores[label]).sum() + (scores[:label] == scores[label]).sum()
        return int(scores.argmax())

    def _no_such_class(self, sample: int, label: int) -> InputError:
        return InputError(f"the label {label} of sample {sample} is none of the model's {self._class_count} classes")

    def _at_valid(self, sample: int, values: list[Any], what: str) -> list[Any]:
        valid = self._splitter.valid(sample)
        if valid is None:
            return values
        if len(values) <= int(valid.max(initial=-1)):
            raise InputError(f"sample {sample} has {len(values)} {what} for {len(valid)} positions")
        return [values[position] for position in valid]

    @staticmethod
    def _need(scores: NDArray[Any] | None, answer: Answer, what: str) -> NDArray[Any]:
        if scores is None:
            shown = ", ".join(f"{name} {array.shape}" for name, array in answer.items())
            raise InputError(f"no output has {what}: for one sample they are {shown}")
        return scores
