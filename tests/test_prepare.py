"""Preparing data for a model: located where they lie, turned into samples, and told in words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_artifacts import linear, model_artifact, token_model
from PIL import Image
from prepared_data import TOKENS, model_of, prepared, text_model
from pydantic import ValidationError

from calibration import DataError, Samples
from stages.artifact import Artifact
from stages.errors import InputError
from stages.prepare import CollectOptions, PrepareOptions, collect, locate_data
from stages.progress import SILENT

LINES = [{"text": f"sentence number {i}", "label": ["neg", "pos"][i % 4 == 0]} for i in range(40)]


@pytest.fixture
def classifier(tmp_path: Path, minilm_checkpoint: Path) -> Artifact:
    return text_model(tmp_path / "model", minilm_checkpoint)


@pytest.fixture
def network(tmp_path: Path) -> Artifact:
    return linear(tmp_path / "network", np.ones((4, 3)))


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LINES))
    return path


def test_data_become_samples_that_say_where_they_are_from(classifier: Artifact, lines: Path, tmp_path: Path) -> None:
    artifact = prepared(classifier, tmp_path, lines)
    assert artifact.kind == "dataset"
    assert artifact.metadata["evidence"] == "40 samples of evaluation.jsonl"
    assert artifact.metadata["evidence_kind"] == "data"
    assert artifact.metadata["samples"] == 40
    assert artifact.metadata["truth"] == "label"
    assert artifact.metadata["classes"] == {"neg": 30, "pos": 10}
    assert artifact.metadata["columns"] == ["text", "label"]
    assert artifact.metadata["tokens"] == {"longest": 5, "mean": 5.0}
    assert artifact.metadata["cut"] == 0
    assert artifact.metadata["warnings"] == []
    samples = Samples.load(artifact.path)
    assert samples.batch([3])["input_ids"].tolist() == [[101, 6251, 2193, 1017, 102]]
    Artifact.read(artifact.path).verify()


def test_a_part_of_the_data_is_drawn_by_class(classifier: Artifact, lines: Path, tmp_path: Path) -> None:
    artifact = prepared(classifier, tmp_path, lines, samples=8)
    assert artifact.metadata["evidence"] == "8 of 40 samples of evaluation.jsonl"
    assert artifact.metadata["classes"] == {"neg": 6, "pos": 2}


def test_the_same_data_give_the_same_bytes_wherever_they_lie(classifier: Artifact, lines: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / lines.name
    moved.write_bytes(lines.read_bytes())
    first, second = (prepared(classifier, tmp_path, path, samples=8, seed=2) for path in (lines, moved))
    assert first.digest == second.digest
    assert first.made_from == second.made_from
    assert prepared(classifier, tmp_path, lines, samples=8, seed=3).digest != first.digest


def test_columns_and_length_are_options(classifier: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("sentence,gold\na long sentence of several words,1\n")
    artifact = prepared(classifier, tmp_path, path, columns={"text": "sentence", "label": "gold"}, max_length=4)
    assert artifact.metadata["tokens"]["longest"] == 4
    assert artifact.metadata["cut"] == 1
    assert artifact.metadata["classes"] == {"pos": 1}


def test_pairs_for_retrieval_are_called_so(classifier: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "a", "document": "b"}\n{"query": "c", "document": "d"}\n')
    metadata = {**classifier.metadata, "task": "sentence-embedding", "labels": []}
    artifact = prepared(Artifact.write(classifier.path, "model", metadata), tmp_path, path)
    assert artifact.metadata["evidence"] == "2 query-document pairs of pairs.jsonl"
    assert artifact.metadata["samples"] == 4
    assert artifact.metadata["truth"] == "retrieval"


def test_arrays_feed_any_model(network: Artifact, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(12.0).reshape(3, 4), labels=np.array([0, 2, 2]))
    artifact = prepared(network, tmp_path, tmp_path / "data.npz")
    assert artifact.metadata["classes"] == {"0": 1, "2": 2}
    assert artifact.metadata["tokens"] is None
    assert Samples.load(artifact.path).batch([2])["x"].tolist() == [[8, 9, 10, 11]]


def test_without_data_a_model_for_text_reads_docstrings(classifier: Artifact, tmp_path: Path) -> None:
    artifact = prepared(classifier, tmp_path, samples=20)
    assert artifact.metadata["evidence"] == "20 docstrings of the Python standard library (no --evaluation was given)"
    assert artifact.metadata["evidence_kind"] == "builtin"
    assert artifact.metadata["truth"] is None
    assert prepared(classifier, tmp_path, samples=20).digest == artifact.digest
    calibration = prepared(classifier, tmp_path, samples=20, role="calibration")
    assert "no --calibration was given" in calibration.metadata["evidence"]
    texts = [{tuple(ids.tolist()) for ids in Samples.load(a.path).inputs["input_ids"]} for a in (artifact, calibration)]
    assert not texts[0] & texts[1]


def test_without_data_other_models_get_random_inputs(network: Artifact, tmp_path: Path) -> None:
    artifact = prepared(network, tmp_path)
    assert artifact.metadata["evidence"] == "64 random inputs (no --evaluation was given)"
    assert artifact.metadata["evidence_kind"] == "synthetic"
    assert prepared(network, tmp_path, role="calibration").files != artifact.files


def test_a_model_for_text_without_a_tokenizer(tmp_path: Path, lines: Path) -> None:
    (tmp_path / "bare").mkdir()
    inputs = [{"name": name, "dtype": "int64", "shape": ("batch", "sequence")} for name in TOKENS]
    bare = model_of(tmp_path / "bare", "text-classification", inputs)
    assert prepared(bare, tmp_path).metadata["evidence_kind"] == "synthetic"
    with pytest.raises(DataError, match="the model has no tokenizer"):
        prepared(bare, tmp_path, lines)


def test_what_is_wrong_with_the_data_reaches_the_user(classifier: Artifact, network: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine", "label": "pos"}\n{"text": "fine", "label": "maybe"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: label 'maybe'"):
        prepared(classifier, tmp_path, path)
    np.savez(tmp_path / "bad.npz", x=np.array([[1.0] * 4, [1.0, np.nan, 1.0, 1.0]]))
    with pytest.raises(DataError, match=r"bad\.npz, row 2: 'x' has NaN at \[1\]"):
        prepared(network, tmp_path, tmp_path / "bad.npz")
    with pytest.raises(InputError, match="is a model, not data"):
        prepared(network, tmp_path, network)
    with pytest.raises(InputError, match="use: builtin"):
        prepared(classifier, tmp_path, path, use="builtin")
    with pytest.raises(ValidationError):
        PrepareOptions(sample=3)  # type: ignore[call-arg]


def test_a_data_sets_digest_is_that_of_its_files(tmp_path: Path) -> None:
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
        "def broken():\n    yield {'text': 'a'}\n    raise KeyError('lost')\n"
        "from pathlib import Path\nfrom PIL import Image\n"
        "def pictures(second=None):\n"
        "    for number in range(70):\n"
        "        image = Image.new('RGB', (4, 4), (number, 0, 0))\n"
        "        yield {'image': image, 'label': np.int64(number % 2)}\n"
        "def files():\n    yield {'image': Path('a.png'), 'label': 0}\n    yield {'image': Path('b.png'), 'label': 1}\n"
        "def mixed():\n    yield {'image': Path('a.png'), 'label': 0}\n    yield {'image': 'a.png', 'label': 1}\n"
        "def wider():\n    yield {'image': Path('a.png')}\n    yield {'image': Path('a.png'), 'label': 1}\n"
        "def unlike():\n    yield {'image': Path('a.png'), 'label': 0}\n    yield {'image': b'', 'label': ''}\n"
    )
    for name, red in (("a.png", 10), ("b.png", 20)):
        Image.new("RGB", (4, 4), (red, 0, 0)).save(tmp_path / name)
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
    artifact = prepared(classifier, tmp_path, data)
    assert artifact.metadata["evidence"] == "2 samples of prepared_rows:texts"
    assert artifact.metadata["classes"] == {"neg": 1, "pos": 1}


def test_a_functions_arrays_are_kept_and_prepared(functions: Any, network: Artifact, tmp_path: Path) -> None:
    data = functions("arrays")
    assert data.metadata["type"] == "npz"
    artifact = prepared(network, tmp_path, data)
    assert Samples.load(artifact.path).batch([0, 2])["x"].tolist() == [[0] * 4, [2] * 4]
    assert artifact.metadata["classes"] == {"0": 1, "1": 1, "2": 1}


@pytest.fixture
def camera(tmp_path: Path) -> Artifact:
    """x [batch, 3, 4, 4] → the mean of every channel."""
    from onnx import helper

    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["logits"], keepdims=0)]
    inputs = {"x": ("FLOAT", ["batch", 3, 4, 4])}
    weights = {"axes": np.array([2, 3])}
    outputs = {"logits": ("FLOAT", ["batch", 3])}
    return model_artifact(tmp_path / "camera", nodes, inputs, outputs, weights, "image-classification")


def test_a_functions_pictures_are_kept_and_prepared(functions: Any, camera: Artifact, tmp_path: Path) -> None:
    data = functions("pictures")
    assert dict(data.metadata) == {"type": "parquet", "name": "prepared_rows:pictures", "rows": 70}
    artifact = prepared(camera, tmp_path, data)
    values = Samples.load(artifact.path).inputs["x"]
    assert [round(255 * float(value[0, 0, 0])) for value in values] == list(range(70))
    assert artifact.metadata["classes"] == {"0": 35, "1": 35}
    files = Samples.load(prepared(camera, tmp_path, functions("files")).path).inputs["x"]
    assert [round(255 * float(value[0, 0, 0])) for value in files] == [10, 20]


def test_images_without_preprocessing_are_told_how_they_were_made(camera: Artifact, tmp_path: Path) -> None:
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "pets" / name)
    (warning,) = prepared(camera, tmp_path, tmp_path / "pets").metadata["warnings"]
    assert "no preprocessor_config.json): it is given images as 3 x 4 x 4" in warning


def test_few_samples_are_warned_of_where_ranges_are_learnt(network: Artifact, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 4)))
    assert prepared(network, tmp_path, tmp_path / "one.npz").metadata["warnings"] == []
    (warning,) = prepared(network, tmp_path, tmp_path / "one.npz", role="calibration").metadata["warnings"]
    assert warning.startswith("1 sample for calibration: ")
    np.savez(tmp_path / "enough.npz", x=np.zeros((32, 4)))
    assert prepared(network, tmp_path, tmp_path / "enough.npz", role="calibration").metadata["warnings"] == []


def test_ids_beyond_the_graphs_table_are_named(tmp_path: Path) -> None:
    model = token_model(tmp_path / "tokens", np.zeros((7, 3)), "generic")
    ids = np.array([[0, 6], [3, 7]])
    np.savez(tmp_path / "ids.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    with pytest.raises(DataError, match=r"ids\.npz, row 2: 'input_ids' has 7 at \[1\]; the model's table .* 7 rows"):
        prepared(model, tmp_path, tmp_path / "ids.npz")


def test_a_shape_that_the_graph_does_not_take_is_named(tmp_path: Path) -> None:
    """Sixteen positions: more fit the signature, and not the graph."""
    from onnx import helper

    nodes = [helper.make_node("Add", ["x", "positions"], ["y"])]
    shape = {"x": ("FLOAT", ["batch", "time"])}
    weights = {"positions": np.zeros((1, 16), np.float32)}
    model = model_artifact(tmp_path / "positions", nodes, shape, {"y": ("FLOAT", ["batch", "time"])}, weights)
    np.savez(tmp_path / "fits.npz", x=np.zeros((2, 16)))
    np.savez(tmp_path / "long.npz", x=np.zeros((2, 20)))
    assert prepared(model, tmp_path, tmp_path / "fits.npz").metadata["samples"] == 2
    with pytest.raises(DataError, match=r"long\.npz, row 1: the model does not take samples like this: .*\(1, 20\)"):
        prepared(model, tmp_path, tmp_path / "long.npz")


def test_a_fixed_batch_is_filled_for_the_trial(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = model_artifact(tmp_path / "fixed", nodes, {"x": ("FLOAT", [4, 2])}, {"y": ("FLOAT", [4, 2])})
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 2)))
    assert prepared(model, tmp_path, tmp_path / "x.npz").metadata["samples"] == 3


def test_an_endless_function_can_be_bounded(functions: Any) -> None:
    assert functions("endless", rows=7).metadata["rows"] == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "prepared_rows:nothing yielded no rows"),
        ("objects", "prepared_rows:objects, row 2 cannot be kept: a object"),
        ("ragged", r"row 2: 'x' has shape \[3\], row 1 has \[2\]"),
        ("other", "row 2 has the columns y, row 1 has x"),
        ("broken", "prepared_rows:broken failed at row 2 with KeyError: 'lost'"),
        ("mixed", "prepared_rows:mixed, row 2: 'image' is a str, not a picture, its bytes or its path"),
        ("wider", "row 2 has the columns image, label, row 1 has image"),
        ("unlike", "prepared_rows:unlike, row 2 cannot be kept beside row 1"),
    ],
)
def test_rows_that_cannot_be_kept_are_named(functions: Any, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        functions(name)
