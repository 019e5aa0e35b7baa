"""A release is believed only when the real server has loaded it, answered rightly and put requests together."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from released import FIXED, Release, Released, in_openvino, make_data, release_of

from calibration.samples import Samples
from model_repository.config import read
from model_repository.environment import ServerEnvironment
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.model import Model
from stages.runtime import RuntimeOptions
from stages.runtime.onnxruntime import OnnxRuntimeSession
from stages.runtime.openvino import capabilities
from stages.variants import parse_variant, quantise
from stages.verify import REPORT, VerifyOptions, verify
from stages.verify.answers import Comparison, difference
from stages.verify.configuration import changes
from stages.verify.verify import _depends_on_batch

pytestmark = pytest.mark.usefixtures("triton")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def check(item: Released, data: Artifact, out: Path, **options: Any) -> Artifact:
    return verify(release=item.release, model=item.model, data=data, options=VerifyOptions(**options), out=out)


def altered(item: Released, path: Path, right: str, wrong: str) -> Released:
    """The same release with something else in its configuration."""
    shutil.copytree(item.release.path, path)
    config = path / "config.pbtxt"
    assert right in config.read_text()
    config.write_text(config.read_text().replace(right, wrong))
    return Released(item.model, Artifact.write(path, "release", item.release.metadata))


def test_a_good_release_is_verified(digits: Released, digits_data: Artifact, out: Path) -> None:
    artifact = check(digits, digits_data, out)
    assert artifact.kind == "verification"
    assert sorted(path.name for path in out.iterdir()) == ["artifact.json", REPORT]
    found = json.loads((out / REPORT).read_text())
    assert found == artifact.metadata
    assert found["server_version"] == "2.51.0"
    assert found["samples"] == 32 and found["max_batch_size"] == 8
    assert found["requests"] / found["executions"] == pytest.approx(found["batching_ratio"], abs=1e-3)
    assert 1 < found["batching_ratio"] <= 8
    assert found["tolerance"] == 1e-4 and found["drift"] == {}
    largest = found["largest_difference"]
    assert largest["http"] == largest["grpc"] == {"logits": 0.0}  # the same library on the same input
    assert largest["batches"]["logits"] < 1e-6 and largest["at_once"]["logits"] < 1e-6


def test_answers_of_another_model_are_refused(
    classifier: Any, digits: Released, digits_data: Artifact, tmp_path: Path, out: Path
) -> None:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(classifier.model)
    for weights in graph.graph.initializer:
        if weights.name == "b2":
            weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) + np.float32(0.01), "b2"))
    shutil.copytree(digits.release.path, tmp_path / "release")
    (tmp_path / "release" / "model.onnx").unlink()
    onnx.save(graph, tmp_path / "release" / "model.onnx")
    tampered = Released(digits.model, Artifact.write(tmp_path / "release", "release", digits.release.metadata))
    with pytest.raises(
        StageError, match=r"wrong answer over HTTP: output 'logits' of sample 0 differs by 0.00\d+ \(allowed 0.0001\)"
    ):
        check(tampered, digits_data, out)
    assert not list(out.iterdir())


def test_a_release_that_the_server_refuses_is_refused_with_its_reason(
    digits: Released, digits_data: Artifact, tmp_path: Path, out: Path
) -> None:
    wrong = altered(digits, tmp_path / "release", "dims: 10", "dims: 11")
    with pytest.raises(
        StageError, match=r"'digits' is not served: .* dims \[-1, 11\] do not fit the graph's \[-1, 10\]"
    ):
        check(wrong, digits_data, out)


def test_a_release_that_does_not_batch_is_refused(
    digits: Released, digits_data: Artifact, tmp_path: Path, out: Path
) -> None:
    text = (digits.release.path / "config.pbtxt").read_text()
    start = text.index("dynamic_batching {")
    block = text[start : text.index("}", start) + 1]
    wrong = altered(digits, tmp_path / "release", block, "")
    with pytest.raises(StageError, match=r"the server does not batch: .* 8 in flight, took .*`dynamic_batching`"):
        check(wrong, digits_data, out)


def test_a_model_without_a_batch_axis_is_verified(released: Release, tmp_path: Path, out: Path) -> None:
    samples = Samples({"x": [np.arange(4, dtype=np.float32) - index for index in range(5)]})
    found = check(released("fixed", FIXED), make_data(tmp_path / "data", samples), out).metadata
    assert found["batching_ratio"] == 1 and found["max_batch_size"] == 0
    assert found["largest_difference"]["batches"] == {} and found["largest_difference"]["at_once"] == {"y": 0.0}


def test_a_server_that_dies_while_it_is_asked_is_reported(digits: Released, digits_data: Artifact, out: Path) -> None:
    class Killer:
        def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
            if note == "asking over gRPC":
                servers = [item for item in psutil.Process().children(recursive=True) if item.name() == "tritonserver"]
                server = max(servers, key=lambda item: item.create_time())
                server.kill()

    with pytest.raises(StageError, match=r"the Triton server ended \(killed by SIGKILL\)"):
        verify(
            release=digits.release, model=digits.model, data=digits_data, options=VerifyOptions(), out=out,
            progress=Killer(),
        )  # fmt: skip


def test_a_machine_that_cannot_have_the_server_is_a_missing_requirement(
    digits: Released, digits_data: Artifact, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RequirementError, match=r"nvidia-pytriton==0.7.0.*No matching distribution.*package index"):
        check(digits, digits_data, out, cache=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_artifacts_that_do_not_go_together_are_refused(digits: Released, digits_data: Artifact, out: Path) -> None:
    with pytest.raises(InputError, match="is a model, not a release"):
        check(Released(digits.model, digits.model), digits_data, out)
    with pytest.raises(InputError, match="holds no readable samples"):
        check(digits, digits.model, out)
    with pytest.raises(InputError, match="no tolerance for the precision 'fp32'"):
        check(digits, digits_data, out, tolerances={"fp16": 1e-2})


@pytest.fixture(scope="module")
def texts(minilm_checkpoint: Path, minilm_model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """24 pieces of the standard library's documentation, as MiniLM takes them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(32)
    found = [text for module in (inspect, textwrap) for item in vars(module).values() if (text := inspect.getdoc(item))]
    encoded = [tokenizer.encode(text) for text in list(dict.fromkeys(found))[:24]]
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    inputs = {
        tensor.name: [np.array(getattr(item, columns[tensor.name]), np.int64) for item in encoded]
        for tensor in Model.of(minilm_model).signature.inputs
    }
    return make_data(tmp_path_factory.mktemp("texts") / "samples", Samples(inputs, dict.fromkeys(inputs, 0.0)))


