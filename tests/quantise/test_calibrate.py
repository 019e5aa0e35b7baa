"""Calibration: one pass over the data, padding left out, in memory that does not grow, the same bytes each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx_artifacts import dataset, linear, model_artifact, rows, tokens

from calibration.errors import DataError
from calibration.samples import Samples
from calibration.statistics import Collector, Statistics
from stages.artifact import Artifact
from stages.calibrate import CalibrateOptions, calibrate
from stages.errors import InputError, StageError
from stages.prepare import PrepareOptions, prepare
from stages.progress import SILENT


@pytest.fixture(scope="module")
def texts(minilm: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Sixty-four docstrings as tokens, most of them shorter than the longest."""
    options = PrepareOptions(role="calibration", samples=64, max_length=48)
    return prepare(minilm, options, tmp_path_factory.mktemp("texts"), SILENT)


@pytest.fixture
def statistics(tmp_path: Path) -> Any:
    """Calibrates, and reads what was written."""

    def run(model: Artifact, data: Artifact, **options: Any) -> tuple[Artifact, Statistics]:
        out = tmp_path / f"statistics-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        artifact = calibrate(model, data, CalibrateOptions(**options), out)
        return artifact, Statistics.load(out)

    return run


def in_order(vectors: NDArray[Any]) -> NDArray[Any]:
    return vectors[np.lexsort(vectors.T)]


def test_statistics_are_those_of_the_vectors(statistics: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32) * [1, 5, 0.1]
    model = linear(tmp_path / "model", np.eye(3))
    artifact, found = statistics(model, dataset(tmp_path / "data", rows(x)), batch_size=10, rows=16, gram=True)
    assert artifact.kind == "statistics"
    assert artifact.metadata["samples"] == 40
    assert artifact.metadata["evidence"] == "test data"
    assert list(found) == ["x"]
    assert found["x"].count == 40
    np.testing.assert_array_equal(found["x"].low, x.min(axis=0).astype(np.float32))
    np.testing.assert_array_equal(found["x"].high, x.max(axis=0).astype(np.float32))
    np.testing.assert_allclose(found["x"].mean, x.mean(axis=0), rtol=1e-5)
    gram = found["x"].gram
    assert gram is not None
    np.testing.assert_allclose(gram, gram.T)
    assert (np.linalg.eigvalsh(gram) > 0).all()
    average = x[:10].max(axis=0)
    for start in (10, 20, 30):
        average = 0.9 * average + 0.1 * x[start : start + 10].max(axis=0)
    np.testing.assert_allclose(found["x"].average_high, average, rtol=1e-5)
    assert found["x"].rows.shape == (16, 3)
    assert {tuple(row) for row in found["x"].rows.tolist()} <= {tuple(row) for row in x.astype(np.float32).tolist()}


def test_second_moments_are_those_of_all_vectors_or_of_an_even_sample() -> None:
    x = np.random.default_rng(0).standard_normal((20_000, 4)).astype(np.float32) * np.float32([1, 5, 0.1, 2])
    x[:, 3] += x[:, 0]
    whole, sampled = Collector(gram=True), Collector(gram=True)
    for start in range(0, len(x), 500):
        whole.add("x", x[start : start + 500])
        sampled.add("x", x[start : start + 500], part=500 / len(x))
    expected = x.T @ x / len(x)
    np.testing.assert_allclose(whole.finish()["x"].gram, expected, rtol=1e-3, atol=1e-3)
    # 2C are eight vectors here: the diagonal has the right order.
    found = sampled.finish()["x"].gram
    assert found is not None
    assert (np.abs(np.log(np.diag(found) / np.diag(expected))) < np.log(4)).all()


def test_vectors_are_drawn_evenly_from_all_batches() -> None:
    collector = Collector(rows=400, seed=3)
    for start in range(0, 4000, 100):
        collector.add("x", np.arange(start, start + 100, dtype=np.float32)[:, None])
    drawn = collector.finish()["x"].rows[:, 0]
    assert len(set(drawn.tolist())) == 400
    counts, _ = np.histogram(drawn, bins=4, range=(0, 4000))
    assert counts.min() > 70


