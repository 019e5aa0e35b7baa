"""`optimize explain`: where the error of a variant comes from, told from what the store has of a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx_artifacts import dataset, linear, rows, tokens
from planted import Planted
from workplace import Finished, Workplace

from calibration.origins import TextReader, row_of
from calibration.samples import Samples
from stages.artifact import Artifact
from stages.calibrate import CalibrateOptions, calibrate
from stages.explain import ExplainOptions, explain
from stages.model import ASSETS
from stages.noise import Noise, decibels
from stages.progress import SILENT
from stages.variants import parse_variant, quantise


@pytest.fixture
def copied(planted_run: Finished, planted_place: Workplace, workplace: Workplace) -> Workplace:
    """The planted run's store, to be damaged; that run is its last."""
    shutil.copytree(planted_place.store, workplace.store)
    (workplace.store / "jobs" / planted_run.json["job_id"] / "result.json").touch()
    return workplace


@pytest.fixture
def job(planted_run: Finished) -> str:
    return str(planted_run.json["job_id"])


def test_the_layer_that_brings_the_error_in_is_told(
    planted_run: Finished, planted_place: Workplace, planted: Planted, job: str
) -> None:
    ended = planted_place.optimize("explain", job, "int8-dynamic", "--store", planted_place.store, "--json")
    assert ended.code == 0, ended.err
    told = ended.json
    assert (told["job_id"], told["variant"], told["verdict"]) == (job, "int8-dynamic", "fail")
    layers = [layer["operator"] for layer in told["layers"]]
    ratios = [layer["sqnr_db"] for layer in told["layers"]]
    place = layers.index(planted.damaged)
    assert min(ratios[:place]) > 20
    assert ratios[place] < 10
    assert all(layer["quantised"] for layer in told["layers"])
    assert told["layers"][place]["name"] == "encoder.layer.0.intermediate.dense"
    assert told["fallback"] == planted_run.json["fallbacks"][0]
    cosines = [sample["figures"]["cosine"] for sample in told["worst"]]
    assert cosines == sorted(cosines)
    assert told["worst"][0]["row"] == told["worst"][0]["sample"] + 1
    assert told["missing"] == []


def test_what_fallback_returned_is_marked_and_clean(planted_place: Workplace, planted: Planted, job: str) -> None:
    command = ["explain", job[:8], "int8-dynamic+fallback", "--store", planted_place.store]
    told = planted_place.optimize(*command, "--json").json
    layer = next(layer for layer in told["layers"] if layer["operator"] == planted.damaged)
    assert (layer["quantised"], layer["kept"]) == (False, True)
    assert layer["sqnr_db"] > 25
    assert min(told["outputs"].values()) > 20
    again = planted_place.optimize(*command, "--json")
    assert "cached" in again.err, "looking inside is a step like any other"
    assert again.json == told


