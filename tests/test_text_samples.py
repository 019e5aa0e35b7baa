"""Texts become what the checkpoint's tokenizer makes of them, and the truth stands at the right places."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import DataError, InputSpec, ModelInputs, Rows, Samples, builtin_samples, load_tokenizer
from calibration import samples_from_rows as from_rows

TOKEN_INPUTS = tuple(
    InputSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask", "token_type_ids")
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json")


def rows_of(*values: dict[str, Any], **about: Any) -> Rows:
    return Rows(list(values), range(1, len(values) + 1), "data.jsonl", "line", total=len(values), **about)


@pytest.fixture
def model(minilm_checkpoint: Path) -> Any:
    """A model of a task with MiniLM's tokenizer."""

    def make(task: str, inputs: tuple[InputSpec, ...] = TOKEN_INPUTS, labels: tuple[str, ...] = ()) -> ModelInputs:
        return ModelInputs(task, inputs, minilm_checkpoint, labels)

    return make


@pytest.fixture(scope="session")
def reference(minilm_checkpoint: Path) -> Any:
    """The tokenizer as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_checkpoint)


@pytest.fixture
def assets(minilm_checkpoint: Path, tmp_path: Path) -> Path:
    """The tokenizer's files to change."""
    for name in (*TOKENIZER_FILES, "sentence_bert_config.json"):
        shutil.copy(minilm_checkpoint / name, tmp_path / name)
    return tmp_path


def change(file: Path, **settings: Any) -> None:
    document = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(document | settings))


def ids(samples: Samples) -> list[list[int]]:
    return [value.tolist() for value in samples.inputs["input_ids"]]


def words(samples: Samples, tokenizer: Any, index: int) -> list[str]:
    return [tokenizer.id_to_token(token) for token in ids(samples)[index]]


TEXTS = ["Hello, world!", "naïve café, 素晴らしい 😀", "", "long " * 400, "[MASK] and [SEP] are special"]


def test_texts_become_what_transformers_makes_of_them(model: Any, reference: Any) -> None:
    samples = from_rows(rows_of(*({"text": text} for text in TEXTS)), model("sentence-embedding"))
    expected = reference(TEXTS, truncation=True, max_length=256, padding=True, return_tensors="np")
    batch = samples.batch(range(len(TEXTS)))
    assert set(batch) == set(expected)
    for name, array in batch.items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.dtype == np.int64
    assert samples.truth is None


def test_pairs_become_what_transformers_makes_of_them(model: Any, reference: Any) -> None:
    others = list(reversed(TEXTS))
    values = [{"text_a": a, "text_b": b, "label": 0} for a, b in zip(TEXTS, others, strict=True)]
    samples = from_rows(rows_of(*values), model("text-classification"))
    expected = reference(TEXTS, others, truncation=True, max_length=256, padding=True, return_tensors="np")
    for name, array in samples.batch(range(len(TEXTS))).items():
        np.testing.assert_array_equal(array, expected[name])


def test_only_the_inputs_that_the_model_takes_are_made_in_their_dtype(model: Any) -> None:
    specs = (InputSpec("attention_mask", "int32", ("b", "s")), InputSpec("input_ids", "int32", ("b", "s")))
    samples = from_rows(rows_of({"text": "hello"}), model("feature-extraction", specs))
    assert list(samples.inputs) == ["attention_mask", "input_ids"]
    assert {value[0].dtype for value in samples.inputs.values()} == {np.dtype(np.int32)}
    assert samples.padding == {"attention_mask": 0, "input_ids": 0}


def test_an_input_that_no_tokenizer_gives_is_named(model: Any) -> None:
    specs = (*TOKEN_INPUTS, InputSpec("pixel_values", "float32", ("b", 3, 224, 224)))
    with pytest.raises(DataError, match="takes an input 'pixel_values', which a tokenizer does not give"):
        from_rows(rows_of({"text": "hello"}), model("feature-extraction", specs))


