"""A model and its configuration become a release that the repository takes and Triton's checks let through."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from model_repository import Repository, Signature, TensorSpec
from model_repository.config import read
from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.model import Model
from stages.package import PackageOptions, package
from stages.runtime.onnxruntime import signature_of
from stages.variants import parse_variant, quantise

CLASSIFIER = """
    <ir_version: 8, opset_import: ["" : 17]>
    classifier (int64[batch, sequence] input_ids, float[batch, 4] features) => (float[batch, 3] scores)
    <float[4, 3] weights = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
    { products = MatMul(features, weights)
      numbers = Cast<to = 1>(input_ids)
      axis = Constant<value_ints = [1]>()
      sums = ReduceSum<keepdims = 1>(numbers, axis)
      scores = Add(products, sums) }
"""
FIXED = """
    <ir_version: 8, opset_import: ["" : 17]>
    fixed (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }
"""


def make_model(path: Path, text: str, external: bool = False, **described: object) -> Artifact:
    """A model artifact of a graph in ONNX' own text form, with a tokenizer beside it."""
    import onnx

    (path / "assets").mkdir(parents=True)
    graph = onnx.parser.parse_model(text)
    onnx.checker.check_model(graph, full_check=True)
    for tensor in graph.graph.initializer:  # the parser's own tensors hold no raw bytes, which alone can lie outside
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save_model(
        graph, path / "model.onnx", save_as_external_data=external, location="weights.bin", size_threshold=0
    )
    (path / "assets" / "tokenizer.json").write_text("{}")
    signature = described.pop("signature", None) or signature_of(path / "model.onnx")
    model = Model.model_validate({"opset": 17, "signature": signature, **described})
    return Artifact.write(path, "model", model.model_dump(mode="json"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_a_release_holds_what_a_server_and_its_clients_need(tmp_path: Path, out: Path) -> None:
    model = make_model(
        tmp_path / "model", CLASSIFIER, external=True, labels=("cat", "dog", "eel"), task="text-classification"
    )
    release = package(
        model=model, options=PackageOptions(name="pets", max_batch_size=4, max_queue_delay_us=300, threads=2), out=out
    )

    assert release.kind == "release"
    assert set(release.files) == {
        "assets/tokenizer.json", "config.pbtxt", "labels.txt", "model.onnx", "weights.bin",
    }  # fmt: skip
    assert (out / "labels.txt").read_text() == "cat\ndog\neel\n"
    config = read(out / "config.pbtxt")
    assert (config.name, config.max_batch_size) == ("pets", 4)
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("input_ids", [-1]), ("features", [4])]
    assert [(tensor.name, list(tensor.dims), tensor.label_filename) for tensor in config.output] == [
        ("scores", [3], "labels.txt")
    ]
    assert config.dynamic_batching.max_queue_delay_microseconds == 300
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert release.metadata == {
        "name": "pets",
        "backend": "onnxruntime",
        "batched": True,
        "max_batch_size": 4,
        "threads": 2,
        "task": "text-classification",
        "precision": "fp32",
        "signature": signature_of(out / "model.onnx").model_dump(mode="json"),
        "config": "config.pbtxt",
        "file": "model.onnx",
        "assets": "assets",
        "labels": "labels.txt",
    }
    assert release.made_from == {"model": model.digest}


def test_the_repository_takes_it_and_onnx_runtime_opens_what_was_published(tmp_path: Path, out: Path) -> None:
    import numpy as np
    import onnxruntime

    model = make_model(tmp_path / "model", CLASSIFIER, external=True, labels=("cat", "dog", "eel"))
    release = package(model=model, options=PackageOptions(name="pets"), out=out)
    repository = Repository(tmp_path / "repository")
    assert repository.publish("pets", release.path, {"variant": "fp32"}).version == 1

    own = repository.directory("pets")
    assert not (own / "artifact.json").exists()
    session = onnxruntime.InferenceSession(own / "model.onnx")
    (scores,) = session.run(None, {"input_ids": np.ones((2, 5), np.int64), "features": np.eye(4, dtype=np.float32)[:2]})
    np.testing.assert_array_equal(scores, [[6, 7, 8], [9, 10, 11]])


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", CLASSIFIER)
    releases = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        releases.append(package(model=model, options=PackageOptions(name="pets"), out=tmp_path / name))
    assert releases[0].digest == releases[1].digest
    assert (tmp_path / "a/artifact.json").read_bytes() == (tmp_path / "b/artifact.json").read_bytes()


def test_without_a_batch_axis_there_is_no_batching_and_it_is_said(tmp_path: Path, out: Path) -> None:
    release = package(
        model=make_model(tmp_path / "model", FIXED), options=PackageOptions(name="fixed", max_batch_size=8), out=out
    )
    assert release.metadata["batched"] is False
    assert release.metadata["max_batch_size"] == 0
    assert release.metadata["labels"] is None
    assert list(read(out / "config.pbtxt").input[0].dims) == [1, 4]


def in_openvino(model: Artifact, path: Path, **described: object) -> Artifact:
    """The model as OpenVINO's IR; `described` changes what it says of itself."""
    path.mkdir()
    variant = quantise(model, parse_variant("fp32-openvino"), path)
    return Artifact.write(path, "model", {**variant.metadata, **described})


def test_a_release_for_openvino(tmp_path: Path, out: Path) -> None:
    labels = ("cat", "dog", "eel")
    model = in_openvino(make_model(tmp_path / "model", CLASSIFIER, labels=labels), tmp_path / "ir")
    release = package(
        model=model, options=PackageOptions(name="pets", max_batch_size=4, threads=2, typical_length=5), out=out
    )
    assert set(release.files) == {"assets/tokenizer.json", "config.pbtxt", "labels.txt", "model.bin", "model.xml"}
    about = {name: release.metadata[name] for name in ("backend", "batched", "max_batch_size", "file", "threads")}
    assert about == {"backend": "openvino", "batched": True, "max_batch_size": 0, "file": "model.xml", "threads": 2}
    config = read(out / "config.pbtxt")
    assert (config.backend, config.max_batch_size, config.HasField("dynamic_batching")) == ("openvino", 0, False)
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[-1, -1], [-1, 4], [-1, 3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": ("batch", 4)}, r"scores float32\[\?, 4\], but OpenVINO finds scores float32\[\?, 3\]"),
        ({"shape": ("batch", 3, 1)}, r"scores float32\[\?, 3, 1\], but OpenVINO"),
        ({"shape": ("batch", "classes")}, r"scores float32\[\?, \?\], but OpenVINO finds scores float32\[\?, 3\]"),
        ({"dtype": "float16"}, r"scores float16\[\?, 3\]"),
        ({"name": "logits"}, r"outputs logits float32\[\?, 3\]"),
    ],
)
def test_a_signature_that_is_not_that_of_openvinos_graph_is_refused(
    tmp_path: Path, out: Path, change: dict[str, object], message: str
) -> None:
    right = make_model(tmp_path / "right", CLASSIFIER)
    signature = Model.of(right).signature
    output = TensorSpec.model_validate({**signature.outputs[0].model_dump(), **change})
    told = Signature(inputs=signature.inputs, outputs=(output,)).model_dump(mode="json")
    with pytest.raises(StageError, match=message):
        package(
            model=in_openvino(right, tmp_path / "wrong", signature=told), options=PackageOptions(name="pets"), out=out
        )


