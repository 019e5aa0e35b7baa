"""Sessions: what they take, what they refuse, and how they end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import save_onnx, save_text_model

from model_repository.signature import TensorSpec
from stages.artifact import Artifact
from stages.convert import convert
from stages.errors import InputError, StageError
from stages.runtime import RuntimeOptions, open_session
from stages.runtime.onnxruntime import OnnxRuntimeSession, signature_of
from stages.source import locate


@pytest.fixture
def small(tmp_path: Path) -> Artifact:
    source = locate(str(save_onnx(tmp_path / "small.onnx", width=8)))
    assert source is not None
    (tmp_path / "model").mkdir()
    return convert(source=source, out=tmp_path / "model")


def test_a_session_answers_by_name(small: Artifact) -> None:
    with open_session(small, RuntimeOptions(threads=1)) as session:
        answer = session({"x": np.zeros((3, 4), dtype=np.float32)})
    assert list(answer) == ["y"] and answer["y"].shape == (3, 8) and not answer["y"].any()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "lacks x; the model's inputs are x"),
        ({"z": np.zeros(1)}, "lacks x and has z that the model does not know"),
        ({"x": np.zeros((1, 4))}, "x is float64, the model takes float32"),
    ],
)
def test_a_batch_that_does_not_fit_is_told_why(small: Artifact, batch: dict[str, np.ndarray], message: str) -> None:
    with open_session(small) as session, pytest.raises(InputError, match=message):
        session(batch)


def test_a_wrong_shape_is_an_error_of_the_run(small: Artifact) -> None:
    with open_session(small) as session, pytest.raises(StageError, match=r"shapes {'x': \(1, 5\)}"):
        session({"x": np.zeros((1, 5), dtype=np.float32)})


@pytest.mark.parametrize("runtime", ["onnxruntime", "pytorch"])
def test_a_closed_session_answers_no_more(small: Artifact, tmp_path: Path, runtime: str) -> None:
    opened: Artifact | None = small
    if runtime == "pytorch":
        opened = locate(str(save_text_model(tmp_path / "source", "BertModel")))
    assert opened is not None
    session = open_session(opened, RuntimeOptions.model_validate({"name": runtime}))
    session.close()
    with pytest.raises(StageError, match="the session was closed"):
        session({"x": np.zeros((1, 4), dtype=np.float32)})


def test_pytorch_takes_sources_and_onnxruntime_takes_models(small: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a model; PyTorch opens sources"):
        open_session(small, RuntimeOptions(name="pytorch"))
    source = locate(str(tmp_path / "small.onnx"))
    assert source is not None
    with pytest.raises(InputError, match="is a source, not a model"):
        open_session(source)


def test_pytorch_gives_back_the_number_of_threads(tmp_path: Path) -> None:
    import torch

    source = locate(str(save_text_model(tmp_path / "source", "BertModel")))
    assert source is not None
    before = torch.get_num_threads()
    with open_session(source, RuntimeOptions(name="pytorch", threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_pytorch_checks_the_batch(tmp_path: Path) -> None:
    source = locate(str(save_text_model(tmp_path / "source", "BertModel")))
    assert source is not None
    with (
        open_session(source, RuntimeOptions(name="pytorch", threads=1)) as session,
        pytest.raises(InputError, match=r"the batch has input_ids float32; the model takes input_ids int64"),
    ):
        session({"input_ids": np.zeros((1, 4), dtype=np.float32)})


def test_missing_external_data_are_told(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "small.onnx", external="weights")
    (tmp_path / "weights").unlink()
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load .*small\.onnx"):
        OnnxRuntimeSession(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.onnx is missing"):
        OnnxRuntimeSession(tmp_path / "none.onnx")


def test_axes_without_a_name_get_one(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, "time", None, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    signature = signature_of(tmp_path / "g.onnx")
    assert signature.inputs == (TensorSpec(name="x", dtype="float32", shape=("batch", "time", "x_2", 3)),)
    assert signature.outputs[0].shape == ("batch", "time", "y_2", 3)
    assert signature.batched
