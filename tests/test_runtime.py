"""Sessions: what they take, what they refuse, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import save_onnx, save_text_model

from model_repository.signature import TensorSpec
from stages.artifact import Artifact
from stages.convert import convert
from stages.errors import InputError, RequirementError, StageError
from stages.model import Model
from stages.runtime import RuntimeOptions, open_session, openvino
from stages.runtime.onnxruntime import OnnxRuntimeSession, signature_of
from stages.runtime.openvino import OpenVinoSession, capabilities, import_openvino, write_ir
from stages.source import locate
from stages.variants import parse_variant, quantise
from stages.verify.answers import difference

both = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])


@pytest.fixture
def small(tmp_path: Path) -> Artifact:
    source = locate(str(save_onnx(tmp_path / "small.onnx", width=8)))
    assert source is not None
    (tmp_path / "model").mkdir()
    return convert(source=source, out=tmp_path / "model")


def options(runtime: str, threads: int = 0) -> RuntimeOptions:
    return RuntimeOptions.model_validate({"name": runtime, "threads": threads})


@both
def test_a_session_answers_by_name(small: Artifact, runtime: str) -> None:
    with open_session(small, options(runtime, threads=1)) as session:
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
@both
def test_a_batch_that_does_not_fit_is_told_why(
    small: Artifact, batch: dict[str, np.ndarray], message: str, runtime: str
) -> None:
    with open_session(small, options(runtime)) as session, pytest.raises(InputError, match=message):
        session(batch)


@both
def test_a_wrong_shape_is_an_error_of_the_run(small: Artifact, runtime: str) -> None:
    with open_session(small, options(runtime)) as session, pytest.raises(StageError, match=r"shapes {'x': \(1, 5\)}"):
        session({"x": np.zeros((1, 5), dtype=np.float32)})


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "pytorch"])
def test_a_closed_session_answers_no_more(small: Artifact, tmp_path: Path, runtime: str) -> None:
    opened: Artifact | None = small
    if runtime == "pytorch":
        opened = locate(str(save_text_model(tmp_path / "source", "BertModel")))
    assert opened is not None
    session = open_session(opened, options(runtime))
    session.close()
    with pytest.raises(StageError, match="the session was closed"):
        session({"x": np.zeros((1, 4), dtype=np.float32)})


def test_pytorch_takes_sources_and_onnxruntime_takes_models(small: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a model; PyTorch opens sources"):
        open_session(small, RuntimeOptions(name="pytorch"))
    source = locate(str(tmp_path / "small.onnx"))
    assert source is not None
    with pytest.raises(InputError, match="is a source, not a model"):
        open_session(source, options("onnxruntime"))


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


@pytest.fixture(scope="module")
def digits(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    source = locate(str(classifier.model))
    assert source is not None
    return convert(source=source, out=tmp_path_factory.mktemp("digits"))


def batch_for(model: Artifact) -> dict[str, np.ndarray]:
    """Five samples; of tokens, the last of them padded."""
    generator = np.random.default_rng(0)
    if "x" in [tensor.name for tensor in Model.of(model).signature.inputs]:
        return {"x": generator.random((5, 64), dtype=np.float32)}
    mask = np.ones((5, 24), dtype=np.int64)
    mask[-1, 9:] = 0
    ids = generator.integers(1000, 30000, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.mark.parametrize("name", ["digits", "minilm_model"])
def test_openvino_answers_as_onnx_runtime_does(
    name: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model: Artifact = request.getfixturevalue(name)
    batch = batch_for(model)
    with open_session(model) as session:
        expected = session(batch)
    converted = quantise(model, parse_variant("fp32-openvino"), tmp_path_factory.mktemp("ir"))
    half = quantise(model, parse_variant("bf16-openvino"), tmp_path_factory.mktemp("half"))
    answers = []
    for artifact, runtime in ((model, "openvino"), (converted, None), (half, None)):
        with open_session(artifact, RuntimeOptions.model_validate({"name": runtime})) as session:
            assert isinstance(session, OpenVinoSession)
            answers.append(session(batch))
    for output, wanted in expected.items():
        off = [difference(wanted, answer[output]) for answer in answers]
        assert off[0] < 1e-4 and off[1] < 1e-4
        # Not a bit of FP32 is left in 16 of them; where the processor has no BF16, the weights alone have 16.
        assert 1e-4 < off[2] < 3e-2 if "BF16" in capabilities() else off[2] < 1e-2
    assert (half.path / "model.bin").stat().st_size < 0.51 * (converted.path / "model.bin").stat().st_size


def test_openvinos_form_of_a_graph_is_the_same_each_time(digits: Artifact, tmp_path: Path) -> None:
    for half in (False, True):
        written = []
        for place in (tmp_path / f"{half} 1", tmp_path / f"{half} 2"):
            place.mkdir()
            write_ir(digits.path / "model.onnx", place, half=half)
            written.append([(place / name).read_bytes() for name in ("model.xml", "model.bin")])
        assert written[0] == written[1]


def onnx_file(path: Path, graph: str) -> Path:
    import onnx

    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {graph}'), path)
    return path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "bool", "uint8"])
def test_openvino_takes_and_gives_the_dtypes_of_the_graph(tmp_path: Path, dtype: str) -> None:
    import ml_dtypes

    graph = "Not(x)" if dtype == "bool" else "Concat<axis = 1>(x, x)"
    width = 4 if dtype == "bool" else 8
    onnx_file(tmp_path / "model.onnx", f"({dtype}[batch, 4] x) => ({dtype}[batch, {width}] y) {{ y = {graph} }}")
    path = write_ir(tmp_path / "model.onnx", tmp_path)
    signature = openvino.signature_of(path)
    assert [(tensor.dtype, tensor.shape) for tensor in (*signature.inputs, *signature.outputs)] == [
        (dtype, ("batch", 4)),
        (dtype, ("batch", width)),
    ]
    x = (np.arange(12) % 3).reshape(3, 4).astype(getattr(ml_dtypes, dtype, dtype))
    with OpenVinoSession(path, signature) as session:
        answer = session({"x": x[::-1]})["y"]  # a strided view
    expected = ~x[::-1] if dtype == "bool" else np.concatenate([x[::-1], x[::-1]], axis=1)
    assert answer.dtype == x.dtype
    np.testing.assert_array_equal(answer, expected)


def test_openvino_refuses_text(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "words.onnx", "(string[batch] word) => (string[batch] same) { same = Identity(word) }")
    with pytest.raises(StageError, match="cannot take this graph: word, same is text"):
        write_ir(path, tmp_path)
    with pytest.raises(InputError, match=r"cannot run .*words\.onnx: word, same is text"):
        OpenVinoSession(path, signature_of(path))


def test_openvino_says_which_batch_a_fixed_graph_takes(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "fixed.onnx", "(float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }")
    with (
        OpenVinoSession(path, signature_of(path)) as session,
        pytest.raises(StageError, match=r"shapes {'x': \(2, 4\)}: Can't set the input .*\[1,4\]"),
    ):
        session({"x": np.zeros((2, 4), dtype=np.float32)})


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_that_openvino_cannot_answer_does_not_get_the_last_answer(tmp_path: Path, threads: int) -> None:
    path = onnx_file(tmp_path / "sum.onnx", "(float[n, a] x, float[n, b] y) => (float[n, c] z) { z = Add(x, y) }")
    ones = np.ones((2, 3), dtype=np.float32)
    with OpenVinoSession(path, signature_of(path), threads) as session:
        assert session({"x": ones, "y": ones})["z"].tolist() == [[2, 2, 2]] * 2
        with pytest.raises(StageError, match=r"'y': \(2, 4\)}: .*dim index: 1 mismatch"):
            session({"x": ones, "y": np.ones((2, 4), dtype=np.float32)})
        assert session({"x": ones, "y": 2 * ones})["z"].tolist() == [[3, 3, 3]] * 2


def test_openvino_says_what_it_cannot_load(digits: Artifact, tmp_path: Path) -> None:
    signature = Model.of(digits).signature
    with pytest.raises(InputError, match=r"none\.xml is missing"):
        OpenVinoSession(tmp_path / "none.xml", signature)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"cannot load .*broken\.onnx: Unable to read the model"):
        OpenVinoSession(tmp_path / "broken.onnx", signature)
    path = write_ir(digits.path / "model.onnx", tmp_path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(InputError, match=r"cannot load .*model\.xml: Empty weights data in bin file"):
        OpenVinoSession(path, signature)
    with pytest.raises(InputError, match="Empty weights data"):
        openvino.signature_of(path)
    foreign = onnx_file(tmp_path / "foreign.onnx", "(float[n] x) => (float[n] y) { y = other.Strange(x) }")
    with pytest.raises(StageError, match=r"cannot take this graph: .*No conversion rule found .* other\.Strange"):
        write_ir(foreign, tmp_path)


def test_the_names_of_an_output_do_not_confuse_openvino(tmp_path: Path) -> None:
    """One value under several names, which OpenVINO makes one tensor of."""
    path = onnx_file(
        tmp_path / "graph.onnx",
        "(float[batch, 2] x) => (float[batch, 2] y, float[batch, 2] b) { a = Relu(x) b = Identity(a) y = Identity(b) }",
    )
    ir = write_ir(path, tmp_path)
    assert [tensor.name for tensor in openvino.signature_of(ir).outputs] == ["y", "b"]
    for graph in (path, ir):
        with OpenVinoSession(graph, signature_of(path)) as session:
            answer = session({"x": np.array([[-1, 2]], dtype=np.float32)})
        assert {name: values.tolist() for name, values in answer.items()} == {"y": [[0, 2]], "b": [[0, 2]]}


def test_a_missing_openvino_is_a_missing_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RequirementError, match="openvino is not installed"):
        import_openvino()


QUIETLY = """
import sys
from pathlib import Path
from stages.runtime.onnxruntime import OnnxRuntimeSession
from stages.runtime.openvino import OpenVinoSession
graph = Path(sys.argv[1])
with OnnxRuntimeSession(graph) as session, OpenVinoSession(graph, session.signature):
    assert sys.modules["openvino_telemetry"] is None
"""


def test_no_runtime_reports_to_its_makers(digits: Artifact, tmp_path: Path) -> None:
    """Both would make a number for this machine in the home directory before they send anything."""
    ended = subprocess.run(
        [sys.executable, "-c", QUIETLY, str(digits.path / "model.onnx")],
        env={name: value for name, value in os.environ.items() if "TELEMETRY" not in name} | {"HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.iterdir()) == []
