"""Suites of tasks: lm-evaluation-harness asks, our sessions answer, the gate judges task by task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from checkpoints import as_artifact, changed_copy
from workplace import Workplace

from pipeline import Recipe
from pipeline.flow import resolve
from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.session import open_language
from stages.language.suite import SuiteOptions, locate_suite, suite, task_results

CHOICE: dict[str, Any] = {
    "task": "next_word",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{begin}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
WRITE = CHOICE | {
    "task": "write_on",
    "output_type": "generate_until",
    "doc_to_target": "{{choices[gold]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match"}],
}
del WRITE["doc_to_choice"]
PAIRS = [
    ("def __init__(", "self", "import"), ("import ", "os", "def"), ("for i in ", "range", "is"),
    ("        return ", "None", "import"), ("    def __repr__(", "self", "raise"), ("if __name__ ", "==", "is"),
    ("raise ", "ValueError", "import"), ("while ", "True", "def"), ("from os import ", "path", "in"),
    ("    except ", "OSError", "def"),
]  # fmt: skip


def write_suite(folder: Path, *tasks: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    for task in tasks:
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    rows = [
        {"begin": begin, "choices": [right, wrong] if place % 2 else [wrong, right], "gold": int(not place % 2)}
        for place, (begin, right, wrong) in enumerate(PAIRS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def done(model: Artifact, folder: Path, out: Path, **options: Any) -> Artifact:
    out.mkdir()
    return suite(model=model, tasks=locate_suite(str(folder)), options=SuiteOptions(**options), out=out)


def test_choices_are_scored_by_what_the_session_says(tiny_checkpoint: Artifact, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    results = done(tiny_checkpoint, write_suite(tmp_path / "suite", CHOICE), tmp_path / "out")
    (task,) = results.metadata["tasks"]
    assert (task["name"], task["metric"], task["samples"]) == ("next_word", "acc", len(PAIRS))
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint.path / "tokenizer.json"))
    expected = []
    with open_language(tiny_checkpoint, 1) as session:
        for begin, right, wrong in PAIRS:
            likely = []
            for choice in (right, wrong):
                # Spaces at the end of a question go with the answer, as the library has it.
                context = begin.rstrip(" ")
                ids, before = (tokenizer.encode(text).ids for text in (begin + choice, context))
                scores = session.logits(np.array([ids]))[0].astype(np.float64)
                logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
                likely.append(sum(logs[place - 1, ids[place]] for place in range(len(before), len(ids))))
            expected.append(float(likely[0] > likely[1]))
    scored = task_results(results)["next_word"].statistics
    assert scored is not None
    assert scored[:, 0].tolist() == expected
    assert 0.5 < task["value"] == np.mean(expected), "it has learnt something"


def test_answers_are_written_until_their_end(tiny_checkpoint: Artifact, tmp_path: Path) -> None:
    results = done(tiny_checkpoint, write_suite(tmp_path / "suite", WRITE, CHOICE), tmp_path / "out", samples=3)
    names = [(task["name"], task["metric"], task["samples"]) for task in results.metadata["tasks"]]
    assert names == [("next_word", "acc", 3), ("write_on", "exact_match", 3)]
    chosen = done(tiny_checkpoint, tmp_path / "suite", tmp_path / "one", tasks=("write_on",), few_shot=0)
    assert [task["name"] for task in chosen.metadata["tasks"]] == ["write_on"]


def test_the_same_each_time_and_nothing_is_left_behind(tiny_checkpoint: Artifact, tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "suite", CHOICE)
    before = locate_suite(str(folder)).digest
    first, second = (done(tiny_checkpoint, folder, tmp_path / name) for name in ("a", "b"))
    assert first.digest == second.digest
    assert sorted(path.name for path in folder.iterdir()) == ["next_word.yaml", "rows.jsonl"]
    assert locate_suite(str(folder)).digest == before


def broken(**change: Any) -> dict[str, Any]:
    return CHOICE | change


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        (CHOICE, {"tasks": ("nxt_word",)}, "there is no task 'nxt_word' in .*; there are next_word"),
        (broken(dataset_path="someone/something", dataset_kwargs={}), {}, "the tasks in .* cannot be done"),
        (broken(dataset_kwargs={"data_files": {"test": "absent.jsonl"}}), {}, "the tasks in .* cannot be done"),
        (broken(doc_to_text="{{begin"), {}, "the tasks in .* cannot be done"),
        (broken(output_type="loglikelihood_rolling", metric_list=[{"metric": "word_perplexity"}]), {}, "perplexity"),
    ],
)
def test_what_cannot_be_asked_is_told(
    tiny_checkpoint: Artifact, tmp_path: Path, task: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    folder = write_suite(tmp_path / "suite", task)
    with pytest.raises(InputError, match=told):
        done(tiny_checkpoint, folder, tmp_path / "out", **options)


def test_a_folder_without_tasks_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        locate_suite(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="there is no task in"):
        locate_suite(str(tmp_path))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("suite_place"))


def test_a_run_judges_every_task(place: Workplace, tiny_llama: Path, tiny_llama_data: Path) -> None:
    """Ten questions decide nothing: the perplexity passes, the tasks leave it open, and nothing is published."""
    folder = write_suite(place.path / "suite", CHOICE)
    recipe = place.path / "recipe.yaml"
    asked: dict[str, Any] = {
        "model": str(tiny_llama),
        "name": "llama",
        "evaluation": str(tiny_llama_data / "evaluation.jsonl"),
        "variants": ["int4-onnx"],
        "objective": "size",
        "gates": {"max_drop": "5%"},
        "profile": {"batch_sizes": [1], "budget": "4s"},
        "verify": False,
        "suite": "suite",
    }
    recipe.write_text(yaml.safe_dump(asked))
    ended = place.optimize("run", recipe, "--json")
    assert ended.code == 0, ended.err
    original, variant = ended.json["variants"]
    assert original["verdict"] == "pass" and original["tasks"][0]["samples"] == len(PAIRS)
    assert variant["metric"]["drop_upper"] < 0.05
    assert variant["tasks"][0]["task"] == "next_word"
    assert variant["verdict"] == variant["tasks"][0]["verdict"] == "inconclusive"
    assert variant["reason"].startswith("task next_word: ")
    assert ended.json["release"]["variant"] == "original"
    assert "next_word" in ended.err and "next_word, acc" in Path(ended.json["report"]).read_text()
    asked["suite"] = {"path": str(folder), "max_drop": "100%"}
    recipe.write_text(yaml.safe_dump(asked))
    again = place.optimize("run", recipe, "--json")
    assert again.json["variants"][1]["verdict"] == "pass"
    assert all(stage["cached"] for stage in again.json["stages"] if stage["name"].startswith(("suite", "check")))


def test_a_worse_model_does_worse(tiny_llama: Path, tiny_checkpoint: Artifact, tmp_path: Path) -> None:
    """The embeddings turned around: it says nothing any more, and the tasks show it."""
    worse = changed_copy(
        tiny_llama,
        tmp_path / "worse",
        lambda tensors: tensors | {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"].flip(0)},
    )
    folder = write_suite(tmp_path / "suite", CHOICE)
    before = done(tiny_checkpoint, folder, tmp_path / "a").metadata["tasks"][0]["value"]
    after = done(as_artifact(worse), folder, tmp_path / "b").metadata["tasks"][0]["value"]
    assert after < before


def test_graphs_have_no_suite(tmp_path: Path) -> None:
    recipe = Recipe.parse({"model": "model.onnx", "suite": str(write_suite(tmp_path / "suite", CHOICE))})
    with pytest.raises(InputError, match="a suite of tasks is for language models"):
        resolve(recipe, "text-classification")
