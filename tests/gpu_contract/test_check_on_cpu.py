"""What is made for TensorRT runs on the CPU too, and ONNX Runtime, asked directly, agrees with what the check says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from workplace import Classifier

from stages.artifact import Artifact
from stages.calibrate import CalibrateOptions, calibrate
from stages.check import CheckOptions, check
from stages.convert import convert
from stages.prepare import PrepareOptions, locate_data, prepare
from stages.progress import SILENT
from stages.source import locate
from stages.variants import parse_variant, quantise

VARIANTS = ("fp16", "int8-static", "fp8-static")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("check_on_cpu")


@pytest.fixture(scope="module")
def model(classifier: Classifier, places: Path) -> Artifact:
    source = locate(str(classifier.model))
    assert source is not None
    (places / "model").mkdir()
    return convert(source=source, out=places / "model")


@pytest.fixture(scope="module")
def data(classifier: Classifier, model: Artifact, places: Path) -> Artifact:
    (places / "data").mkdir()
    given = locate_data(str(classifier.evaluation))
    return prepare(model, PrepareOptions(role="evaluation"), places / "data", SILENT, given)


@pytest.fixture(scope="module")
def baseline(model: Artifact, data: Artifact, places: Path) -> Artifact:
    (places / "baseline").mkdir()
    return check(model, data, CheckOptions(threads=1), places / "baseline")


def answered(path: Path, images: np.ndarray) -> np.ndarray:
    """What the graph says as it is written, operator by operator."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {"x": images})
    return np.asarray(logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_check_says_what_the_graph_computes(
    variant: str, classifier: Classifier, model: Artifact, data: Artifact, baseline: Artifact, places: Path
) -> None:
    statistics = places / "statistics"
    if not statistics.exists():
        statistics.mkdir()
        calibrate(model, data, CalibrateOptions(), statistics)
    for name in (variant, f"{variant} checked"):
        (places / name).mkdir()
    config = parse_variant({"type": variant, "runtime": "tensorrt"})
    made = quantise(model, config, places / variant, SILENT, Artifact.read(statistics))  # type: ignore[arg-type]
    options = CheckOptions(threads=1, runtime="onnxruntime")
    said = check(made, data, options, places / f"{variant} checked", reference=baseline).metadata

    held = np.load(classifier.evaluation)
    logits, plain = (answered(each.path / "model.onnx", held["x"]) for each in (made, model))
    accuracy = float((logits.argmax(axis=1) == held["labels"]).mean())
    cosine = (logits * plain).sum(axis=1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(plain, axis=1)
    assert said["metric"]["name"] == "accuracy"
    # ONNX Runtime computes INT8 in other steps where it may, and rounds at other places.
    assert said["metric"]["value"] == pytest.approx(accuracy, abs=0.003)
    assert said["fidelity"]["cosine"] == pytest.approx(float(cosine.mean()), abs=1e-3)
    assert accuracy > classifier.accuracy - 0.02
