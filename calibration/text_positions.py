"""Text tasks whose truth is about places in the text: token classification, question answering, masked words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from calibration.errors import DataError
from calibration.inputs import InputSpec
from calibration.labels import LabelIndex
from calibration.rows import Rows
from calibration.samples import Samples
from calibration.text import encoded_samples
from calibration.tokenizer import TextTokenizer, cut_texts, token_inputs

__all__ = ["NOT_COUNTED", "answering_samples", "mask_samples", "token_samples"]

NOT_COUNTED = -100
"""The label of a position that does not count, as in the loss functions of PyTorch."""

_MASKS = re.compile(r"\[MASK\]|<mask>")


def token_samples(
    rows: Rows, tokenizer: TextTokenizer, specs: Sequence[InputSpec], labels: Sequence[str] = ()
) -> Samples:
    """Lists of words (`tokens`) and, if there are any, their `labels`, one a word (a name or an index).

    A word's label stands at its first sub-token; its other sub-tokens, special tokens and padding have -100 (the usual
    alignment of BERT's authors). Raises `DataError` for missing columns, another number of labels than words, and
    labels that the model does not know.
    """
    words = rows.lists("tokens")
    for index, sentence in enumerate(words):
        for word in sentence:
            if not isinstance(word, str):
                raise DataError(f"{rows.where(index)}: 'tokens' should hold words, there is {word!r}")
    encodings = tokenizer.encode(words, words=True)
    if not rows.has("labels"):
        return encoded_samples(encodings, specs, tokenizer, None)
    label_index = LabelIndex(labels)
    aligned = []
    for index, (sentence, given, encoding) in enumerate(zip(words, rows.lists("labels"), encodings, strict=True)):
        where = rows.where(index)
        if len(given) != len(sentence):
            raise DataError(f"{where} has {len(sentence)} tokens and {len(given)} labels; there is one label a token")
        classes = [NOT_COUNTED if str(value) == str(NOT_COUNTED) else label_index(value, where) for value in given]
        aligned.append(_first_of_word(encoding.word_ids, classes))
    samples = encoded_samples(encodings, specs, tokenizer, None)
    width = samples.lengths().tolist() if samples.padding else [len(next(iter(samples.inputs.values()))[0])] * len(rows)
    full = [found + [NOT_COUNTED] * (size - len(found)) for found, size in zip(aligned, width, strict=True)]
    return replace(samples, truth={"kind": "labels", "labels": full})


def _first_of_word(word_ids: Sequence[int | None], classes: Sequence[int]) -> list[int]:
    found, before = [], None
    for word in word_ids:
        found.append(NOT_COUNTED if word is None or word == before else classes[word])
        before = word
    return found


def answering_samples(rows: Rows, tokenizer: TextTokenizer, specs: Sequence[InputSpec]) -> Samples:
    """Questions about a text (`question`, `context`) and, if there are any, their `answers`.

    Answers are a text, a list of texts (any of them is right), or SQuAD's `{"text": [...], "answer_start": [...]}`; an
    empty list means that the context holds no answer. A context that is too long is cut at its end, never the
    question; what lies beyond is not seen (there are no sliding windows), by any variant of the model alike.

    Raises `DataError` for missing columns, a question that leaves no room for its context, and malformed answers.
    """
    questions, contexts = rows.texts("question"), rows.texts("context")
    tokenizer.backend.no_truncation()
    room = tokenizer.max_length - tokenizer.backend.num_special_tokens_to_add(True)
    for index, encoding in enumerate(tokenizer.backend.encode_batch(questions, add_special_tokens=False)):
        if len(encoding.ids) >= room:
            raise DataError(
                f"{rows.where(index)}: the question leaves no room for its context within {tokenizer.max_length} tokens"
            )
    encodings = tokenizer.encode(list(zip(questions, contexts, strict=True)), truncate="only_second")
    truth = None
    if rows.has("answers"):
        truth = {
            "kind": "answers",
            "answers": [_answers(rows, index, value) for index, value in enumerate(rows.column("answers"))],
            "contexts": contexts,
            "offsets": [
                [
                    list(pair) if part == 1 else [0, 0]
                    for pair, part in zip(encoding.offsets, encoding.sequence_ids, strict=True)
                ]
                for encoding in encodings
            ],
        }
    return encoded_samples(encodings, specs, tokenizer, truth)


def _answers(rows: Rows, index: int, value: Any) -> list[str]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            return [value]
        value = rows.parsed(index, "answers", value)
    if isinstance(value, dict):
        if "text" not in value:
            raise DataError(f"{rows.where(index)}: 'answers' is an object without 'text' (it has {', '.join(value)})")
        return _answers(rows, index, value["text"])
    if isinstance(value, (list, tuple)) and all(isinstance(answer, str) for answer in value):
        return list(dict.fromkeys(value))
    raise DataError(f"{rows.where(index)}: 'answers' should be a text or a list of texts, it is {value!r}")


def mask_samples(rows: Rows, tokenizer: TextTokenizer, specs: Sequence[InputSpec], seed: int = 0) -> Samples:
    """Texts with one masked place, and the token that belongs there.

    A row's `text` holds the mask (the tokenizer's own, `[MASK]` or `<mask>`) once and `label` is the word or the token
    id that belongs there; or it is plain text, of which one token is masked. Which one depends on the seed and the
    row's number alone. One place a sample, where training masks 15 % of a text, so that samples are independent of
    each other and can be compared in pairs.

    Raises `DataError` if the tokenizer has no mask token, a row has a label but no mask, several masks or no token to
    mask, the mask was cut off, or a label is not one single token.
    """
    mask_id = tokenizer.token_id(tokenizer.mask_token)
    if tokenizer.mask_token is None or mask_id is None:
        raise DataError("the model's tokenizer has no mask token, so it cannot fill masks")
    mask = tokenizer.mask_token
    texts = [_MASKS.sub(lambda _: mask, text) for text in rows.texts("text")]
    encodings = tokenizer.encode(texts)
    positions, labels = [], []
    for index, (row, text, encoding) in enumerate(zip(rows, texts, encodings, strict=True)):
        where = rows.where(index)
        masked = [position for position, token in enumerate(encoding.ids) if token == mask_id]
        if len(masked) > 1:
            raise DataError(f"{where} holds {len(masked)} masks; there may be one in a sample")
        if mask in text and not masked:
            raise DataError(f"{where}: the mask lies beyond the {tokenizer.max_length} tokens that the model reads")
        if masked:
            if row.get("label") is None:
                raise DataError(f"{where} has a mask but no 'label' that says what belongs there")
            positions.append(masked[0])
            labels.append(_single_token(row["label"], text.lstrip().startswith(mask), tokenizer, where))
        else:
            if row.get("label") is not None:
                raise DataError(f"{where} has a 'label' but no mask: write {mask} where the word belongs")
            position = _chosen(encoding, np.random.default_rng([seed, rows.numbers[index]]), where)
            positions.append(position)
            labels.append(encoding.ids[position])
    inputs, padding = token_inputs(encodings, specs, tokenizer)
    for ids, position in zip(inputs.get("input_ids", []), positions, strict=True):
        ids[position] = mask_id
    return Samples(inputs, padding, {"kind": "mask", "position": positions, "label": labels}, cut_texts(encodings))


def _chosen(encoding: Any, generator: np.random.Generator, where: str) -> int:
    ordinary = [position for position, special in enumerate(encoding.special_tokens_mask) if not special]
    if not ordinary:
        raise DataError(f"{where} holds no token that could be masked")
    return ordinary[int(generator.integers(len(ordinary)))]


def _single_token(label: Any, at_start: bool, tokenizer: TextTokenizer, where: str) -> int:
    if isinstance(label, int) and not isinstance(label, bool):
        if 0 <= label < tokenizer.backend.get_vocab_size():
            return label
        raise DataError(f"{where}: label {label} is no token id (there are {tokenizer.backend.get_vocab_size()})")
    if not isinstance(label, str):
        raise DataError(f"{where}: label {label!r} is neither a word nor a token id")
    # Where spaces belong to the tokens (byte-level BPE), a word within a text is another token than one at its start.
    for spelling in (label, f" {label}") if at_start else (f" {label}", label):
        ids = tokenizer.backend.encode(spelling, add_special_tokens=False).ids
        if len(ids) == 1:
            return int(ids[0])
    pieces = tokenizer.backend.encode(label, add_special_tokens=False).tokens
    raise DataError(
        f"{where}: label {label!r} is not one token but {len(pieces)} ({' '.join(pieces)}): mask a shorter word"
    )
