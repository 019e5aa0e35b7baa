"""Preparing data for a model: located where they lie, turned into samples, and told in words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from calibration import DataError, Samples
from stages.artifact import Artifact, link
from stages.errors import InputError
from stages.model import ASSETS, Model
from stages.prepare import CollectOptions, PrepareOptions, collect, locate_data, prepare
from stages.progress import SILENT

TOKENS = ("input_ids", "attention_mask", "token_type_ids")
LINES = [{"text": f"sentence number {i}", "label": ["neg", "pos"][i % 4 == 0]} for i in range(40)]


def model_of(folder: Path, task: str, inputs: list[dict[str, Any]], labels: tuple[str, ...] = ()) -> Artifact:
    """A model artifact as far as data are concerned: what it takes, and the assets that lie in `folder`."""
    description = Model(task=task, signature={"inputs": inputs, "outputs": []}, opset=20, labels=labels)  # type: ignore[arg-type]
    return Artifact.write(folder, "model", description.model_dump(mode="json"))


@pytest.fixture
def classifier(tmp_path: Path, minilm_checkpoint: Path) -> Artifact:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        link(minilm_checkpoint / name, tmp_path / "model" / ASSETS / name)
    inputs = [{"name": name, "dtype": "int64", "shape": ("batch", "sequence")} for name in TOKENS]
    return model_of(tmp_path / "model", "text-classification", inputs, ("neg", "pos"))


@pytest.fixture
def network(tmp_path: Path) -> Artifact:
    (tmp_path / "network").mkdir()
    return model_of(tmp_path / "network", "generic", [{"name": "x", "dtype": "float32", "shape": ("batch", 4)}])


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LINES))
    return path


def run(model: Artifact, tmp_path: Path, data: Path | Artifact | None = None, **options: Any) -> Artifact:
    out = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
    out.mkdir()
    located = locate_data(str(data)) if isinstance(data, Path) else data
    return prepare(model=model, data=located, options=PrepareOptions(**options), out=out, progress=SILENT)


def test_data_become_samples_that_say_where_they_are_from(classifier: Artifact, lines: Path, tmp_path: Path) -> None:
    artifact = run(classifier, tmp_path, lines)
    assert artifact.kind == "dataset"
    assert artifact.metadata["evidence"] == "40 samples of evaluation.jsonl"
    assert artifact.metadata["evidence_kind"] == "data"
    assert artifact.metadata["samples"] == 40
    assert artifact.metadata["truth"] == "label"
    assert artifact.metadata["classes"] == {"neg": 30, "pos": 10}
    assert artifact.metadata["columns"] == ["text", "label"]
    assert artifact.metadata["tokens"] == {"longest": 5, "mean": 5.0}
    samples = Samples.load(artifact.path)
    assert samples.batch([3])["input_ids"].tolist() == [[101, 6251, 2193, 1017, 102]]
    Artifact.read(artifact.path).verify()


def test_a_part_of_the_data_is_drawn_by_class(classifier: Artifact, lines: Path, tmp_path: Path) -> None:
    artifact = run(classifier, tmp_path, lines, samples=8)
    assert artifact.metadata["evidence"] == "8 of 40 samples of evaluation.jsonl"
    assert artifact.metadata["classes"] == {"neg": 6, "pos": 2}


def test_the_same_data_give_the_same_bytes_wherever_they_lie(classifier: Artifact, lines: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / lines.name
    moved.write_bytes(lines.read_bytes())
    first, second = (run(classifier, tmp_path, path, samples=8, seed=2) for path in (lines, moved))
    assert first.digest == second.digest
    assert first.made_from == second.made_from
    assert run(classifier, tmp_path, lines, samples=8, seed=3).digest != first.digest


def test_columns_and_length_are_options(classifier: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("sentence,gold\na long sentence of several words,1\n")
    artifact = run(classifier, tmp_path, path, columns={"text": "sentence", "label": "gold"}, max_length=4)
    assert artifact.metadata["tokens"]["longest"] == 4
    assert artifact.metadata["classes"] == {"pos": 1}


def test_pairs_for_retrieval_are_called_so(classifier: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "a", "document": "b"}\n{"query": "c", "document": "d"}\n')
    metadata = {**classifier.metadata, "task": "sentence-embedding", "labels": []}
    artifact = run(Artifact.write(classifier.path, "model", metadata), tmp_path, path)
    assert artifact.metadata["evidence"] == "2 query-document pairs of pairs.jsonl"
    assert artifact.metadata["samples"] == 4
    assert artifact.metadata["truth"] == "retrieval"


def test_arrays_feed_any_model(network: Artifact, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(12.0).reshape(3, 4), labels=np.array([0, 2, 2]))
    artifact = run(network, tmp_path, tmp_path / "data.npz")
    assert artifact.metadata["classes"] == {"0": 1, "2": 2}
    assert artifact.metadata["tokens"] is None
    assert Samples.load(artifact.path).batch([2])["x"].tolist() == [[8, 9, 10, 11]]


def test_without_data_a_model_for_text_reads_docstrings(classifier: Artifact, tmp_path: Path) -> None:
    artifact = run(classifier, tmp_path, samples=20)
    assert artifact.metadata["evidence"] == "20 docstrings of the Python standard library (no --evaluation was given)"
    assert artifact.metadata["evidence_kind"] == "builtin"
    assert artifact.metadata["truth"] is None
    assert run(classifier, tmp_path, samples=20).digest == artifact.digest
    calibration = run(classifier, tmp_path, samples=20, role="calibration")
    assert "no --calibration was given" in calibration.metadata["evidence"]
    texts = [{tuple(ids.tolist()) for ids in Samples.load(a.path).inputs["input_ids"]} for a in (artifact, calibration)]
    assert not texts[0] & texts[1]


def test_without_data_other_models_get_random_inputs(network: Artifact, tmp_path: Path) -> None:
    artifact = run(network, tmp_path)
    assert artifact.metadata["evidence"] == "64 random inputs (no --evaluation was given)"
    assert artifact.metadata["evidence_kind"] == "synthetic"
    assert run(network, tmp_path, role="calibration").files != artifact.files


def test_a_model_for_text_without_a_tokenizer(tmp_path: Path, lines: Path) -> None:
    (tmp_path / "bare").mkdir()
    inputs = [{"name": name, "dtype": "int64", "shape": ("batch", "sequence")} for name in TOKENS]
    bare = model_of(tmp_path / "bare", "text-classification", inputs)
    assert run(bare, tmp_path).metadata["evidence_kind"] == "synthetic"
    with pytest.raises(DataError, match="the model has no tokenizer"):
        run(bare, tmp_path, lines)


def test_what_is_wrong_with_the_data_reaches_the_user(classifier: Artifact, network: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine", "label": "pos"}\n{"text": "fine", "label": "maybe"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: label 'maybe'"):
        run(classifier, tmp_path, path)
    np.savez(tmp_path / "bad.npz", x=np.array([[1.0] * 4, [1.0, np.nan, 1.0, 1.0]]))
    with pytest.raises(DataError, match=r"bad\.npz, row 2: 'x' has NaN at \[1\]"):
        run(network, tmp_path, tmp_path / "bad.npz")
    with pytest.raises(InputError, match="is a model, not data"):
        run(network, tmp_path, network)
    with pytest.raises(InputError, match="use: builtin"):
        run(classifier, tmp_path, path, use="builtin")
    with pytest.raises(ValidationError):
        PrepareOptions(sample=3)  # type: ignore[call-arg]


def test_a_data_sets_digest_is_that_of_its_files(tmp_path: Path) -> None:
    from PIL import Image

    for place in ("one", "two"):
        folder = tmp_path / place / "pets"
        for name in ("cat/a.png", "dog/b.png"):
            (folder / name).parent.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / name)
        (folder / "readme.txt").write_text(place)
    first, second = (locate_data(str(tmp_path / place / "pets")) for place in ("one", "two"))
    assert first is not None
    assert second is not None
    assert dict(first.metadata) == {"type": "images", "name": "pets"}
    assert first.digest == second.digest
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "two" / "pets" / "cat" / "a.png")
    changed = locate_data(str(tmp_path / "two" / "pets"))
    assert changed is not None
    assert changed.digest != first.digest


def test_data_that_are_not_there_are_named() -> None:
    with pytest.raises(DataError, match=r"there is no lost\.jsonl"):
        locate_data("lost.jsonl")


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "prepared_rows.py").write_text(
        "import itertools\nimport numpy as np\n"
        "def texts():\n    yield {'text': 'ä', 'label': np.int64(1)}\n    yield {'text': 'b', 'label': 0}\n"
        "def arrays():\n    for i in range(3):\n        yield {'x': np.full(4, i, np.float32), 'label': i}\n"
        "def endless():\n    for i in itertools.count():\n        yield {'text': str(i)}\n"
        "def nothing():\n    return []\n"
        "def objects():\n    yield {'text': 'a'}\n    yield {'text': object()}\n"
        "def ragged():\n    yield {'x': np.zeros(2)}\n    yield {'x': np.zeros(3)}\n"
        "def other():\n    yield {'x': np.zeros(2)}\n    yield {'y': np.zeros(2)}\n"
    )
    monkeypatch.chdir(tmp_path)

    def run_collect(name: str, rows: int | None = None) -> Artifact:
        out = tmp_path / f"collected-{name}"
        out.mkdir()
        options = CollectOptions(reference=f"prepared_rows:{name}", rows=rows)
        return collect(options=options, out=out, progress=SILENT)

    yield run_collect
    sys.modules.pop("prepared_rows", None)


def test_a_functions_rows_are_kept_and_prepared(functions: Any, classifier: Artifact, tmp_path: Path) -> None:
    assert locate_data("prepared_rows:texts") is None
    data = functions("texts")
    assert dict(data.metadata) == {"type": "jsonl", "name": "prepared_rows:texts", "rows": 2}
    artifact = run(classifier, tmp_path, data)
    assert artifact.metadata["evidence"] == "2 samples of prepared_rows:texts"
    assert artifact.metadata["classes"] == {"neg": 1, "pos": 1}


def test_a_functions_arrays_are_kept_and_prepared(functions: Any, network: Artifact, tmp_path: Path) -> None:
    data = functions("arrays")
    assert data.metadata["type"] == "npz"
    artifact = run(network, tmp_path, data)
    assert Samples.load(artifact.path).batch([0, 2])["x"].tolist() == [[0] * 4, [2] * 4]
    assert artifact.metadata["classes"] == {"0": 1, "1": 1, "2": 1}


def test_an_endless_function_can_be_bounded(functions: Any) -> None:
    assert functions("endless", rows=7).metadata["rows"] == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "prepared_rows:nothing yielded no rows"),
        ("objects", "prepared_rows:objects, row 2 cannot be kept: a object"),
        ("ragged", r"row 2: 'x' has shape \[3\], row 1 has \[2\]"),
        ("other", "row 2 has the columns y, row 1 has x"),
    ],
)
def test_rows_that_cannot_be_kept_are_named(functions: Any, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        functions(name)
