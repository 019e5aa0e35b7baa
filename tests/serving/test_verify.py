"""A release is believed only when the real server has loaded it, answered rightly and put requests together."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from released import FIXED, Release, Released, make_data, release_of

from calibration.samples import Samples
from model_repository.config import read
from model_repository.environment import ServerEnvironment
from stages.artifact import Artifact
from stages.convert import convert
from stages.errors import InputError, RequirementError, StageError
from stages.model import Model
from stages.runtime import RuntimeOptions
from stages.runtime.onnxruntime import OnnxRuntimeSession
from stages.source import SourceOptions, fetch
from stages.variants import parse_variant, quantise
from stages.verify import REPORT, VerifyOptions, verify
from stages.verify.answers import difference
from stages.verify.configuration import changes

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
    assert found["tolerance_at_once"] == found["tolerance"] == 1e-4 and found["drift"] == {}
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
def minilm(minilm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Released, Artifact]]:
    """MiniLM in dynamic INT8, its release, and 24 pieces of the standard library's documentation."""
    from tokenizers import Tokenizer

    path = tmp_path_factory.mktemp("minilm")
    for name in ("source", "model", "variant", "data"):
        (path / name).mkdir()
    source = fetch(options=SourceOptions(reference=str(minilm_checkpoint)), out=path / "source")
    model = convert(source=source, out=path / "model")
    variant = quantise(model=model, options=parse_variant("int8-dynamic"), out=path / "variant")
    tokenizer = Tokenizer.from_file(str(minilm_checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(32)
    texts = [text for module in (inspect, textwrap) for item in vars(module).values() if (text := inspect.getdoc(item))]
    encoded = [tokenizer.encode(text) for text in list(dict.fromkeys(texts))[:24]]
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    inputs = {
        tensor.name: [np.array(getattr(item, columns[tensor.name]), np.int64) for item in encoded]
        for tensor in Model.of(variant).signature.inputs
    }
    samples = Samples(inputs, dict.fromkeys(inputs, 0.0))
    return release_of(path / "release", variant, "minilm"), make_data(path / "samples", samples)


def test_dynamic_quantisation_is_held_strictly_where_the_batch_is_known(
    minilm: tuple[Released, Artifact], out: Path
) -> None:
    item, data = minilm
    found = check(item, data, out).metadata
    largest, (output,) = found["largest_difference"], [tensor.name for tensor in Model.of(item.model).signature.outputs]
    assert found["tolerance"] == 1e-2
    for requests in ("http", "grpc", "batches"):
        assert largest[requests][output] < 1e-4
    # Beside other requests an answer moves far more than that, and so it does in this process.
    assert found["drift"][output] > 1e-2
    assert largest["at_once"][output] <= found["tolerance_at_once"] == 2 * found["drift"][output]
    assert found["batching_ratio"] > 1


def test_the_allowance_for_drift_is_smaller_than_the_difference_between_texts(
    minilm: tuple[Released, Artifact],
) -> None:
    """Otherwise answers given to the wrong request would pass."""
    item, data = minilm
    samples = Samples.load(data.path)
    session = OnnxRuntimeSession(item.model.path / "model.onnx", threads=1)
    (output,) = session.signature.outputs
    together = samples.batch(range(len(samples)))
    alone = [
        session({name: array[row : row + 1] for name, array in together.items()})[output.name]
        for row in range(len(samples))
    ]
    batched = session(together)[output.name]
    drift = max(difference(alone[row], batched[row : row + 1]) for row in range(len(samples)))
    apart = min(difference(alone[row], alone[row - 1]) for row in range(len(samples)))
    assert 2 * drift < apart


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
