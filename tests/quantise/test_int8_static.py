"""Static INT8: what is quantised, how the engines take it, and what keeps its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.calibrate import CalibrateOptions, calibrate
from stages.errors import InputError, StageError
from stages.model import Model
from stages.onnx_model import nodes, read_graph, signature_of, write_model
from stages.progress import SILENT
from stages.quantise.operators import operators
from stages.runtime import open_session
from stages.variants import parse_variant, quantise

Make = Callable[[Artifact, str | Mapping[str, Any]], Artifact]
Embed = Callable[[Artifact], NDArray[Any]]


def optimised_operators(model: Artifact, folder: Path) -> list[str]:
    """What ONNX Runtime makes of a graph when it opens it."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(model.path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


@pytest.fixture(scope="session")
def minilm_with_outlier(minilm: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """MiniLM with one channel of every block's values times 100, which the projection behind takes back: it answers as
    before, and the activation between has a channel far larger than the others."""
    import onnx_ir

    graph = read_graph(minilm)
    products = {node.outputs[0].name: node for node in graph.graph if node.op_type == "MatMul"}
    for block in range(6):
        given = f"model.encoder.layer.{block}.attention"
        value_bias = graph.graph.initializers[f"{given}.self.value.bias"]
        value = next(products[v.name] for v in value_bias.uses()[0][0].inputs if v is not None and v.name in products)
        output = next(
            products[v.name]
            for v in graph.graph.initializers[f"{given}.output.dense.bias"].uses()[0][0].inputs
            if v is not None and v.name in products
        )
        for constant, index, factor in (
            (value.inputs[1], (slice(None), 7), 100.0),
            (value_bias, (7,), 100.0),
            (output.inputs[1], (7,), 0.01),
        ):
            array = constant.const_value.numpy().copy()
            array[index] *= factor
            constant.const_value = onnx_ir.tensor(array, name=constant.name)
    about = Model.of(minilm)
    out = tmp_path_factory.mktemp("minilm_with_outlier")
    return write_model(graph, out, signature=about.signature, task=about.task, assets=minilm.path / "assets")


def test_weights_and_activations_of_every_product_are_8_bits(minilm: Artifact, make: Make) -> None:
    graph = read_graph(make(minilm, "int8-static"))
    products = [node for node in nodes(graph) if node.op_type == "MatMul" and node.inputs[1].producer() is not None]
    weighted = [node for node in products if node.inputs[1].producer().op_type == "DequantizeLinear"]
    assert len(weighted) == 36
    for node in weighted:
        activation, weight = (value.producer() for value in node.inputs)
        assert activation.op_type == "DequantizeLinear"
        assert str(weight.inputs[0].const_value.dtype) == "INT8"
        assert weight.inputs[1].const_value.shape == [node.inputs[1].producer().inputs[0].const_value.shape[1]]
    assert not operators(graph), "32-bit weights are left"


def test_onnxruntime_computes_minilm_in_integers(minilm: Artifact, make: Make, tmp_path: Path) -> None:
    assert optimised_operators(make(minilm, "int8-static"), tmp_path).count("MatMulIntegerToFloat") == 36


def test_onnxruntime_computes_convolutions_in_integers(digits: Artifact, make: Make, tmp_path: Path) -> None:
    found = optimised_operators(make(digits, "int8-static"), tmp_path)
    assert found.count("QLinearConv") == 2
    assert not {"Conv", "FusedConv", "NhwcFusedConv"} & set(found)


def test_openvino_computes_minilm_in_integers(minilm: Artifact, make: Make) -> None:
    from stages.runtime.openvino import import_openvino

    variant = make(minilm, "int8-static-openvino")
    properties = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = import_openvino().Core().compile_model(variant.path / "model.xml", "CPU", properties)
    kinds = [
        (node.get_rt_info()["layerType"].astype(str), node.get_rt_info()["runtimePrecision"].astype(str))
        for node in compiled.get_runtime_model().get_ordered_ops()
    ]
    assert sum(kind == "FullyConnected" and precision in ("i8", "u8") for kind, precision in kinds) == 36


def test_the_digits_lose_nothing_and_are_much_smaller(
    digits: Artifact, make: Make, digits_accuracy: Callable[[Artifact], float]
) -> None:
    variant = make(digits, "int8-static")
    assert digits_accuracy(variant) > digits_accuracy(digits) - 0.003
    assert variant.size_bytes < digits.size_bytes / 3.3


def test_it_beats_onnxruntimes_own_static_quantiser(minilm: Artifact, make: Make, embed: Embed) -> None:
    """Whose MinMax form of this model has a cosine of 0.93."""
    assert (embed(make(minilm, "int8-static")) * embed(minilm)).sum(axis=1).mean() > 0.9975


# What keeps the accuracy


def test_a_planted_outlier_changes_no_answer_by_itself(
    minilm: Artifact, minilm_with_outlier: Artifact, embed: Embed
) -> None:
    assert (embed(minilm_with_outlier) * embed(minilm)).sum(axis=1).min() > 0.99999


def test_smoothing_undoes_a_planted_outlier(minilm_with_outlier: Artifact, make: Make, embed: Embed) -> None:
    exact = embed(minilm_with_outlier)
    plain = make(minilm_with_outlier, {"type": "int8-static", "smoothing": "off"})
    smooth = make(minilm_with_outlier, "int8-static")
    assert (embed(plain) * exact).sum(axis=1).mean() < 0.985
    assert (embed(smooth) * exact).sum(axis=1).mean() > 0.997


@pytest.mark.parametrize(("smoothing", "smoothed"), [(0.9, 2), ("off", 0)])
def test_a_given_strength_is_taken_everywhere(smoothing: Any, smoothed: int, digits: Artifact, make: Make) -> None:
    variant = make(digits, {"type": "int8-static", "smoothing": smoothing})
    assert sum("smoothing" in name for name in read_graph(variant).graph.initializers) == smoothed


def test_the_bias_takes_up_the_mean_error(digits: Artifact, make: Make, digits_images: NDArray[Any]) -> None:
    def mean_error(model: Artifact) -> float:
        with open_session(digits) as exact, open_session(model) as session:
            lost = session({"image": digits_images})["logits"] - exact({"image": digits_images})["logits"]
        return float(np.abs(lost.mean(axis=0)).max())

    assert mean_error(make(digits, "int8-static")) < 0.6 * mean_error(
        make(digits, {"type": "int8-static", "bias_correction": False})
    )


@pytest.mark.parametrize("observer", ["moving-average", "mse", "entropy", "percentile"])
def test_every_observer_serves_the_digits(
    observer: str, digits: Artifact, make: Make, digits_accuracy: Callable[[Artifact], float]
) -> None:
    variant = make(digits, {"type": "int8-static", "observer": observer, "name": observer})
    assert digits_accuracy(variant) > digits_accuracy(digits) - 0.01


def test_products_may_follow_one_another_at_once(graph_of: Callable[..., Artifact], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal((64, 64)).astype(np.float32) for name in ("v", "w")}
    model = graph_of(
        "chain (float[batch, 64] x) => (float[batch, 64] y) { h = Gemm(x, v, b) y = Gemm(h, w, b) }",
        b=np.ones(64, np.float32),
        **weights,
    )
    x = generator.standard_normal((200, 64)).astype(np.float32)
    for name in ("samples", "statistics", "variant"):
        (tmp_path / name).mkdir()
    Samples({"x": list(x)}).save(tmp_path / "samples")
    data = Artifact.write(tmp_path / "samples", "dataset", {})
    statistics = calibrate(model, data, CalibrateOptions(), tmp_path / "statistics")
    variant = quantise(model, parse_variant("int8-static"), tmp_path / "variant", SILENT, statistics)
    with open_session(model) as exact, open_session(variant) as session:
        expected, found = exact({"x": x})["y"], session({"x": x})["y"]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


# What is left out, and what is refused


def test_excluded_operators_stay_in_32_bits_by_either_name(digits: Artifact, make: Make) -> None:
    graph = read_graph(digits)
    convolution = next(node for node in nodes(graph) if node.op_type == "Conv")
    product = next(operator for operator in operators(graph) if operator.kind == "product")
    kept = make(digits, {"type": "int8-static", "exclude": [convolution.name, product.name]})
    left = [operator.name for operator in operators(read_graph(kept))]
    assert left == [convolution.outputs[0].name, product.name]


def test_nothing_to_quantise_is_refused(
    digits: Artifact, calibrated: Callable[[Artifact], Artifact], tmp_path: Path
) -> None:
    every = [operator.name for operator in operators(read_graph(digits))]
    with pytest.raises(StageError, match="has nothing to quantise"):
        config = parse_variant({"type": "int8-static", "exclude": every})
        quantise(digits, config, tmp_path, SILENT, calibrated(digits))


def test_it_cannot_be_made_without_statistics(digits: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int8-static is made with statistics of calibration data"):
        quantise(digits, parse_variant("int8-static"), tmp_path)


def test_an_old_operator_set_is_refused(
    digits: Artifact, calibrated: Callable[[Artifact], Artifact], tmp_path: Path
) -> None:
    graph = read_graph(digits)
    graph.opset_imports[""] = 11
    (tmp_path / "old").mkdir()
    (tmp_path / "out").mkdir()
    old = write_model(graph, tmp_path / "old", signature=signature_of(graph), task="image-classification")
    with pytest.raises(StageError, match="needs operators of ONNX opset 13; the model has opset 11"):
        quantise(old, parse_variant("int8-static"), tmp_path / "out", SILENT, calibrated(digits))
