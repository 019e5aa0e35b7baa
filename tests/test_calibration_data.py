"""Bad data, for evaluation and for calibration alike: each is refused with the file, the row and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_artifacts import linear, model_artifact, token_model
from PIL import Image
from prepared_data import prepared, text_model
from workplace import Classifier, Workplace

from calibration import DataError, Samples
from stages.artifact import Artifact, link
from stages.model import ASSETS

ROLES = ("evaluation", "calibration")
OK = {"text": "a sentence", "label": "pos"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, minilm_checkpoint: Path) -> dict[str, Artifact]:
    """`text` classifies, `arrays` takes x [batch, 4], `ids` looks tokens up in 9 rows and has MiniLM's 512 positions,
    `images` takes 6 x 6 pixels in colour."""
    folder = tmp_path_factory.mktemp("models")
    ids = token_model(folder / "ids", np.zeros((9, 2)), "feature-extraction")
    link(minilm_checkpoint / "config.json", folder / "ids" / ASSETS / "config.json")
    images = model_artifact(
        folder / "images", [helper.make_node("Relu", ["x"], ["y"])], {"x": ("FLOAT", ["batch", 3, 6, 6])},
        {"y": ("FLOAT", ["batch", 3, 6, 6])}, task="image-classification",
    )  # fmt: skip
    return {
        "text": text_model(folder / "text", minilm_checkpoint),
        "arrays": linear(folder / "arrays", np.ones((4, 3))),
        "ids": ids,
        "images": images,
    }


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


def lines(*rows: dict[str, Any]) -> Callable[[Path], None]:
    return text("".join(json.dumps(row) + "\n" for row in rows))


def arrays(**values: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **values)


def parquet(*rows: dict[str, Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)

    return write


def folder_with(image: Image.Image | bytes, suffix: str = ".png") -> Callable[[Path], None]:
    """A folder of two images, the second of which is `image`."""

    def write(path: Path) -> None:
        path.mkdir()
        Image.new("RGB", (6, 6)).save(path / "a.png")
        if isinstance(image, bytes):
            (path / f"b{suffix}").write_bytes(image)
        else:
            image.save(path / f"b{suffix}")

    return write


def holed(place: tuple[int, int], value: float) -> np.ndarray[Any, Any]:
    x = np.zeros((5, 4))
    x[place] = value
    return x


def tokens(ids: Any) -> dict[str, Any]:
    """Token ids as arrays, or as lists where they come as such."""
    ones = np.ones_like(ids) if isinstance(ids, np.ndarray) else [1] * len(ids)
    return {"input_ids": ids, "attention_mask": ones}


LATE = np.array([[1, 2], [3, 4], [5, 9]])
DEEP = Image.fromarray(np.full((6, 6), 4000, np.uint16))

BAD: dict[str, tuple[str, str, Callable[[Path], None], str]] = {
    "no column": ("text", "d.jsonl", lines({"sentence": "a"}), r"d.jsonl has no column 'text'; it has 'sentence'"),
    "no column, csv": ("text", "d.csv", text("texts,label\na,pos\n"), r"If 'texts' is meant, .*{text: texts}"),
    "no input": ("arrays", "d.npz", arrays(y=np.zeros((2, 4))), r"d.npz has no column 'x'; it has 'y'"),
    "gap": ("text", "d.jsonl", lines(OK, {"label": "pos"}), r"d.jsonl, line 2 has no 'text'"),
    "no text": ("text", "d.jsonl", lines(OK, {"text": 3, "label": "pos"}), r"line 2: 'text' should be text, it is 3"),
    "label": ("text", "d.csv", text("text,label\na,pos\nb,good\n"), r"d.csv, row 2: label 'good' is neither"),
    "empty": ("text", "d.jsonl", text(""), r"d.jsonl is empty"),
    "header": ("text", "d.csv", text("text,label\n"), r"d.csv is empty"),
    "no samples": ("arrays", "d.npz", arrays(x=np.zeros((0, 4))), r"d.npz is empty"),
    "quote": ("text", "d.csv", text('text,label\na,pos\n"b,neg\nc,pos\n'), r"d.csv, row 2 \(it begins in line 3\)"),
    "line": ("text", "d.jsonl", text('{"text": "a"}\n{"text": "b"\n'), r"d.jsonl, line 2 is not JSON: "),
    "nested": ("text", "d.parquet", parquet({"text": {"en": "a"}}), r"d.parquet, row 1: 'text' should be text, .*dict"),
    "nan": ("arrays", "d.npz", arrays(x=holed((3, 1), np.nan)), r"d.npz, row 4: 'x' has NaN at \[1\]"),
    "inf": ("arrays", "d.npz", arrays(x=holed((2, 0), -np.inf)), r"d.npz, row 3: 'x' has infinity at \[0\]"),
    "nan, json": ("arrays", "d.jsonl", text('{"x": [1, 2, 3, NaN]}\n'), r"d.jsonl, line 1: 'x' has NaN at \[3\]"),
    "shape": ("arrays", "d.npz", arrays(x=np.zeros((2, 5))), r"d.npz, row 1: 'x' has .* \(axis 0 is 5, not 4"),
    "rank": ("arrays", "d.npz", arrays(x=np.zeros((2, 4, 1))), r"d.npz, row 1: .* \(1 axes, not 2\)"),
    "words": ("arrays", "d.npz", arrays(x=np.array([[*"abcd"]])), r"row 1: 'x' should be numbers of dtype float32"),
    "fractions": ("ids", "d.npz", arrays(**tokens(LATE / 2)), r"d.npz, row 1: 'input_ids' holds float64 values"),
    "vocabulary": ("ids", "d.npz", arrays(**tokens(LATE)), r"row 3: 'input_ids' has 9 at \[1\]; .* 0 to 8"),
    "too long": ("ids", "d.npz", arrays(**tokens(np.ones((2, 600), int))), r"row 1: .* 600 tokens, .* 512 positions"),
    "lengths": ("ids", "d.jsonl", lines(tokens([1]), tokens([1, 2])), r"line 2: .* \[2\], the first sample has \[1\]"),
    "no tokens": ("ids", "d.jsonl", lines(tokens([])), r"line 1: 'input_ids' .*: there is nothing in it"),
    "corrupt": ("images", "d", folder_with(b"\x89PNG\r\n\x1a\n cut off"), r"d, row 2 \(.*/b.png\): the image cannot"),
    "16 bits": ("images", "d", folder_with(DEEP), r"d, row 2 \(.*/b.png\): an image of mode 'I;16'"),
    "transparent": ("images", "d", folder_with(Image.new("RGBA", (6, 6))), r"d, row 2 \(.*/b.png\): .* is transparent"),
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_named(models: dict[str, Artifact], tmp_path: Path, case: str, role: str) -> None:
    model, name, write, message = BAD[case]
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        prepared(models[model], tmp_path, tmp_path / name, role=role)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", ".png"), ("P", ".png"), ("CMYK", ".jpg"), ("RGBA", ".png"), ("1", ".png")]
)
def test_images_that_lose_nothing_are_converted(
    models: dict[str, Artifact], tmp_path: Path, mode: str, suffix: str
) -> None:
    folder_with(Image.new("RGB", (12, 12), (255, 255, 255)).convert(mode), suffix)(tmp_path / "d")
    samples = Samples.load(prepared(models["images"], tmp_path, tmp_path / "d", role="calibration").path)
    np.testing.assert_allclose(samples.inputs["x"][1], np.ones((3, 6, 6)), atol=0.02)


def test_a_preprocessing_that_gives_another_size_is_named(models: dict[str, Artifact], tmp_path: Path) -> None:
    model = models["images"]
    copied = tmp_path / "model"
    link(model.path / "model.onnx", copied / "model.onnx")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (copied / ASSETS).mkdir()
    (copied / ASSETS / "preprocessor_config.json").write_text(json.dumps(settings))
    fixed = Artifact.write(copied, "model", model.metadata)
    folder_with(Image.new("RGB", (9, 9)))(tmp_path / "d")
    with pytest.raises(DataError, match=r"row 1 \(.*/a.png\): 'x' has shape \[3, 8, 8\], the model takes \[3, 6, 6\]"):
        prepared(fixed, tmp_path, tmp_path / "d", role="calibration")


def test_long_texts_are_cut_and_counted(models: dict[str, Artifact], tmp_path: Path) -> None:
    lines(OK, {"text": "word " * 600, "label": "neg"})(tmp_path / "d.jsonl")
    artifact = prepared(models["text"], tmp_path, tmp_path / "d.jsonl", role="calibration")
    assert artifact.metadata["cut"] == 1
    assert artifact.metadata["tokens"]["longest"] == 512


def test_one_sample_is_taken_with_a_warning(models: dict[str, Artifact], tmp_path: Path) -> None:
    lines(OK)(tmp_path / "d.jsonl")
    artifact = prepared(models["text"], tmp_path, tmp_path / "d.jsonl", role="calibration")
    assert artifact.metadata["samples"] == 1
    assert artifact.metadata["warnings"][0].startswith("1 sample for calibration: activations of other data may leave")


def test_calibration_draws_by_class_with_its_seed(models: dict[str, Artifact], tmp_path: Path) -> None:
    labels = ["pos" if number % 5 == 0 else "neg" for number in range(2000)]
    rows = [{"text": f"sentence {number}", "label": label} for number, label in enumerate(labels)]
    lines(*rows)(tmp_path / "d.jsonl")

    def drawn(seed: int) -> Artifact:
        return prepared(models["text"], tmp_path, tmp_path / "d.jsonl", role="calibration", samples=256, seed=seed)

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert first.metadata["evidence"] == "256 of 2000 samples of d.jsonl"
    assert first.metadata["classes"] == {"neg": 205, "pos": 51}
    assert first.digest == again.digest != other.digest


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """One workplace for all commands: what they share is made once."""
    return Workplace(tmp_path_factory.mktemp("command"))


@pytest.mark.parametrize(
    ("role", "name", "write", "says"),
    [
        ("evaluation", "quote.csv", text('x\n"[0\n'), "quote.csv, row 1"),
        ("evaluation", "short.jsonl", lines({"x": [0.0] * 60}), "short.jsonl, line 1: 'x' has shape [60]"),
        ("calibration", "columns.npz", arrays(y=np.zeros((2, 64))), "columns.npz has no column 'x'"),
        ("calibration", "infinite.npz", arrays(x=np.full((2, 64), np.inf)), "row 1: 'x' has infinity at [0]"),
        ("calibration", "mlflow:0123/reviews", text(""), "mlflow:0123/reviews is not in MLflow"),
    ],
)
def test_bad_data_are_exit_code_2(
    command: Workplace, classifier: Classifier, role: str, name: str, write: Callable[[Path], None], says: str
) -> None:
    if not name.startswith("mlflow:"):
        write(command.path / name)
    data = {"--evaluation": classifier.evaluation, f"--{role}": name}
    arguments = [word for option in data.items() for word in option]
    ended = command.optimize("run", classifier.model, "--variants", "int8-static", "--no-record", *arguments)
    assert ended.code == 2, ended.err
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert not command.repository.exists()
