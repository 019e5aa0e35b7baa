"""The example's model has learnt something, from files that it is not judged on, and is the same each time."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SMALL = {
    "vocabulary": 300, "hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 48, "sequence": 32,
    "batch": 2, "steps": 6, "threads": 1,
}  # fmt: skip


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def few_files(tiny_llama_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of 20 modules."""
    sources = tiny_llama_script.sources

    def first(library: Path) -> Iterator[Path]:
        return (path for _, path in zip(range(20), sources(library), strict=False))

    monkeypatch.setattr(tiny_llama_script, "sources", first)


def test_has_learnt_more_than_how_often_each_token_comes(tiny_llama_data: Path) -> None:
    report = json.loads((tiny_llama_data / "training.json").read_text())
    assert report["perplexity"] < report["unigram_perplexity"] / 4
    assert report["parameters"] == 852864


def test_is_judged_on_whole_files_that_it_did_not_see(tiny_llama_script: ModuleType, tiny_llama_data: Path) -> None:
    held_out, calibration = (texts(tiny_llama_data / f"{name}.jsonl") for name in ("evaluation", "calibration"))
    assert held_out and calibration and not set(held_out) & set(calibration)
    paths = list(tiny_llama_script.sources(Path(sysconfig.get_path("stdlib"))))
    library = [path.read_bytes().decode(errors="replace") for path in paths]
    seen, unseen = tiny_llama_script.split([text for text in library if text.strip()], tiny_llama_script.SEED)
    assert unseen == held_out
    assert set(calibration) <= set(seen) and not set(seen) & set(held_out)
    assert not any("/test/" in str(path) or path.name.startswith("_sysconfigdata") for path in paths)


def test_tokenizer_begins_a_text_once_and_gives_it_back(tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama, local_files_only=True)
    text = "def f(x):\n\treturn x ** 2  # naïve ☃\n"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    chat: Any = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    said = tokenizer.apply_chat_template([*chat, chat[0]], add_generation_prompt=True, tokenize=False)
    assert said == "<s><|user|>\nHi\n<|assistant|>\nHello</s>\n<|user|>\nHi\n<|assistant|>\n"


@pytest.mark.usefixtures("few_files")
def test_is_the_same_each_time(tiny_llama_script: ModuleType, tmp_path: Path) -> None:
    first, second = (tiny_llama_script.train(tmp_path / name, **SMALL) for name in ("a", "b"))
    names = {path.relative_to(first.parent) for path in first.parent.rglob("*") if path.is_file()}
    assert {"evaluation.jsonl", "calibration.jsonl", "checkpoint/model.safetensors"} <= {str(name) for name in names}
    for name in names:
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes(), name


@pytest.mark.usefixtures("few_files")
def test_is_trained_once_and_whole_or_not_at_all(
    tiny_llama_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = tiny_llama_script.fit

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_llama_script, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_llama_script.train(tmp_path, **SMALL)
    assert not (tmp_path / "checkpoint").exists()
    monkeypatch.setattr(tiny_llama_script, "fit", fit)
    trained = tiny_llama_script.train(tmp_path, **SMALL)
    monkeypatch.setattr(tiny_llama_script, "fit", interrupted)
    assert tiny_llama_script.train(tmp_path, **SMALL) == trained
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "calibration.jsonl", "checkpoint", "evaluation.jsonl", "training.json",
    ]  # fmt: skip