def test_inputs_of_a_fixed_length_are_cut_and_padded_to_it(model: Any) -> None:
    specs = tuple(InputSpec(spec.name, "int64", ("batch", 8)) for spec in TOKEN_INPUTS)
    samples = from_rows(rows_of({"text": "hello"}, {"text": "word " * 50}), model("feature-extraction", specs))
    assert [len(value) for value in ids(samples)] == [8, 8]
    assert samples.inputs["attention_mask"][0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert ids(samples)[1][-1] == 102
    assert samples.padding == {}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 256),
        ({"sentence_bert_config.json": {"max_seq_length": None}}, 512),
        ({"sentence_bert_config.json": {"max_seq_length": None}, "config.json": {"max_position_embeddings": 300}}, 300),
        ({"tokenizer_config.json": {"model_max_length": 64}}, 64),
        (
            {
                "sentence_bert_config.json": {"max_seq_length": None},
                "tokenizer_config.json": {"model_max_length": 1e30},
                "config.json": {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1},
            },
            512,
        ),
    ],
)
def test_texts_are_cut_where_the_checkpoint_says(assets: Path, settings: dict[str, Any], expected: int) -> None:
    for name, values in settings.items():
        change(assets / name, **values)
    assert load_tokenizer(assets).max_length == expected


def test_another_length_may_be_asked_for_up_to_the_models_positions(assets: Path) -> None:
    assert load_tokenizer(assets, 400).max_length == 400
    with pytest.raises(DataError, match="max_length is 600, but the model has only 512 positions"):
        load_tokenizer(assets, 600)


@pytest.mark.parametrize(
    ("task", "rows", "cut"),
    [
        ("sentence-embedding", [{"query": "q", "document": "word " * 300}, {"query": "q " * 300, "document": "d"}], 2),
        ("text-classification", [{"text_a": "a " * 200, "text_b": "b " * 200}, {"text_a": "a", "text_b": "b"}], 1),
        ("token-classification", [{"tokens": ["word"] * 254}, {"tokens": ["word"] * 255}], 1),
        ("question-answering", [{"question": "q", "context": "word " * 300}], 1),
        ("fill-mask", [{"text": "word " * 254}, {"text": "word " * 255}], 1),
    ],
)
def test_texts_that_are_cut_are_counted(model: Any, task: str, rows: list[dict[str, Any]], cut: int) -> None:
    samples = from_rows(rows_of(*rows), model(task))
    assert samples.cut == cut
    assert max(samples.lengths()) == 256


def test_a_model_without_a_tokenizer_cannot_read_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the model has no tokenizer .*give its inputs as arrays in an \.npz"):
        from_rows(rows_of({"text": "hello"}), ModelInputs("text-classification", TOKEN_INPUTS, tmp_path))


