"""From rows to windows: no token is lost or counted twice, and every window begins as the tokenizer begins a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import CHAT, load, save_tokenizer

from calibration import DataError, Rows, read_rows
from calibration.language import (
    TokenStream,
    draw_windows,
    load_language_tokenizer,
    pack,
    put_before,
    slide,
    token_stream,
)
from calibration.windows import Windows

TEXTS = [f"document {number}: the cat sat on the mat, größer\n" * (1 + number % 5) for number in range(30)]
BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tmp_path_factory.mktemp("tokenizer"))


def rows_of(*values: dict[str, Any]) -> Rows:
    return Rows(values, range(1, len(values) + 1), "data.jsonl", "line", total=len(values))


def texts(*values: str) -> Rows:
    return rows_of(*({"text": value} for value in values))


def numbered(count: int, prefix: tuple[int, ...] = ()) -> TokenStream:
    """A stream of the tokens 1000, 1001, …, which can be told apart."""
    return TokenStream(np.arange(count) + 1000, prefix, np.array([count]), 1, "documents", "data.jsonl")


def test_the_tokens_of_a_stream_are_those_of_its_documents(tokenizer: Any) -> None:
    stream = token_stream(texts(*TEXTS), tokenizer, seed=3)
    found = tokenizer.decode(stream.tokens).split("</s>")
    assert sorted(found) == sorted(TEXTS)
    assert found != TEXTS
    assert stream.rows == 30
    assert stream.lengths.tolist() == [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in found]
    assert np.count_nonzero(stream.tokens == EOS) == 29
    assert BOS not in stream.tokens


def test_the_seed_decides_the_order(tokenizer: Any) -> None:
    first, again, other = (token_stream(texts(*TEXTS), tokenizer, seed=seed).tokens for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()


def test_a_tokenizer_without_an_end_of_text_joins_documents_as_they_are(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, ends=False)
    stream = token_stream(texts(*TEXTS), tokenizer)
    assert len(stream.tokens) == stream.lengths.sum()
    assert EOS not in stream.tokens


def test_a_document_that_says_where_it_ends_is_not_ended_twice(tokenizer: Any) -> None:
    stream = token_stream(texts("the cat</s>", "the dog</s>\n", "the cat</s>"), tokenizer)
    assert np.count_nonzero(stream.tokens == EOS) == 3


@pytest.mark.parametrize(
    ("before", "after", "prefix"),
    [(["<s>"], [], (0,)), ([], [], ()), (["<s>"], ["</s>"], (0,)), ([], ["</s>"], ()), (["<mask>", "<s>"], [], (2, 0))],
)
def test_windows_begin_with_what_the_tokenizer_puts_before_a_text(
    tmp_path: Path, before: list[str], after: list[str], prefix: tuple[int, ...]
) -> None:
    tokenizer = load(tmp_path, before=before, after=after)
    assert put_before(tokenizer) == prefix
    stream = token_stream(texts(*TEXTS), tokenizer)
    for windows in (pack(stream, 16), slide(stream, 16)):
        assert windows.tokens.dtype == np.int64
        assert windows.tokens[:, : len(prefix)].tolist() == [list(prefix)] * len(windows)
        assert not np.isin(windows.tokens[:, len(prefix) :], (0, 2)).any()
        assert windows.first.min() == max(1, len(prefix))


@pytest.mark.parametrize("prefix", [(), (7,), (7, 8)])
def test_packed_windows_share_nothing_and_leave_out_only_the_end(prefix: tuple[int, ...]) -> None:
    windows = pack(numbered(103, prefix), 10)
    held = windows.tokens[:, len(prefix) :].ravel()
    np.testing.assert_array_equal(held, np.arange(len(held)) + 1000)
    assert 103 - len(held) < 10 - len(prefix)
    assert set(windows.first.tolist()) == {max(1, len(prefix))}
    assert windows.lengths.tolist() == [103]


@pytest.mark.parametrize("prefix", [(), (7,), (7, 8)])
@pytest.mark.parametrize(("length", "stride"), [(10, 5), (10, None), (9, None), (10, 1), (10, 8), (16, 3), (3, 1)])
@pytest.mark.parametrize("more", [0, 1, 2, 5, 37, 40])
def test_sliding_windows_count_every_token_once_with_enough_before_it(
    prefix: tuple[int, ...], length: int, stride: int | None, more: int
) -> None:
    total = length - len(prefix) + more
    windows = slide(numbered(total, prefix), length, stride)
    stride = length // 2 if stride is None else stride
    counted = [row[first:] for row, first in zip(windows.tokens, windows.first, strict=True)]
    # Nothing predicts the first token of all where nothing is put before it.
    np.testing.assert_array_equal(np.concatenate(counted), np.arange(total)[not prefix :] + 1000)
    assert windows.counted == total - (not prefix)
    assert all(first >= length - stride for first in windows.first[1:])
    for row in windows.tokens:
        assert np.all(np.diff(row[len(prefix) :]) == 1)


@pytest.mark.parametrize(("prefix", "stride"), [((), 10), ((7,), 10), ((7, 8), 9), ((), 0)])
def test_a_stride_that_would_leave_tokens_out_is_refused(prefix: tuple[int, ...], stride: int) -> None:
    with pytest.raises(DataError, match=f"windows of 10 tokens cannot be {stride} apart: the stride is 1 to "):
        slide(numbered(100, prefix), 10, stride)


@pytest.mark.parametrize("cut", [pack, slide])
def test_text_shorter_than_a_window_is_told_with_both_lengths(cut: Any) -> None:
    assert len(cut(numbered(9, (7,)), 10)) == 1
    with pytest.raises(DataError, match=r"data.jsonl holds 8 tokens, and one window has 10: give more text"):
        cut(numbered(8, (7,)), 10)
    with pytest.raises(DataError, match="a window of 1 tokens holds no prediction"):
        cut(numbered(8), 1)


def test_windows_are_drawn_by_the_seed_in_their_own_order() -> None:
    every = pack(numbered(500), 10)
    first, again, other = (draw_windows(every, 12, seed).tokens[:, 0].tolist() for seed in (1, 1, 2))
    assert first == again == sorted(first) != other
    assert len(set(first)) == 12
    sliding = draw_windows(slide(numbered(500), 10, 5), 12, 1)
    starts = sliding.tokens[:, 0].tolist()
    assert [5 if start > 1000 else 1 for start in starts] == sliding.first.tolist()
    assert draw_windows(every, None) is draw_windows(every, 50) is every


def test_windows_come_back_from_their_file(tokenizer: Any, tmp_path: Path) -> None:
    windows = slide(token_stream(texts(*TEXTS), tokenizer), 20, 7)
    windows.save(tmp_path)
    loaded = Windows.load(tmp_path)
    for name in ("tokens", "first", "lengths"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(windows, name))


def test_a_long_text_is_read_in_parts_that_are_the_whole(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.language._PART", 200)
    text = "".join(f"line {number} of the log\n" for number in range(100)) + "x" * 450
    stream = token_stream(texts(text), tokenizer)
    parts = tokenizer.decode(stream.tokens).split("</s>")
    assert len(parts) == len(stream.lengths) > 12
    assert max(map(len, parts)) <= 200
    assert sorted(part for part in parts if not part.startswith("x")) == sorted(
        part for part in parts if part.startswith("line ") and part.endswith("\n")
    )
    in_order = sorted(parts, key=lambda part: (part.startswith("x"), text.find(part)))
    assert "".join(in_order) == text
    assert stream.rows == 1


def test_no_more_documents_are_read_than_enough(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.language._PART", 200)
    every, some = (token_stream(texts(*TEXTS), tokenizer, enough=enough) for enough in (None, 100))
    assert 100 <= len(some.tokens) < 500 < len(every.tokens)
    assert some.rows == len(some.lengths) < 30
    np.testing.assert_array_equal(some.tokens, every.tokens[: len(some.tokens)])


CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "sat on the mat"}],
    [{"role": "user", "content": "the dog?"}, {"role": "assistant", "content": "sat on the log"}],
]
WRITTEN = [
    "<|user|>\nthe cat?\n<|assistant|>\nsat on the mat</s>\n",
    "<|user|>\nthe dog?\n<|assistant|>\nsat on the log</s>\n",
]


def test_a_chat_is_written_by_the_models_template_without_a_second_beginning(tokenizer: Any) -> None:
    stream = token_stream(rows_of({"messages": CHATS[0]}), tokenizer)
    (window,) = pack(stream, len(stream.tokens) + 1).tokens
    assert window.tolist() == tokenizer.apply_chat_template(CHATS[0], return_dict=False)
    assert window.tolist().count(BOS) == 1
    both = token_stream(rows_of(*({"messages": chat} for chat in CHATS)), tokenizer)
    assert both.kind == "chats"
    assert tokenizer.decode(both.tokens) in ("".join(WRITTEN), "".join(reversed(WRITTEN)))


def test_what_a_template_writes_that_the_tokenizer_does_not_is_kept(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, before=[])
    stream = token_stream(rows_of({"messages": CHATS[0]}), tokenizer)
    assert tokenizer.decode(stream.tokens) == "<s>" + WRITTEN[0]


def test_a_text_may_begin_with_the_letters_of_a_special_token(tokenizer: Any) -> None:
    assert token_stream(texts("<s>the cat"), tokenizer).tokens[0] == BOS


@pytest.mark.parametrize(
    "row",
    [
        {"messages": json.dumps(CHATS[0])},
        {"prompt": "the cat?", "completion": "sat on the mat"},
        {"prompt": CHATS[0][:1], "completion": CHATS[0][1:]},
        {"prompt": "the cat?", "messages": CHATS[0], "text": "something else"},
        {"messages": np.array(CHATS[0], dtype=object)},
        {"messages": [{**message, "tool_calls": None} for message in CHATS[0]]},
    ],
)
def test_a_chat_may_be_given_in_several_forms(tokenizer: Any, row: dict[str, Any]) -> None:
    assert tokenizer.decode(token_stream(rows_of(row), tokenizer).tokens) == WRITTEN[0]


def test_fields_that_a_table_fills_with_nothing_are_not_there_for_the_template(tmp_path: Path) -> None:
    tokenizer = load(
        tmp_path, template="{% for m in messages %}{{ m.role }}{{ ' named' if m.name is defined }};{% endfor %}"
    )
    chat = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": "x"}]
    assert tokenizer.decode(token_stream(rows_of({"messages": chat}), tokenizer).tokens) == "user;assistant named;"


def test_an_answer_may_be_a_call_of_a_tool(tmp_path: Path) -> None:
    tokenizer = load(
        tmp_path, template="{% for m in messages %}{{ m.content is none }}{{ m.tool_calls | length }}{% endfor %}"
    )
    chat = [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]
    assert tokenizer.decode(token_stream(rows_of({"messages": chat}), tokenizer).tokens) == "True1"


def test_a_template_that_writes_the_date_gives_the_same_tokens_every_day(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, template="{{ strftime_now('%d %b %Y') }}")
    assert tokenizer.decode(token_stream(rows_of({"messages": CHATS[0]}), tokenizer).tokens) == "26 Jul 2024"


def test_rows_with_text_too_are_documents_for_a_model_without_a_template(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, template=None)
    stream = token_stream(rows_of({"messages": CHATS[0], "text": "the cat"}), tokenizer)
    assert (stream.kind, tokenizer.decode(stream.tokens)) == ("documents", "the cat")
    for row in ({"messages": CHATS[0]}, {"prompt": "a", "completion": "b"}):
        with pytest.raises(DataError, match=r"data.jsonl holds chats \(.*\), but the model has no chat template"):
            token_stream(rows_of(row), tokenizer)


USER = {"role": "user", "content": "the cat?"}


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ({"text": "a"}, {"text": 5}, r"line 2: 'text' should be text, it is 5 \(int\)"),
        ({"text": "a"}, {"text": ""}, "line 2: 'text' is empty: leave such rows out"),
        ({"text": "a"}, {"text": " \n"}, "line 2: 'text' is empty"),
        ({"text": "a"}, {"text": None}, "line 2 has no 'text'"),
        ({"text": "a"}, {"text": "\ud83d"}, "line 2: 'text' holds half of a surrogate pair"),
        ({"text": "a"}, {"messages": [USER]}, "line 1 has no 'messages'"),
        ({"prompt": "a"}, {"prompt": "b"}, "has no column 'completion'; it has 'prompt'"),
        ({"title": "a"}, {"title": "b"}, "has no column 'text'; it has 'title'"),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": 3}, "line 2: 'completion' should be a list"),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": "a", "completion": " "},
            "line 2: message 1 .* an empty answer",
        ),
        (
            {"messages": [USER]},
            {"messages": []},
            r"line 2: 'messages' should be a list of messages, it is \[\] \(list\)",
        ),
        ({"messages": [USER]}, {"messages": USER}, r"line 2: 'messages' should be a list of messages, it is {'role'"),
        ({"messages": [USER]}, {"messages": "hello"}, "line 2: 'messages' looks like JSON, but is not"),
        (
            {"messages": [USER]},
            {"messages": [USER, "hello"]},
            "line 2: message 2 of 'messages' should have a 'role' and",
        ),
        ({"messages": [USER]}, {"messages": [{"content": "a"}]}, "message 1 of 'messages' should have a 'role'"),
        (
            {"messages": [USER]},
            {"messages": [{"from": "a", "value": "b"}]},
            "message 1 of 'messages' should have a 'role'",
        ),
        (
            {"messages": [USER]},
            {"messages": [{"role": "user"}]},
            "message 1 of 'messages' should have a 'content' that",
        ),
        (
            {"messages": [USER]},
            {"messages": [{"role": "user", "content": [1]}]},
            "should have a 'content' that is text",
        ),
        (
            {"messages": [USER]},
            {"messages": [{"role": "user", "content": "\udc80"}]},
            "line 2 holds half of a surrogate",
        ),
    ],
)
def test_a_bad_row_is_named(tokenizer: Any, good: dict[str, Any], bad: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        token_stream(rows_of(good, bad), tokenizer)
    assert str(refusal.value).startswith("data.jsonl")


def test_a_chat_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    alternate = "{% if messages[0].role != 'user' %}{{ raise_exception('the user comes first') }}{% endif %}" + CHAT
    tokenizer = load(tmp_path, template=alternate)
    with pytest.raises(
        DataError, match=r"data.jsonl, line 2: the model's chat template does not .*: the user comes first"
    ):
        token_stream(rows_of({"messages": CHATS[0]}, {"messages": CHATS[0][1:]}), tokenizer)


def test_a_document_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, template="{{ bos_token }}")
    with pytest.raises(DataError, match=r"data.jsonl, line 1: the tokenizer makes no tokens of it"):
        token_stream(rows_of({"messages": CHATS[0]}), tokenizer)


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": 3}}']
)
def test_a_tokenizer_that_is_missing_or_damaged_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        save_tokenizer(tmp_path)
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"the tokenizer in .* cannot be read \("):
        load_language_tokenizer(tmp_path)


def test_plain_text_is_read_as_documents(tokenizer: Any, tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS[:3]):
        (tmp_path / f"{number}.txt").write_text(text)
    stream = token_stream(read_rows(tmp_path), tokenizer)
    assert sorted(tokenizer.decode(stream.tokens).split("</s>")) == sorted(TEXTS[:3])
    assert tokenizer.decode(token_stream(read_rows(tmp_path / "1.txt"), tokenizer).tokens) == TEXTS[1]