def test_on_a_terminal_it_is_a_table_of_90_columns(
    planted_run: Finished, planted_place: Workplace, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    ended = planted_place.optimize("explain", job, "int8-dynamic+fallback", "--store", planted_place.store)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert max(len(line) for line in lines) <= 90
    assert any("encoder.layer.0.intermediate.dense" in line and "returned" in line for line in lines)
    assert sum(line.startswith("▼") for line in lines) == 3
    assert any(line.startswith("▸  encoder.layer.0 MLP") for line in lines)
    assert planted_run.json["fallbacks"][0]["reason"] in " ".join(ended.out.split())


@pytest.mark.parametrize(
    ("run", "variant", "said"),
    [
        ("lats", "int8-dynamic", "did you mean 'last'?"),
        ("last", "int8-dynamik", "did you mean 'int8-dynamic'?"),
        ("last", "fp32", "the baseline"),
        ("", "int8-dynamic", "there is no run ''"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(
    planted_run: Finished, planted_place: Workplace, run: str, variant: str, said: str
) -> None:
    ended = planted_place.optimize("explain", run, variant, "--store", planted_place.store)
    assert ended.code == 2
    assert said in ended.err


def test_a_beginning_that_several_runs_share_is_not_guessed(copied: Workplace, job: str) -> None:
    shutil.copytree(copied.store / "jobs" / job, copied.store / "jobs" / f"{job[:-1]}x")
    ended = copied.optimize("explain", job[:-1], "int8-dynamic", "--store", copied.store)
    assert ended.code == 2
    assert f"{job}, {job[:-1]}x" in ended.err


def test_a_place_that_is_no_store_is_not_made_into_one(workplace: Workplace) -> None:
    ended = workplace.optimize("explain", "last", "int8-dynamic", "--store", workplace.path / "nothing")
    assert ended.code == 2
    assert not (workplace.path / "nothing").exists()


def test_what_was_removed_from_the_store_is_named_and_the_rest_is_told(
    copied: Workplace, planted_run: Finished
) -> None:
    keys = {stage["name"]: stage["key"] for stage in planted_run.json["stages"]}
    shutil.rmtree(copied.store / "steps" / keys["make int8-dynamic"])
    ended = copied.optimize("explain", "last", "int8-dynamic", "--store", copied.store, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["layers"] == []
    (missing,) = ended.json["missing"]
    assert "gone: make int8-dynamic" in missing
    assert "run the job again" in missing
    assert ended.json["worst"]
    assert ended.json["fallback"]["sensitivity"]
    (copied.store / "steps" / keys["check int8-dynamic"] / "artifact" / "artifact.json").unlink()
    printed = copied.optimize("explain", "last", "int8-dynamic", "--store", copied.store)
    assert printed.code == 0, printed.err
    assert "its evaluation is no longer in the store" in printed.out


def test_openvino_shows_its_inner_values_too(tmp_path: Path) -> None:
    """One layer after another in INT8: what the second one gives has the noise of both."""
    pytest.importorskip("openvino")
    random = np.random.default_rng(0)
    model = linear(tmp_path / "model", random.normal(size=(32, 32)))
    data = dataset(tmp_path / "data", rows(random.normal(size=(64, 32))))
    (tmp_path / "statistics").mkdir()
    statistics = calibrate(model, data, CalibrateOptions(), tmp_path / "statistics")
    for runtime in ("onnxruntime", "openvino"):
        (tmp_path / runtime).mkdir()
        (tmp_path / f"{runtime} inside").mkdir()
        config = parse_variant({"type": "int8-static", "runtime": runtime})
        variant = quantise(model, config, tmp_path / runtime, SILENT, statistics)
        told = explain(model, variant, data, ExplainOptions(), tmp_path / f"{runtime} inside").metadata
        (layer,) = told["layers"]
        assert layer["quantised"]
        assert 30 < layer["sqnr_db"] < 60
        assert told["outputs"] == {"logits": layer["sqnr_db"]}


def test_a_model_beside_itself_has_no_noise(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    model = linear(tmp_path / "model", random.normal(size=(8, 4)))
    data = dataset(tmp_path / "data", rows(random.normal(size=(4, 8))))
    (tmp_path / "out").mkdir()
    told = explain(model, model, data, ExplainOptions(), tmp_path / "out").metadata
    assert told["layers"][0]["sqnr_db"] == 120
    assert not told["layers"][0]["quantised"]


def test_noise_is_told_in_decibels() -> None:
    noise = Noise()
    noise.add(np.array([1.1, 2.0]), np.array([1.0, 2.0]))
    assert decibels(noise.ratio) == pytest.approx(10 * np.log10(5 / 0.01))
    noise.add(np.array([np.nan]), np.array([1.0]))
    assert decibels(noise.ratio) == -120
    labels = Noise()
    labels.add(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    assert labels.ratio == 0.25


def _samples(count: int, **truth: object) -> Samples:
    return tokens([[1, 2]] * count, truth or None)


@pytest.mark.parametrize(
    ("samples", "sample", "total", "row"),
    [
        (_samples(3), 2, 3, 3),
        (_samples(3), 2, 100, None),
        (_samples(4, kind="similarity", pairs=2, score=[1.0, 0.0]), 3, 2, 2),
        (_samples(5, kind="retrieval", queries=3, documents=2, relevant=[0, 0, 1]), 1, 3, 2),
        (_samples(5, kind="retrieval", queries=3, documents=2, relevant=[0, 0, 1]), 4, 3, 3),
    ],
)
def test_the_row_of_a_sample(samples: Samples, sample: int, total: int, row: int | None) -> None:
    assert row_of(samples, sample, total) == row


def test_the_text_of_a_sample(minilm_model: Artifact) -> None:
    reader = TextReader(minilm_model.path / ASSETS)
    ids: Sequence[int] = [101, 7592, 2088, 102, 0]
    assert reader.text_of(tokens([ids]), 0) == "hello world"
    assert reader.text_of(rows(np.zeros((1, 2))), 0) is None
    assert TextReader(minilm_model.path / "nothing").text_of(tokens([ids]), 0) is None