def test_padded_positions_are_left_out(statistics: Any, minilm: Artifact, texts: Artifact) -> None:
    samples = Samples.load(texts.path)
    positions = int(samples.lengths().sum())
    assert positions < 0.7 * len(samples) * samples.lengths().max()
    _, alone = statistics(minilm, texts, batch_size=1)
    _, together = statistics(minilm, texts, batch_size=16)
    assert list(alone) == list(together)
    for name in alone:
        one, many = alone[name], together[name]
        assert one.count == many.count == positions
        spread = float((one.high - one.low).max())
        for field in ("low", "high", "mean"):
            np.testing.assert_allclose(getattr(many, field), getattr(one, field), atol=1e-4 * spread)
        np.testing.assert_allclose(in_order(many.rows)[:, 0], in_order(one.rows)[:, 0], atol=1e-4 * spread)


def test_the_same_seed_gives_the_same_bytes(statistics: Any, minilm: Artifact, texts: Artifact) -> None:
    first, _ = statistics(minilm, texts, rows=32)
    again, kept = statistics(minilm, texts, rows=32)
    assert first.digest == again.digest
    other, others = statistics(minilm, texts, rows=32, seed=1)
    assert other.digest != first.digest
    name = next(iter(kept))
    np.testing.assert_array_equal(others[name].low, kept[name].low)
    assert not np.array_equal(others[name].rows, kept[name].rows)


def test_a_convolution_has_the_statistics_of_its_channels(
    statistics: Any, digits: Artifact, digits_images: NDArray[np.float32], tmp_path: Path
) -> None:
    data = dataset(tmp_path / "data", Samples({"image": list(digits_images[:20])}))
    _, found = statistics(digits, data)
    image = found["image"]
    assert image.count == 20 * 8 * 8
    assert (image.low.tolist(), image.high.tolist()) == ([0.0], [1.0])
    # What follows the first convolution is its ReLU: 16 channels, none below zero.
    inner = [statistic for statistic in found.values() if len(statistic.low) == 16]
    assert inner
    assert all((statistic.low >= 0).all() for statistic in inner)