def test_a_damaged_tokenizer_is_named(assets: Path) -> None:
    (assets / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(DataError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(assets)


def test_a_checkpoint_with_only_a_vocabulary_is_read_by_transformers(
    model: Any, minilm_checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copy(minilm_checkpoint / name, tmp_path / name)
    rows = rows_of(*({"text": text} for text in TEXTS))
    old = from_rows(rows, ModelInputs("feature-extraction", TOKEN_INPUTS, tmp_path), max_length=256)
    assert ids(old) == ids(from_rows(rows, model("feature-extraction")))


def test_sentence_transformers_lower_case_and_prompts_are_kept(assets: Path) -> None:
    change(assets / "config_sentence_transformers.json", prompts={"query": "query: ", "passage": "passage: "})
    model = ModelInputs("sentence-embedding", TOKEN_INPUTS, assets)
    backend = load_tokenizer(assets).backend
    samples = from_rows(rows_of({"query": "q", "document": "d"}), model)
    assert words(samples, backend, 0) == ["[CLS]", "query", ":", "q", "[SEP]"]
    assert words(samples, backend, 1) == ["[CLS]", "passage", ":", "d", "[SEP]"]
    change(assets / "sentence_bert_config.json", do_lower_case=True)
    assert load_tokenizer(assets).lowercase


def test_queries_come_before_documents_and_a_document_counts_once(model: Any) -> None:
    values = [("a", "first"), ("b", "second"), ("c", "first")]
    rows = rows_of(*({"query": query, "document": document} for query, document in values))
    samples = from_rows(rows, model("sentence-embedding"))
    assert samples.truth == {"kind": "retrieval", "queries": 3, "documents": 2, "relevant": [0, 1, 0]}
    assert len(samples) == 5
    assert ids(samples)[3] != ids(samples)[4]


def test_pairs_with_a_score_stand_side_by_side(model: Any) -> None:
    rows = rows_of(
        {"text_a": "one", "text_b": "two", "score": "0.5"}, {"text_a": "three", "text_b": "four", "score": 1}
    )
    samples = from_rows(rows, model("sentence-embedding"))
    alone = from_rows(rows_of(*({"text": t} for t in ("one", "two", "three", "four"))), model("sentence-embedding"))
    assert samples.truth == {"kind": "similarity", "pairs": 2, "score": [0.5, 1.0]}
    assert ids(samples) == ids(alone)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a"}, "has no column 'document'"),
        ({"sentence": "a"}, "has no column 'text'"),
        ({"text_a": "a", "text_b": "b", "score": "high"}, "line 1: 'score' should be a number"),
        ({"text_a": "a", "text_b": "b", "score": float("nan")}, "line 1: 'score' is NaN"),
    ],
)
def test_rows_that_cannot_be_embedded_are_named(model: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_rows(rows_of(row), model("sentence-embedding"))


@pytest.mark.parametrize(
    ("labels", "given", "data_names", "expected"),
    [
        (("neg", "pos"), ["pos", "neg"], (), [1, 0]),
        (("NEGATIVE", "POSITIVE"), ["positive", "Negative"], (), [1, 0]),
        (("neg", "pos"), [1, "0"], (), [1, 0]),
        ((), [3, "0"], (), [3, 0]),
        (("1", "0"), ["1", "0"], (), [0, 1]),
        # The data's classes are in another order than the model's.
        (("pos", "neg"), [0, 1], ("neg", "pos"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ["cat", "dog"], ("cat", "dog"), [0, 1]),
        (("LABEL_0", "LABEL_1"), [0, 1], ("cat", "dog"), [0, 1]),
        ((), ["dog"], ("cat", "dog"), [1]),
    ],
)
def test_a_label_is_a_name_or_an_index(
    model: Any, labels: tuple[str, ...], given: list[Any], data_names: tuple[str, ...], expected: list[int]
) -> None:
    rows = rows_of(*({"text": "x", "label": label} for label in given), label_names=data_names)
    samples = from_rows(rows, model("text-classification", labels=labels))
    assert samples.truth == {"kind": "label", "label": expected}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("bad", "line 2: label 'bad' is neither a name nor an index of a class; the classes are neg, pos"),
        (2, "line 2: label 2 is no index of the model's 2 classes"),
        (-1, "line 2: label -1 is no index"),
        (0.5, "line 2: label 0.5 is neither"),
        (None, "line 2 has no 'label'"),
    ],
)
def test_a_label_that_the_model_does_not_know_is_named(model: Any, label: Any, message: str) -> None:
    rows = rows_of({"text": "x", "label": "pos"}, {"text": "y", "label": label})
    with pytest.raises(DataError, match=message):
        from_rows(rows, model("text-classification", labels=("neg", "pos")))


TAGS = ("O", "B-PER", "I-PER")


def test_a_words_label_stands_at_its_first_token(model: Any, minilm_checkpoint: Path) -> None:
    backend = load_tokenizer(minilm_checkpoint).backend
    rows = rows_of(
        {"tokens": ["Guido", "tokenizes", "embeddings"], "labels": ["B-PER", "O", 2]},
        {"tokens": "Guido sleeps", "labels": "B-PER O"},
        {"tokens": '["Guido"]', "labels": "[-100]"},
    )
    samples = from_rows(rows, model("token-classification", labels=TAGS))
    assert words(samples, backend, 0) == [
        "[CLS]", "guido", "token", "##izes", "em", "##bed", "##ding", "##s", "[SEP]",
    ]  # fmt: skip
    assert samples.truth is not None
    assert samples.truth["kind"] == "labels"
    assert samples.truth["labels"] == [
        [-100, 1, 0, -100, 2, -100, -100, -100, -100],
        [-100, 1, 0, -100],
        [-100, -100, -100],
    ]


def test_labels_of_words_that_are_cut_off_are_left_out(model: Any) -> None:
    rows = rows_of({"tokens": ["word"] * 400, "labels": ["O"] * 400})
    samples = from_rows(rows, model("token-classification", labels=TAGS))
    assert samples.truth is not None
    assert samples.truth["labels"] == [[-100, *[0] * 254, -100]]


def test_labels_reach_as_far_as_inputs_of_a_fixed_length(model: Any) -> None:
    specs = tuple(InputSpec(spec.name, "int64", ("batch", 6)) for spec in TOKEN_INPUTS)
    rows = rows_of({"tokens": ["word"], "labels": ["O"]})
    samples = from_rows(rows, model("token-classification", specs, TAGS))
    assert samples.truth is not None
    assert samples.truth["labels"] == [[-100, 0, -100, -100, -100, -100]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "labels": ["O"]}, "line 1 has 2 tokens and 1 labels"),
        ({"tokens": ["a"], "labels": ["B-LOC"]}, "line 1: label 'B-LOC' is neither"),
        ({"tokens": ["a", 3], "labels": ["O", "O"]}, "line 1: 'tokens' should hold words, there is 3"),
        ({"tokens": 7, "labels": ["O"]}, "line 1: 'tokens' should be a list"),
        ({"tokens": '["a"', "labels": "O"}, "line 1: 'tokens' looks like JSON, but is not"),
        ({"text": "a"}, "has no column 'tokens'"),
    ],
)
def test_broken_tags_are_named(model: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_rows(rows_of(row), model("token-classification", labels=TAGS))


def test_offsets_point_into_the_context_and_nowhere_else(model: Any, reference: Any) -> None:
    question, context = "Who sleeps?", "In Delft,  Guido sleeps."
    rows = rows_of({"question": question, "context": context, "answers": {"text": ["Guido"], "answer_start": [11]}})
    samples = from_rows(rows, model("question-answering"))
    truth = samples.truth
    assert truth is not None
    assert truth["contexts"] == [context]
    assert truth["answers"] == [["Guido"]]
    assert ids(samples)[0] == reference(question, context)["input_ids"]
    tokens = [context[start:end] for start, end in truth["offsets"][0]]
    assert tokens == ["", "", "", "", "", "In", "Del", "ft", ",", "Guido", "sleeps", ".", ""]


def test_a_long_context_is_cut_and_the_question_never(model: Any, reference: Any) -> None:
    question, context = "what is it " * 50, "word " * 400
    rows = rows_of({"question": question, "context": context, "answers": []})
    samples = from_rows(rows, model("question-answering"))
    expected = reference(question, context, truncation="only_second", max_length=256)
    assert ids(samples)[0] == expected["input_ids"]
    assert samples.truth is not None
    assert len(samples.truth["offsets"][0]) == 256


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("Delft", ["Delft"]),
        (["Delft", "in Delft", "Delft"], ["Delft", "in Delft"]),
        ('["Delft", "Leiden"]', ["Delft", "Leiden"]),
        ('{"text": ["Delft"], "answer_start": [3]}', ["Delft"]),
        ({"text": []}, []),
    ],
)
def test_answers_come_in_several_forms(model: Any, answers: Any, expected: list[str]) -> None:
    rows = rows_of({"question": "Where?", "context": "In Delft.", "answers": answers})
    samples = from_rows(rows, model("question-answering"))
    assert samples.truth is not None
    assert samples.truth["answers"] == [expected]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a " * 300, "context": "b", "answers": "b"}, "line 1: the question leaves no room"),
        ({"question": "a", "context": "b", "answers": [1]}, "line 1: 'answers' should be a text or a list of texts"),
        ({"question": "a", "context": "b", "answers": {"start": 1}}, "'answers' is an object without 'text'"),
        ({"question": "a", "context": "b", "answers": None}, "line 1 has no 'answers'"),
        ({"question": "a", "text": "b"}, "has no column 'context'"),
    ],
)
def test_broken_questions_are_named(model: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_rows(rows_of(row), model("question-answering"))


def test_a_masked_word_is_one_token_at_one_place(model: Any) -> None:
    rows = rows_of(
        {"text": "The [MASK] is blue.", "label": "sky"},
        {"text": "<mask> is blue.", "label": 3712},
    )
    samples = from_rows(rows, model("fill-mask"))
    assert samples.truth == {"kind": "mask", "position": [2, 1], "label": [3712, 3712]}
    assert ids(samples)[0][2] == ids(samples)[1][1] == 103


def test_plain_text_is_masked_by_the_seed_and_the_rows_number(model: Any) -> None:
    values = [
        {"text": "several words that could be masked here"},
        {"text": "and some others besides, of which there are a few more than in the first of the two rows"},
    ]
    plain = ids(from_rows(rows_of(*values), model("feature-extraction")))
    samples = from_rows(rows_of(*values), model("fill-mask"), seed=3)
    assert samples.truth is not None
    restored = ids(samples)
    for sample, position, label in zip(restored, samples.truth["position"], samples.truth["label"], strict=True):
        assert sample.count(103) == 1
        assert 0 < position < len(sample) - 1
        assert sample[position] == 103
        sample[position] = label
    assert restored == plain
    second = from_rows(Rows(values[1:], [2], "data.jsonl"), model("fill-mask"), seed=3)
    assert ids(second)[0] == ids(samples)[1]
    positions = [from_rows(rows_of(*values), model("fill-mask"), seed=s).truth["position"] for s in range(6)]  # type: ignore[index]
    assert len({tuple(place) for place in positions}) > 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "[MASK] [MASK]", "label": "a"}, "line 1 holds 2 masks"),
        ({"text": "a [MASK]"}, "line 1 has a mask but no 'label'"),
        ({"text": "a word", "label": "b"}, r"line 1 has a 'label' but no mask: write \[MASK\]"),
        ({"text": "a [MASK]", "label": "embeddings"}, "'embeddings' is not one token but 4"),
        ({"text": "a [MASK]", "label": 99999}, "label 99999 is no token id"),
        ({"text": "word " * 300 + "[MASK]", "label": "a"}, "line 1: the mask lies beyond the 256 tokens"),
        ({"text": ""}, "line 1 holds no token that could be masked"),
    ],
)
def test_broken_masks_are_named(model: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_rows(rows_of(row), model("fill-mask"))


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE tokenizer as RoBERTa has one, trained on a few sentences."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        ["the sky is blue", "the sea is blue", "sky and the sea and sky"] * 5, 400, 1, False, special
    )
    tokenizer._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer.save(str(folder / "tokenizer.json"))
    change(folder / "tokenizer_config.json", pad_token="<pad>", mask_token={"content": "<mask>", "lstrip": True})
    change(folder / "config.json", model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    return folder


def test_where_spaces_belong_to_tokens_words_keep_theirs(byte_level: Path) -> None:
    specs = (InputSpec("input_ids", "int64", ("b", "s")),)
    backend = load_tokenizer(byte_level).backend
    tagged = from_rows(
        rows_of({"tokens": ["the", "sky"], "labels": [0, 1]}), ModelInputs("token-classification", specs, byte_level)
    )
    assert words(tagged, backend, 0) == ["<s>", "Ġthe", "Ġsky", "</s>"]
    assert tagged.truth == {"kind": "labels", "labels": [[-100, 0, 1, -100]]}
    masked = from_rows(
        rows_of({"text": "the [MASK] is blue", "label": "sky"}, {"text": "<mask> and sea", "label": "sky"}),
        ModelInputs("fill-mask", specs, byte_level),
    )
    assert masked.truth is not None
    assert [backend.id_to_token(token) for token in masked.truth["label"]] == ["Ġsky", "sky"]
    assert masked.padding == {"input_ids": 1}


@pytest.mark.parametrize(
    ("task", "truth"),
    [
        ("sentence-embedding", None), ("feature-extraction", None), ("text-classification", None),
        ("token-classification", None), ("question-answering", None), ("fill-mask", "mask"),
    ],
)  # fmt: skip
def test_every_text_task_can_be_fed_with_what_python_brings_along(model: Any, task: str, truth: str | None) -> None:
    first, again = (builtin_samples(model(task), 12, seed=4) for _ in range(2))
    assert len(first) == 12
    assert ids(first) == ids(again)
    assert (first.truth or {}).get("kind") == truth
    assert len({tuple(sample) for sample in ids(first)}) == 12