def test_an_axis_that_openvino_finds_dynamic_may_be_declared_fixed(tmp_path: Path, out: Path) -> None:
    """Its shape inference may know less than ONNX Runtime's, and Triton's backend takes any size there."""
    right = make_model(tmp_path / "right", CLASSIFIER)
    signature = Model.of(right).signature
    ids = TensorSpec(name="input_ids", dtype="int64", shape=("batch", 7))
    told = Signature(inputs=(ids, *signature.inputs[1:]), outputs=signature.outputs).model_dump(mode="json")
    model = in_openvino(right, tmp_path / "told", signature=told)
    package(model=model, options=PackageOptions(name="pets"), out=out)
    assert list(read(out / "config.pbtxt").input[0].dims) == [-1, 7]


def test_what_tritons_openvino_backend_does_not_take_is_refused(tmp_path: Path, out: Path) -> None:
    doubles = FIXED.replace("float[", "double[")
    model = in_openvino(make_model(tmp_path / "model", doubles), tmp_path / "ir")
    with pytest.raises(InputError, match="'x' is float64, which Triton's openvino backend does not take"):
        package(model=model, options=PackageOptions(name="pets"), out=out)
    torn = in_openvino(make_model(tmp_path / "other", FIXED), tmp_path / "torn")
    (torn.path / "model.bin").unlink()
    (torn.path / "model.xml").unlink()
    (torn.path / "model.xml").write_text("<net/>")
    with pytest.raises(InputError, match=r"OpenVINO cannot load .*model\.xml"):
        package(model=torn, options=PackageOptions(name="pets"), out=out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": ("batch", "classes")}, r"scores float32\[\?, \?\], but ONNX Runtime finds scores float32\[\?, 3\]"),
        ({"shape": ("batch", 4)}, r"scores float32\[\?, 4\]"),
        ({"dtype": "float16"}, r"scores float16\[\?, 3\]"),
        ({"name": "logits"}, r"outputs logits float32\[\?, 3\]"),
    ],
)
def test_a_signature_that_is_not_the_graphs_is_refused(
    tmp_path: Path, out: Path, change: dict[str, object], message: str
) -> None:
    right = make_model(tmp_path / "right", CLASSIFIER)
    signature = Model.of(right).signature
    output = TensorSpec.model_validate({**signature.outputs[0].model_dump(), **change})
    wrong = make_model(tmp_path / "wrong", CLASSIFIER, signature=Signature(inputs=signature.inputs, outputs=(output,)))
    with pytest.raises(StageError, match=message):
        package(model=wrong, options=PackageOptions(name="pets"), out=out)


def test_an_output_that_the_signature_forgets_is_refused(tmp_path: Path, out: Path) -> None:
    right = make_model(tmp_path / "right", CLASSIFIER)
    signature = Model.of(right).signature
    wrong = make_model(
        tmp_path / "wrong", CLASSIFIER, signature=Signature(inputs=signature.inputs[:1], outputs=signature.outputs)
    )
    with pytest.raises(StageError, match="features"):
        package(model=wrong, options=PackageOptions(name="pets"), out=out)


def test_what_cannot_be_a_release_is_refused(tmp_path: Path, out: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="is a samples, not a model"):
        package(model=Artifact.write(tmp_path / "data", "samples", {}), options=PackageOptions(name="pets"), out=out)
    labelled = make_model(tmp_path / "labelled", CLASSIFIER, labels=("a", "b\nc", "d"))
    with pytest.raises(InputError, match="goes over several lines"):
        package(model=labelled, options=PackageOptions(name="pets"), out=out)
    taken = make_model(tmp_path / "taken", CLASSIFIER)
    (taken.path / "config.pbtxt").write_text("")
    taken = Artifact.write(taken.path, "model", taken.metadata)
    with pytest.raises(InputError, match=r"holds config\.pbtxt"):
        package(model=taken, options=PackageOptions(name="pets"), out=out)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "a/b"},
        {"name": ".a"},
        {"name": "a\n"},
        {"name": "a", "max_batch": 3},
        {"name": "a", "backend": "x"},
    ],
)
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PackageOptions.model_validate(options)
