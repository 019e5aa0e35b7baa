"""Preparing text for a language model: windows that say what they are, the same for the same data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small_tokenizers import checkpoint, save_tokenizer

from calibration import DataError
from calibration.language import load_language_tokenizer
from calibration.windows import Windows
from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.prepare import PrepareTextOptions, prepare_text
from stages.prepare import locate_data

TEXTS = [f"document {number}: the cat sat on the mat and the dog sat on log {number * 37}" for number in range(60)]


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer_files: Path) -> Artifact:
    return checkpoint(tokenizer_files)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write(tmp_path / "corpus.jsonl", [{"text": text} for text in TEXTS])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(model: Artifact, folder: Path, data: Path | None = None, **options: Any) -> Artifact:
    """`data` as windows for `model`, written somewhere in `folder`."""
    out = folder / f"out-{len(list(folder.glob('out-*')))}"
    out.mkdir()
    located = None if data is None else locate_data(str(data))
    return prepare_text(model, PrepareTextOptions(**options), out, data=located)


def test_windows_say_what_they_are(model: Artifact, lines: Path, tmp_path: Path) -> None:
    artifact = prepared(model, tmp_path, lines)
    windows = Windows.load(artifact.path)
    lengths = [len(load_language_tokenizer(model.path)(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    assert artifact.kind == "dataset"
    assert artifact.metadata == {
        "role": "evaluation",
        "evidence": f"{len(windows)} windows of 64 tokens from 60 documents of corpus.jsonl",
        "evidence_kind": "data",
        "rows": 60,
        "columns": ["text"],
        "samples": len(windows),
        "length": 64,
        "stride": 32,
        "counted": sum(lengths) + 59,
        "truth": "text",
        "classes": None,
        "tokens": {"longest": max(lengths), "mean": round(sum(lengths) / 60, 1)},
        "cut": 0,
        "warnings": [],
    }
    assert artifact.made_from["model"] == model.digest
    Artifact.read(artifact.path).verify()


def test_calibration_packs_what_evaluation_slides_over(model: Artifact, lines: Path, tmp_path: Path) -> None:
    evaluation = prepared(model, tmp_path, lines, length=32, stride=8)
    calibration = prepared(model, tmp_path, lines, role="calibration", length=32)
    assert (evaluation.metadata["length"], evaluation.metadata["stride"]) == (32, 8)
    assert (calibration.metadata["length"], calibration.metadata["stride"]) == (32, None)
    windows = Windows.load(calibration.path)
    assert windows.counted == len(windows) * 31
    assert 3 * len(windows) < evaluation.metadata["samples"]
    with pytest.raises(InputError, match="a stride is for evaluation"):
        prepared(model, tmp_path, lines, role="calibration", stride=8)


def test_the_same_data_give_the_same_bytes_wherever_they_lie(model: Artifact, lines: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / lines.name
    moved.write_bytes(lines.read_bytes())
    first, second = (prepared(model, tmp_path, path, samples=8, seed=2) for path in (lines, moved))
    assert first.digest == second.digest
    assert first.made_from == second.made_from
    assert prepared(model, tmp_path, lines, samples=8, seed=3).digest != first.digest
    every, other = (prepared(model, tmp_path, lines, seed=seed).digest for seed in (2, 3))
    assert every != other


@pytest.mark.parametrize("role", ["evaluation", "calibration"])
def test_at_most_so_many_windows_are_drawn(model: Artifact, lines: Path, tmp_path: Path, role: str) -> None:
    every = prepared(model, tmp_path, lines, role=role, length=16)
    some = prepared(model, tmp_path, lines, role=role, length=16, samples=40)
    total = every.metadata["samples"]
    assert total > 40
    assert some.metadata["evidence"] == f"40 of {total} windows of 16 tokens from 60 documents of corpus.jsonl"
    held = [{tuple(row) for row in Windows.load(artifact.path).tokens.tolist()} for artifact in (every, some)]
    assert held[1] < held[0]


def test_without_a_number_512_windows_are_drawn(model: Artifact, lines: Path, tmp_path: Path) -> None:
    artifact = prepared(model, tmp_path, lines, length=8, stride=1)
    assert artifact.metadata["samples"] == 512
    assert artifact.metadata["evidence"].startswith("512 of ")


def test_no_more_text_is_read_than_four_times_what_is_wanted(
    model: Artifact, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.language._PART", 200)
    artifact = prepared(model, tmp_path, lines, length=16, samples=3, role="calibration")
    read = artifact.metadata["evidence"].partition(" from ")[2]
    assert read.endswith(" of 60 documents of corpus.jsonl")
    assert int(read.split()[0]) < 15


def test_few_windows_to_calibrate_with_are_warned_of(model: Artifact, lines: Path, tmp_path: Path) -> None:
    few = prepared(model, tmp_path, lines, role="calibration", samples=5)
    (warning,) = few.metadata["warnings"]
    assert warning.startswith("5 windows of 64 tokens for calibration: ")
    assert prepared(model, tmp_path, lines, samples=5).metadata["warnings"] == []
    enough = prepared(model, tmp_path, lines, role="calibration", length=8, samples=128)
    assert (enough.metadata["samples"], enough.metadata["warnings"]) == (128, [])


def test_without_data_a_model_reads_docstrings_one_part_for_each_role(tokenizer_files: Path, tmp_path: Path) -> None:
    model = checkpoint(tokenizer_files, positions=2048)
    tokenizer = load_language_tokenizer(model.path)
    found = {}
    for role in ("evaluation", "calibration"):
        artifact = prepared(model, tmp_path, role=role, length=2048)
        documents = artifact.metadata["evidence"].partition(" tokens from ")[2]
        said = f" docstrings of the Python standard library (no --{role} was given)"
        assert documents.endswith(said)
        assert artifact.metadata["evidence_kind"] == "builtin"
        assert "data" not in artifact.made_from
        windows = Windows.load(artifact.path)
        # What stands between two ends of text in one window is a whole document.
        whole = [part for row in windows.tokens for part in tokenizer.decode(row).split("</s>")[1:-1]]
        found[role] = set(whole)
        assert len(found[role]) > 50
    assert not found["evaluation"] & found["calibration"]
    assert prepared(model, tmp_path, samples=9).digest == prepared(model, tmp_path, samples=9).digest


def test_chats_go_through_the_models_template(model: Artifact, tmp_path: Path) -> None:
    rows = [{"q": f"question {number}", "a": "the cat sat on the mat"} for number in range(20)]
    path = write(tmp_path / "chats.jsonl", rows)
    artifact = prepared(model, tmp_path, path, columns={"prompt": "q", "completion": "a"})
    assert artifact.metadata["evidence"].endswith(" from 20 chats of chats.jsonl")
    assert artifact.metadata["columns"] == ["prompt", "completion"]
    text = load_language_tokenizer(model.path).decode(Windows.load(artifact.path).tokens[0])
    assert text.startswith("<s><|user|>\nquestion ")
    assert text.count("<s>") == 1


def test_chats_for_a_model_without_a_template_are_refused(tmp_path: Path) -> None:
    plain = checkpoint(save_tokenizer(tmp_path / "plain", template=None))
    path = write(tmp_path / "chats.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(
        DataError, match=r"chats.jsonl holds chats \('prompt', 'completion'\), but the model has no chat"
    ):
        prepared(plain, tmp_path, path)


def test_plain_text_is_taken_as_it_is(model: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02}.txt").write_text(text)
    whole = prepared(model, tmp_path, folder)
    assert whole.metadata["evidence"].endswith(" from 60 documents of books")
    one = tmp_path / "book.txt"
    one.write_text("\n".join(TEXTS))
    artifact = prepared(model, tmp_path, one)
    assert artifact.metadata["evidence"].endswith(" from 1 document of book.txt")
    assert artifact.metadata["counted"] == artifact.metadata["tokens"]["longest"]


@pytest.mark.parametrize("role", ["evaluation", "calibration"])
def test_text_shorter_than_a_window_is_refused(model: Artifact, tmp_path: Path, role: str) -> None:
    path = write(tmp_path / "short.jsonl", [{"text": "the cat"}])
    with pytest.raises(DataError, match=r"short.jsonl holds \d+ tokens, and one window has 64: give more text"):
        prepared(model, tmp_path, path, role=role)


def test_a_bad_row_is_named_with_its_file(model: Artifact, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [{"text": "the cat"}, {"text": ["the", "cat"]}])
    with pytest.raises(DataError, match=r"bad.jsonl, line 2: 'text' should be text, it is \['the', 'cat'\] \(list\)"):
        prepared(model, tmp_path, path)


def test_windows_fit_the_model(model: Artifact, lines: Path, tmp_path: Path, tokenizer_files: Path) -> None:
    assert prepared(checkpoint(tokenizer_files, positions=2048), tmp_path, lines).metadata["length"] == 512
    assert prepared(model, tmp_path, lines, length=64).metadata["length"] == 64
    with pytest.raises(InputError, match="windows of 65 tokens are longer than what the model was made for, 64 tokens"):
        prepared(model, tmp_path, lines, length=65)
    with pytest.raises(DataError, match="windows of 64 tokens cannot be 64 apart"):
        prepared(model, tmp_path, lines, stride=64)
    with pytest.raises(ValidationError):
        PrepareTextOptions(max_length=8)  # type: ignore[call-arg]


def test_another_models_tokenizer_is_noticed(lines: Path, tmp_path: Path, tokenizer_files: Path) -> None:
    windows = Windows.load(prepared(checkpoint(tokenizer_files), tmp_path, lines).path)
    highest = int(windows.tokens.max())
    prepared(checkpoint(tokenizer_files, vocabulary=highest + 1), tmp_path, lines)
    message = rf"the tokenizer gives the token {highest} \('.*'\), the model knows only {highest} tokens"
    with pytest.raises(InputError, match=message):
        prepared(checkpoint(tokenizer_files, vocabulary=highest), tmp_path, lines)


def test_other_artifacts_are_refused(model: Artifact, lines: Path, tmp_path: Path) -> None:
    data = locate_data(str(lines))
    assert data is not None
    with pytest.raises(InputError, match="is a data, not a checkpoint"):
        prepare_text(data, PrepareTextOptions(), tmp_path, data=data)
    with pytest.raises(InputError, match="is a checkpoint, not data"):
        prepare_text(model, PrepareTextOptions(), tmp_path, data=model)