def test_what_fills_a_fixed_batch_does_not_count(statistics: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    shapes = {"x": ("FLOAT", [4, 2])}, {"y": ("FLOAT", [4, 2])}
    model = model_artifact(tmp_path / "model", nodes, *shapes, {"w": np.eye(2, dtype=np.float32)})
    x = np.arange(12.0).reshape(6, 2)
    _, found = statistics(model, dataset(tmp_path / "data", rows(x)))
    assert found["x"].count == 6
    np.testing.assert_allclose(found["x"].mean, x.mean(axis=0))


def test_one_sample_is_enough_to_calibrate(statistics: Any, minilm: Artifact, texts: Artifact, tmp_path: Path) -> None:
    samples = Samples.load(texts.path)
    _, found = statistics(minilm, dataset(tmp_path / "one", samples.take([0])))
    assert {statistic.count for statistic in found.values()} == {int(samples.lengths()[0])}


def test_an_activation_that_is_not_finite_names_its_samples(statistics: Any, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Exp", ["h"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["y"]),
    ]
    shapes = {"x": ("FLOAT", ["batch", 2])}, {"y": ("FLOAT", ["batch", 2])}
    model = model_artifact(tmp_path / "model", nodes, *shapes, {"w": np.eye(2, dtype=np.float32)})
    x = np.ones((6, 2))
    x[3] = 1000
    with pytest.raises(DataError, match=r"e holds NaN or infinity on one of the calibration samples 2, 3$"):
        statistics(model, dataset(tmp_path / "data", rows(x)), batch_size=2)


def test_what_cannot_be_calibrated_is_refused(statistics: Any, tmp_path: Path) -> None:
    shapes = {"x": ("FLOAT", ["batch", 2])}, {"y": ("FLOAT", ["batch", 2])}
    nothing = model_artifact(tmp_path / "relu", [helper.make_node("Relu", ["x"], ["y"])], *shapes)
    data = dataset(tmp_path / "data", rows(np.ones((4, 2))))
    with pytest.raises(StageError, match="the model has no product or convolution with constant 32-bit weights"):
        statistics(nothing, data)
    model = linear(tmp_path / "linear", np.eye(2))
    with pytest.raises(StageError, match="random inputs say nothing of a model's real activations"):
        statistics(model, dataset(tmp_path / "random", rows(np.ones((4, 2))), evidence_kind="synthetic"))
    with pytest.raises(InputError, match="is a model, not a dataset"):
        statistics(model, model)


def test_damaged_statistics_are_named(statistics: Any, tmp_path: Path) -> None:
    artifact, _ = statistics(linear(tmp_path / "linear", np.eye(2)), dataset(tmp_path / "d", rows(np.ones((4, 2)))))
    (artifact.path / "statistics.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="holds no readable statistics"):
        Statistics.load(artifact.path)


def peak_bytes(model: Artifact, data: Artifact, out: Path) -> int:
    """The highest resident memory of a process that calibrates. (`ru_maxrss` would begin with that of this one.)"""
    out.mkdir()
    program = (
        "import sys; from pathlib import Path\n"
        "from stages.artifact import Artifact; from stages.calibrate import CalibrateOptions, calibrate\n"
        "model, data = (Artifact.read(Path(path)) for path in sys.argv[1:3])\n"
        "calibrate(model, data, CalibrateOptions(threads=1), Path(sys.argv[3]))\n"
        "status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())\n"
        "print(status['VmHWM'].split()[0])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(model.path), str(data.path), str(out)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return 1024 * int(ended.stdout)


def test_four_times_the_samples_take_no_more_memory(minilm: Artifact, texts: Artifact, tmp_path: Path) -> None:
    samples = Samples.load(texts.path)
    few, many = range(len(samples)), [*range(len(samples))] * 4
    peaks = [
        peak_bytes(minilm, dataset(tmp_path / name, samples.take(chosen)), tmp_path / f"{name} statistics")
        for name, chosen in (("few", few), ("many", many))
    ]
    assert peaks[1] < 1.1 * peaks[0]


def test_images_are_not_held_while_they_are_calibrated_on(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[16, 16])]
    shapes = {"x": ("FLOAT", ["batch", 3, 160, 160])}, {"y": ("FLOAT", ["batch", 4, 10, 10])}
    weight = np.ones((4, 3, 16, 16), np.float32)
    model = model_artifact(tmp_path / "model", nodes, *shapes, {"w": weight})
    images = [np.full((3, 160, 160), number, np.float32) for number in range(64)]
    peaks = [
        peak_bytes(model, dataset(tmp_path / str(times), Samples({"x": images * times})), tmp_path / f"out {times}")
        for times in (1, 4)
    ]
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_what_padding_looks_up_is_not_counted(statistics: Any, tmp_path: Path, flat: bool, padded: bool) -> None:
    table = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    table[0] = 1000
    samples = tokens([[1, 2], [3, 4, 5, 6], [7]])
    if padded:  # before they were given to us, to one length
        samples = Samples({name: list(array) for name, array in samples.batch(range(3)).items()})
    model = _looked_up(tmp_path / "model", table, flat)
    _, found = statistics(model, dataset(tmp_path / "data", samples), batch_size=2)
    (statistic,) = found.values()
    assert statistic.count == 7
    assert (statistic.low.tolist(), statistic.high.tolist()) == ([1, 1, 1], [7, 7, 7])


def _looked_up(path: Path, table: NDArray[Any], flat: bool) -> Artifact:
    """input_ids [batch, sequence] → rows of `table`, of all samples one after the other if `flat` → times ones."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Reshape", ["rows", "shape"], ["given"])
        if flat
        else helper.make_node("Identity", ["rows"], ["given"]),
        helper.make_node("MatMul", ["given", "w"], ["y"]),
        helper.make_node("CastLike", ["attention_mask", "y"], ["mask"]),
    ]
    inputs = {name: ("INT64", ["batch", "sequence"]) for name in ("input_ids", "attention_mask")}
    outputs = {
        "y": ("FLOAT", ["positions", 2] if flat else ["batch", "sequence", 2]),
        "mask": ("FLOAT", ["batch", "sequence"]),
    }
    weights = {"table": table, "w": np.ones((3, 2), np.float32), "shape": np.array([-1, 3])}
    return model_artifact(path, nodes, inputs, outputs, weights)