@pytest.fixture(scope="module")
def minilm(
    minilm_model: Artifact, texts: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Released, Artifact]:
    """MiniLM in dynamic INT8, its release, and texts."""
    path = tmp_path_factory.mktemp("minilm")
    (path / "variant").mkdir()
    variant = quantise(model=minilm_model, options=parse_variant("int8-dynamic"), out=path / "variant")
    return release_of(path / "release", variant, "minilm"), texts


def test_dynamic_quantisation_is_held_strictly_where_the_batch_is_known(
    minilm: tuple[Released, Artifact], out: Path
) -> None:
    item, data = minilm
    found = check(item, data, out).metadata
    largest, (output,) = found["largest_difference"], [tensor.name for tensor in Model.of(item.model).signature.outputs]
    assert found["tolerance"] == 1e-2
    for requests in ("http", "grpc", "batches", "at_once"):
        assert largest[requests][output] < 1e-3
    # Beside other requests an answer moves far more than that, and yet it is one of two.
    assert found["drift"][output] > 1e-2
    assert found["batching_ratio"] > 1


def test_among_copies_of_two_texts_each_has_one_of_two_answers(minilm: tuple[Released, Artifact]) -> None:
    """Whatever batches Triton makes of them; and the two are far from those of the other text."""
    item, data = minilm
    samples = Samples.load(data.path)
    session = OnnxRuntimeSession(item.model.path / "model.onnx", threads=1)
    (output,) = session.signature.outputs
    together = samples.batch(range(len(samples)))

    def answers(rows: list[int]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = session({name: array[rows] for name, array in together.items()})[output.name]
        return answer

    random = np.random.default_rng(0)
    for first in range(0, len(samples) - 1, 2):
        pair = [first, first + 1]
        right = {row: [answers([row])[0], answers(pair)[pair.index(row)]] for row in pair}
        for size in (2, 5, 8):
            rows = random.choice(pair, size).tolist()
            for row, answer in zip(rows, answers(rows), strict=True):
                (other,) = set(pair) - {row}
                assert min(difference(wanted, answer) for wanted in right[row]) < 1e-3
                assert min(difference(wanted, answer) for wanted in right[other]) > 0.1


def test_an_answer_that_belongs_to_another_request_is_refused() -> None:
    first, second = ({"y": np.array([[1.0, 0.0]])}, {"y": np.array([[0.9, 0.1]])})
    beside = {"y": np.array([[1.0, 0.02]])}
    comparison = Comparison("over gRPC, among other requests", 1e-2)
    comparison.hold([3], [first, beside], {"y": np.array([[1.0, 0.015]])})
    assert comparison.largest["y"] == pytest.approx(0.005)
    with pytest.raises(StageError, match=r"among other requests: output 'y' of sample 3 differs by 0.1 "):
        comparison.hold([3], [first, beside], second)


def test_a_release_in_openvino_is_verified(minilm_model: Artifact, texts: Artifact, tmp_path: Path, out: Path) -> None:
    item = in_openvino(tmp_path / "bf16", minilm_model, "minilm", "bf16-openvino")
    found = check(item, texts, out).metadata
    (output,) = [tensor.name for tensor in Model.of(item.model).signature.outputs]
    assert found["max_batch_size"] == 0 and found["requests"] == found["executions"]
    # The same library on the same requests, whatever else is in flight: Triton puts nothing together.
    assert found["largest_difference"] == {
        requests: {output: 0.0} for requests in ("http", "grpc", "batches", "at_once")
    }
    assert found["drift"] == {} and found["arithmetic_shift"] == {}


def test_what_openvino_computes_in_bf16_is_held_against_what_was_measured_in_fp32(
    digits_fp32: Released, digits_data: Artifact, out: Path, tmp_path: Path
) -> None:
    found = check(digits_fp32, digits_data, out).metadata
    assert found["tolerance"] == 1e-4
    assert set(found["largest_difference"]["batches"].values()) == {0.0}
    shift = found["arithmetic_shift"]["logits"]
    if "BF16" not in capabilities():
        assert shift == 0
        return
    assert 1e-4 < shift < 3e-2
    (tmp_path / "again").mkdir()
    with pytest.raises(StageError, match=r"computes in BF16 on this processor.*'logits' differs by .*allowed 0\.0001"):
        check(digits_fp32, digits_data, tmp_path / "again", bf16_shift=1e-4)


QUANTISED = """
    <ir_version: 8, opset_import: ["" : 17]>
    quantised (float[batch, 4] x) => (float[batch, 2] y)
    <float[4, 2] weights = {1, 2, 3, 4, 5, 6, 7, 8}, float given = {0.03}, uint8 zero = {128}>
    { %s y = MatMul(halfway, weights) }
"""


@pytest.mark.parametrize(
    ("quantisation", "depends"),
    [
        ("q, s, z = DynamicQuantizeLinear(x) halfway = DequantizeLinear(q, s, z)", True),
        ("q = QuantizeLinear(x, given, zero) halfway = DequantizeLinear(q, given, zero)", False),
    ],
)
def test_only_dynamic_quantisation_depends_on_the_batch(tmp_path: Path, quantisation: str, depends: bool) -> None:
    import onnx

    graph = onnx.parser.parse_model(QUANTISED % quantisation)
    onnx.save(graph, tmp_path / "graph.onnx")
    session = OnnxRuntimeSession(tmp_path / "graph.onnx", threads=1)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    together = session({"x": x})["y"]
    alone = np.concatenate([session({"x": row[None]})["y"] for row in x])
    assert (difference(alone, together) > 1e-3) == depends
    operators = {node.op_type: 1 for node in graph.graph.node}
    model = Model(signature=session.signature, opset=17, precision="int8", operators=operators)
    assert _depends_on_batch(model) == depends
    assert _depends_on_batch(model.model_copy(update={"operators": {}})), "nothing is known of it"


@pytest.mark.parametrize(
    ("expected", "answer", "off"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 200.0], [3.0, 200.0], 0.01),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, 2.0], [np.inf, 1.0], 0.5),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([1.0, 1.0], [np.nan, 1.0], np.inf),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_the_difference_of_answers(expected: list[float], answer: list[float], off: float) -> None:
    assert difference(np.array(expected, np.float32), np.array(answer, np.float32)) == pytest.approx(off)
    assert difference(np.array(expected, np.float16), np.array(expected, np.float32)) == np.inf


