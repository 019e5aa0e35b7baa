"""The graphs that are made for TensorRT: in the form that it takes, and right where ONNX Runtime runs them on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.compile.dtypes import dtype_counts, ensure_promised
from stages.errors import InputError, StageError
from stages.onnx_model import nodes, read_graph, signature_of, write_model
from stages.variants import parse_variant

FORMS = {
    "fp32": {"type": "fp32", "runtime": "tensorrt"},
    "fp16": {"type": "fp16", "runtime": "tensorrt"},
    "int8": {"type": "int8-static", "runtime": "tensorrt"},
    "fp8": {"type": "fp8-static"},
    "int4": {"type": "int4", "runtime": "tensorrt"},
}


@pytest.fixture(scope="session")
def opset_21(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Artifact], Artifact]:
    """The same model in opset 21, as a run for TensorRT converts it."""
    made: dict[str, Artifact] = {}

    def converted(model: Artifact) -> Artifact:
        if model.digest not in made:
            import onnx_ir
            from onnxscript import version_converter

            from stages.model import ASSETS, Model

            graph = read_graph(model)
            version_converter.convert_version(graph, 21)
            about = Model.of(model)
            made[model.digest] = write_model(
                graph, tmp_path_factory.mktemp("opset_21"), signature=signature_of(graph), task=about.task,
                labels=about.labels, assets=model.path / ASSETS,
            )  # fmt: skip
            assert onnx_ir.load(made[model.digest].path / "model.onnx").opset_imports[""] == 21
        return made[model.digest]

    return converted


BOUNDS = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.995, "fp8": 0.994, "int4": 0.97}


@pytest.mark.parametrize("precision", FORMS)
def test_a_form_holds_what_its_precision_promises_and_keeps_minilm(
    precision: str,
    minilm: Artifact,
    opset_21: Callable[[Artifact], Artifact],
    make: Callable[..., Artifact],
    embed: Callable[[Artifact], NDArray[Any]],
) -> None:
    """ONNX Runtime's CPU provider computes these very graphs."""
    model = opset_21(minilm)
    made = make(model, FORMS[precision])
    graph = read_graph(made)
    ensure_promised(graph, precision)
    cosine = (embed(model) * embed(made)).sum(axis=1).mean()
    assert cosine > BOUNDS[precision], cosine
    if precision in ("int8", "fp8", "int4"):
        # What is not quantised is in 16 bits, with no cast between Q, DQ and the operators that they surround.
        stored = dtype_counts(graph)
        assert stored["FLOAT16"] > stored.get("FLOAT", 0)
        restored = [node for node in nodes(graph) if node.op_type == "DequantizeLinear"]
        assert not [taker for node in restored for taker, _ in node.outputs[0].uses() if taker.op_type == "Cast"]


@pytest.mark.parametrize("rest", ["fp16", "fp32"])
@pytest.mark.parametrize("variant", ["int8-static", "fp8-static"])
def test_convolutions_too(
    variant: str,
    rest: str,
    digits: Artifact,
    opset_21: Callable[[Artifact], Artifact],
    make: Callable[..., Artifact],
    digits_accuracy: Callable[[Artifact], float],
) -> None:
    """ONNX Runtime answers wrongly to some FP8 graphs that it has optimised; it must not be let to."""
    made = make(opset_21(digits), {"type": variant, "runtime": "tensorrt", "rest": rest})
    ensure_promised(read_graph(made), "int8" if variant == "int8-static" else "fp8")
    assert digits_accuracy(made) > digits_accuracy(digits) - 0.01


def test_the_forms_for_a_cpu_are_refused_for_an_engine(minilm: Artifact, make: Callable[..., Artifact]) -> None:
    with pytest.raises(StageError, match=r"zero point of UINT8 that is not 0; TensorRT takes symmetric INT8 only"):
        ensure_promised(read_graph(make(minilm, {"type": "int8-static", "embeddings": False})), "int8")
    with pytest.raises(StageError, match=r"operators that TensorRT does not know: com.microsoft.MatMulNBits"):
        ensure_promised(read_graph(make(minilm, {"type": "int4", "method": "rtn", "embeddings": False})), "int4")


def test_a_runtime_for_gpus_is_asked_for_behind_the_type_and_is_no_part_of_the_name() -> None:
    for spec, runtime in (("fp16-tensorrt", "tensorrt"), ("fp16-onnxruntime-cuda", "onnxruntime-cuda")):
        assert (parse_variant(spec).runtime, parse_variant(spec).name) == (runtime, "fp16")
    assert parse_variant("fp8-static").runtime == "tensorrt"


def test_int4_takes_opset_21(minilm: Artifact, make: Callable[..., Artifact]) -> None:
    with pytest.raises(StageError, match=r"int4 takes ONNX opset 21, .*; the model has opset 20: convert it"):
        make(minilm, FORMS["int4"])


@pytest.mark.parametrize("wrong", [{"block_size": 32}, {"symmetric": False}, {"method": "hqq"}])
def test_int4_blocks_are_what_tensorrt_takes(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="symmetric"):
        parse_variant({"type": "int4", "runtime": "tensorrt", **wrong})


def test_scales_of_int4_are_positive_and_hold_both_ends() -> None:
    from stages.quantise.blocks.form import BlockFormat
    from stages.quantise.blocks.ranges import rtn

    weight = np.array([[7.0, -8.0, 7.0], [-1.0, 1.0, -9.0]] * 64, np.float32)
    matrix = rtn(weight, BlockFormat(4, 128, symmetric=True, positive=True))
    assert (matrix.scales > 0).all()
    assert np.abs(matrix.restored() - weight).max() <= matrix.scales.max() / 2
