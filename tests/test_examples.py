"""The examples: their data are sound and the same each time, and what they train is good enough to lose something."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipeline import Recipe

EXAMPLES = Path(__file__).parent.parent / "examples"


def module(path: Path) -> ModuleType:
    """An example's script as a module; it lies in no package."""
    name = f"example_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def build(script: Path, *arguments: object) -> None:
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` builds for the embedder."""
    path = tmp_path_factory.mktemp("minilm") / "build"
    build(EXAMPLES / "minilm" / "data.py", path)
    return path


@pytest.fixture(scope="module")
def data() -> ModuleType:
    return module(EXAMPLES / "minilm" / "data.py")


def pairs_of(data: ModuleType, folder: Path, source: str) -> list[Any]:
    path = folder / "library.py"
    path.write_text(source)
    return data.read_pairs([path])  # type: ignore[no-any-return]


class TestRetrievalData:
    def test_has_the_rows_that_the_recipe_speaks_of(self, retrieval: Path) -> None:
        evaluation, calibration = rows(retrieval / "evaluation.jsonl"), rows(retrieval / "calibration.jsonl")
        assert (len(evaluation), len(calibration)) == (1000, 256)
        assert all(set(row) == {"query", "document"} for row in evaluation)
        assert all(set(row) == {"text"} for row in calibration)
        assert all(value.strip() for row in evaluation + calibration for value in row.values())

    def test_is_the_same_each_time(self, retrieval: Path, tmp_path: Path) -> None:
        build(EXAMPLES / "minilm" / "data.py", tmp_path, "--no-checkpoint")
        for name in ("evaluation.jsonl", "calibration.jsonl"):
            assert (tmp_path / name).read_bytes() == (retrieval / name).read_bytes()

    def test_calibrates_on_nothing_that_it_evaluates(self, retrieval: Path, data: ModuleType) -> None:
        evaluated = {data.words(text) for row in rows(retrieval / "evaluation.jsonl") for text in row.values()}
        calibrated = {data.words(row["text"]) for row in rows(retrieval / "calibration.jsonl")}
        assert not evaluated & calibrated

    def test_has_one_right_answer_for_every_query(self, retrieval: Path) -> None:
        evaluation = rows(retrieval / "evaluation.jsonl")
        for column in ("query", "document"):
            assert len({row[column] for row in evaluation}) == len(evaluation)

    def test_does_not_hold_the_answer_in_the_question(self, retrieval: Path, data: ModuleType) -> None:
        for row in rows(retrieval / "evaluation.jsonl"):
            assert data.words(row["query"]) not in data.words(row["document"])

    def test_points_at_the_checkpoint(self, retrieval: Path, minilm_checkpoint: Path) -> None:
        assert (retrieval / "checkpoint").resolve() == minilm_checkpoint.resolve()

    def test_says_how_many_pairs_there_are_if_too_many_are_asked_for(self, data: ModuleType) -> None:
        pairs = [data.Pair(f"query {i}", f"document {i}") for i in range(10)]
        with pytest.raises(SystemExit, match=r"gives 10 pairs, and 8 to evaluate on and 3 to calibrate"):
            data.split(pairs, 8, 3)

    def test_leaves_docstring_comments_and_decorators_out_of_the_code(self, data: ModuleType, tmp_path: Path) -> None:
        (pair,) = pairs_of(
            data,
            tmp_path,
            '''
class Ledger:
    @traced("counts the open entries")
    def count(self, entries):
        """Count the entries that are open. Closed ones
        do not matter."""
        # open entries are those without an end
        return sum(1 for entry in entries if entry.open)
''',
        )
        assert pair.query == "Count the entries that are open."
        assert pair.document == (
            "class Ledger:\n    def count(self, entries):\n        return sum((1 for entry in entries if entry.open))"
        )
        ast.parse(pair.document)

    @pytest.mark.parametrize(
        ("why", "source"),
        [
            ("no code", 'def count_open(entries):\n    """Count the entries that are open."""\n'),
            ("no docstring", "def count_open(entries):\n    return len(entries)\n"),
            ("too short a sentence", 'def count_open(entries):\n    """Count entries."""\n    return len(entries)\n'),
            ("nothing in common", 'def f(x):\n    """Count the entries that are open."""\n    return len(x)\n'),
            (
                "the code repeats it",
                'def count_open(entries):\n    """Count the open entries."""\n    print("Count the open entries")\n',
            ),
        ],
    )
    def test_leaves_out_a_function_with(self, why: str, source: str, data: ModuleType, tmp_path: Path) -> None:
        assert pairs_of(data, tmp_path, source) == []

    def test_passes_over_files_that_are_no_python(self, data: ModuleType, tmp_path: Path) -> None:
        assert pairs_of(data, tmp_path, "def broken(:\n") == []


class TestDigits:
    def test_are_recognised_by_the_exported_program(self, digits_build: Path) -> None:
        import torch

        network = torch.export.load(digits_build / "digits.pt2").module()
        with np.load(digits_build / "evaluation.npz") as evaluation:
            images, labels = evaluation["image"], evaluation["labels"]
        assert images.shape == (719, 1, 8, 8) and images.dtype == np.float32
        with torch.inference_mode():
            answers = network(torch.from_numpy(images)).argmax(dim=1).numpy()
        assert (answers == labels).mean() >= 0.98

    def test_are_evaluated_on_images_that_training_did_not_see(self, digits_build: Path) -> None:
        with (
            np.load(digits_build / "evaluation.npz") as evaluation,
            np.load(digits_build / "calibration.npz") as calibration,
        ):
            assert calibration["image"].shape == (256, 1, 8, 8)
            evaluated = {image.tobytes() for image in evaluation["image"]}
            assert not evaluated & {image.tobytes() for image in calibration["image"]}


@pytest.mark.parametrize(("example", "built"), [("minilm", "retrieval"), ("digits", "digits_build")])
def test_recipe_names_what_its_script_builds(example: str, built: str, request: pytest.FixtureRequest) -> None:
    recipe = Recipe.read(EXAMPLES / example / "recipe.yaml")
    assert recipe.evaluation is not None
    for path in map(Path, (recipe.model, recipe.evaluation.path)):
        assert path.parent == EXAMPLES / example / "build"
        assert (request.getfixturevalue(built) / path.name).exists()