def test_the_difference_of_answers_that_are_not_floats() -> None:
    assert difference(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert difference(np.array(["a", "b"], dtype=object), np.array(["a", "b"], dtype=object)) == 0


def test_what_a_server_changed_in_a_configuration_is_said(digits: Released, triton: ServerEnvironment) -> None:
    ours = read(digits.release.path / "config.pbtxt")

    def of(**changed: Any) -> list[str]:
        theirs = type(ours)()
        theirs.CopyFrom(ours)
        theirs.platform = "onnxruntime_onnx"  # filled in by every server
        for name, value in changed.items():
            setattr(theirs, name, value)
        return changes(ours, theirs)

    assert of() == []
    assert of(max_batch_size=4) == ["max_batch_size is 4, ours 8"]
    theirs = type(ours)()
    theirs.CopyFrom(ours)
    theirs.ClearField("dynamic_batching")
    theirs.input[0].dims[0] = 63
    theirs.output.add(name="more")
    theirs.parameters["execution_mode"].string_value = "1"
    assert changes(ours, theirs) == [
        "input[0].dims[0] is 63, ours 64",
        "output has 2 entries, ours 1",
        "dynamic_batching is gone",
        "parameters differs in having execution_mode",
        "the scheduling is None, ours dynamic_batching",
    ]


def test_batching_that_the_server_added_is_said(released: Release) -> None:
    ours = read(released("fixed", FIXED).release.path / "config.pbtxt")
    theirs = type(ours)()
    theirs.CopyFrom(ours)
    theirs.max_batch_size = 4
    theirs.dynamic_batching.SetInParent()
    assert changes(ours, theirs) == [
        "max_batch_size is 4, ours 0",
        "the scheduling is dynamic_batching, ours None",
    ]


def test_options_are_frozen_and_refuse_unknown_keys() -> None:
    assert RuntimeOptions(name="triton", address="grpc://localhost:8001").name == "triton"
    with pytest.raises(ValueError, match="concurency"):
        VerifyOptions.model_validate({"concurency": 8})
