"""Text tasks whose truth is about the whole text: embeddings and text classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from calibration.errors import DataError
from calibration.inputs import InputSpec
from calibration.labels import row_labels
from calibration.rows import Rows
from calibration.samples import Samples
from calibration.tokenizer import TextTokenizer, cut_texts, token_inputs

__all__ = ["classification_samples", "embedding_samples", "encoded_samples", "for_inputs"]


def for_inputs(tokenizer: TextTokenizer, specs: Sequence[InputSpec]) -> TextTokenizer:
    """The tokenizer, cutting texts no longer than a fixed second axis of the model's inputs allows."""
    fixed = [spec.shape[1] for spec in specs if len(spec.shape) == 2 and isinstance(spec.shape[1], int)]
    return replace(tokenizer, max_length=min([tokenizer.max_length, *map(int, fixed)]))


def encoded_samples(
    encodings: Sequence[Any],
    specs: Sequence[InputSpec],
    tokenizer: TextTokenizer,
    truth: Mapping[str, Any] | None,
) -> Samples:
    """Encodings as samples: each input [tokens], padded with the tokenizer's padding."""
    inputs, padding = token_inputs(encodings, specs, tokenizer)
    return Samples(inputs, padding, truth, cut_texts(encodings))


def embedding_samples(rows: Rows, tokenizer: TextTokenizer, specs: Sequence[InputSpec]) -> Samples:
    """Texts to embed, and what is known of them, by the columns that there are.

    - `query` and `document`: retrieval. Row i's document is the right one for its query; a document that occurs in
      several rows is one document. The prompts for queries and documents that the model was trained with are put
      before them.
    - `text_a`, `text_b` and `score` (a number): similarity; samples 2i and 2i+1 are the texts of row i.
    - `text_a` and `text_b` without a score, or `text`: no truth.

    Raises `DataError` for missing columns, and values that are no text or no number.
    """
    truth: dict[str, Any] | None = None
    if rows.has("query") or rows.has("document"):
        rows.require("query", "document")
        queries, paired = rows.texts("query"), rows.texts("document")
        places: dict[str, int] = {}
        relevant = [places.setdefault(document, len(places)) for document in paired]
        texts = [*tokenizer.prompted(queries, "query"), *tokenizer.prompted(list(places), "document")]
        truth = {"kind": "retrieval", "queries": len(queries), "documents": len(places), "relevant": relevant}
    elif rows.has("text_a", "text_b"):
        pairs = zip(rows.texts("text_a"), rows.texts("text_b"), strict=True)
        texts = tokenizer.prompted([text for pair in pairs for text in pair])
        if rows.has("score"):
            truth = {"kind": "similarity", "pairs": len(rows), "score": _scores(rows)}
    else:
        texts = tokenizer.prompted(rows.texts("text"))
    return encoded_samples(tokenizer.encode(texts), specs, tokenizer, truth)


def classification_samples(
    rows: Rows, tokenizer: TextTokenizer, specs: Sequence[InputSpec], labels: Sequence[str] = ()
) -> Samples:
    """Texts (`text`) or pairs of texts (`text_a`, `text_b`) to classify, with their `label` if there is one.

    Raises `DataError` for missing columns, values that are no text and labels that the model does not know.
    """
    texts: list[Any]
    if rows.has("text_a") or rows.has("text_b"):
        rows.require("text_a", "text_b")
        texts = list(zip(rows.texts("text_a"), rows.texts("text_b"), strict=True))
    else:
        texts = list(rows.texts("text"))
    found = row_labels(rows, labels)
    truth = None if found is None else {"kind": "label", "label": found}
    return encoded_samples(tokenizer.encode(texts), specs, tokenizer, truth)


def _scores(rows: Rows) -> list[float]:
    scores = []
    for index, value in enumerate(rows.column("score")):
        try:
            score = float(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"{rows.where(index)}: 'score' should be a number, it is {value!r}") from error
        if score != score:
            raise DataError(f"{rows.where(index)}: 'score' is NaN")
        scores.append(score)
    return scores
