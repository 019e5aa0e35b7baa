"""The variants: smaller, the same signature, the same answers within reason; and refused where they are not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.fuse import FUSED_DOMAIN
from stages.model import Model
from stages.onnx_model import nodes, operator_counts, read_graph, weight_bytes
from stages.progress import SILENT
from stages.quantise.integer_operators import quantise_weight
from stages.quantise.variant import NonFiniteError, VariantConfig, build, write_variant
from stages.runtime import open_session
from stages.target import TARGET_RUNTIMES
from stages.variants import BASELINE, GRAPH_VARIANTS, parse_variant, quantise

Make = Callable[[Artifact, str | Mapping[str, Any]], Artifact]
Embed = Callable[[Artifact], NDArray[Any]]


# Every type in every runtime on a processor that it allows; test_tensorrt_forms.py has those for GPUs.
SPECS = [
    kind if runtime == "onnxruntime" else f"{kind}-{runtime}"
    for kind, config in GRAPH_VARIANTS.items()
    for runtime in get_args(config.model_fields["runtime"].annotation)
    if runtime in TARGET_RUNTIMES["cpu"]
]


def graph_bytes(model: Artifact) -> int:
    return sum((model.path / name).stat().st_size for name in model.files if not name.startswith("assets/"))


def dtypes(model: Artifact) -> set[str]:
    return {str(value.dtype) for value in read_graph(model).graph.initializers.values()}


# What can be asked for


def test_every_listed_variant_declares_itself_and_has_a_handler() -> None:
    assert next(iter(GRAPH_VARIANTS)) == BASELINE
    for kind, config in GRAPH_VARIANTS.items():
        assert parse_variant(kind).type == kind
        assert config.precision
        assert config.targets
        assert build.dispatch(config) is not build.dispatch(VariantConfig)


def test_a_variant_is_asked_for_by_its_type_and_its_runtime() -> None:
    for spec in SPECS:
        assert parse_variant(spec).name == spec
    assert parse_variant("int8-static-openvino").runtime == "openvino"
    assert parse_variant({"type": "int8-static", "runtime": "openvino"}) == parse_variant("int8-static-openvino")
    assert parse_variant("bf16") == parse_variant("bf16-openvino")


def test_a_variant_is_asked_for_by_name_or_with_parameters() -> None:
    config = parse_variant({"type": "int8-dynamic", "per_channel": False, "name": "coarse"})
    assert config == GRAPH_VARIANTS["int8-dynamic"](type="int8-dynamic", per_channel=False, name="coarse")  # type: ignore[call-arg]
    assert config.name == "coarse"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("int8-dynamc", "no variant 'int8-dynamc' .did you mean 'int8-dynamic'"),
        ({"type": "int8-dynamic", "per_chanel": True}, "no parameter 'per_chanel' .did you mean 'per_channel'"),
        ({"type": "int8-dynamic", "per_channel": "perhaps"}, "per_channel: Input should be a valid boolean"),
        ({"type": "fp16", "name": "../up"}, "name: String should match"),
        ({"per_channel": True}, "has no type; there are fp32, fp16, bf16, int8-dynamic"),
        ({"type": "bf16", "runtime": "onnxruntime"}, "runtime: Input should be 'openvino'"),
    ],
)
def test_a_wrong_request_is_answered_with_the_nearest_right_one(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_variant(spec)


def test_the_list_of_variants_needs_no_heavy_library() -> None:
    code = "import sys, stages.variants, stages.fuse; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "openvino", "transformers"} & set(loaded)


# What all of them hold to


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_variant_keeps_signature_task_assets_and_fusion(
    spec: str, fused: bool, minilm: Artifact, minilm_fused: Artifact, make: Make
) -> None:
    config = parse_variant(spec)
    if fused and not config.takes_fused_graph:
        pytest.skip(f"{spec} is made from the unfused graph only")
    source = minilm_fused if fused else minilm
    variant = make(source, spec)
    before, after = Model.of(source), Model.of(variant)
    assert after.signature == before.signature
    assert (after.task, after.fused, after.precision) == (before.task, fused, config.precision)
    assert (after.runtime, after.arithmetic) == (config.runtime, config.arithmetic)
    assert {name for name in variant.files if name.startswith("assets/")} == {
        name for name in source.files if name.startswith("assets/")
    }
    assert variant.made_from == {"model": source.digest}
    batch = {spec.name: np.ones((2, 5), np.int64) for spec in before.signature.inputs}
    with open_session(variant) as session:
        assert session.signature == before.signature
        answer = session(batch)
    assert {name: str(array.dtype) for name, array in answer.items()} == {
        spec.name: spec.dtype for spec in before.signature.outputs
    }


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "fp32"])
def test_making_it_again_gives_the_same_digest(
    spec: str, digits: Artifact, calibrated: Callable[[Artifact], Artifact], make: Make, tmp_path: Path
) -> None:
    config = parse_variant(spec)
    again = quantise(digits, config, tmp_path, SILENT, calibrated(digits) if config.needs_data else None)
    assert again.digest == make(digits, spec).digest


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("kind", "size", "cosine"), [("fp32", 1.001, 0.999999), ("fp16", 0.51, 0.99999), ("int8-dynamic", 0.26, 0.99)]
)
def test_minilm_is_smaller_and_says_the_same_of_padded_sentences(
    kind: str,
    size: float,
    cosine: float,
    fused: bool,
    minilm: Artifact,
    minilm_fused: Artifact,
    make: Make,
    embed: Embed,
) -> None:
    variant = make(minilm_fused if fused else minilm, kind)
    assert graph_bytes(variant) < size * graph_bytes(minilm)
    assert (embed(variant) * embed(minilm)).sum(axis=1).mean() > cosine


@pytest.mark.parametrize(
    ("spec", "size", "cosine"),
    [
        ("fp32-openvino", 1.01, 0.999999),
        ("bf16", 0.51, 0.9999),
        ("int8-static", 0.26, 0.997),
        ("int8-static-openvino", 0.27, 0.997),
    ],
)
def test_minilm_in_the_forms_that_are_made_of_the_unfused_graph(
    spec: str, size: float, cosine: float, minilm: Artifact, make: Make, embed: Embed
) -> None:
    variant = make(minilm, spec)
    assert graph_bytes(variant) < size * graph_bytes(minilm)
    assert (embed(variant) * embed(minilm)).sum(axis=1).mean() > cosine


def test_the_baseline_is_the_model_itself(minilm: Artifact, make: Make) -> None:
    baseline = make(minilm, "fp32")
    assert baseline.digest == minilm.digest
    assert (baseline.path / "model.onnx").samefile(minilm.path / "model.onnx")


@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8-dynamic", "int8-static", "int8-static-openvino"])
def test_the_digits_are_still_read(
    kind: str, digits: Artifact, make: Make, digits_accuracy: Callable[[Artifact], float]
) -> None:
    assert digits_accuracy(digits) > 0.93
    assert digits_accuracy(make(digits, kind)) > digits_accuracy(digits) - 0.01
    assert Model.of(make(digits, kind)).labels == tuple("0123456789")


def test_answers_that_are_not_finite_are_refused(digits: Artifact, tmp_path: Path) -> None:
    import onnx_ir

    graph = read_graph(digits)
    bias = next(value for value in graph.graph.initializers.values() if value.const_value.shape == [10])
    bias.const_value = onnx_ir.tensor(np.full(10, np.nan, np.float32), name=bias.name)
    with pytest.raises(NonFiniteError, match="fp16 answers NaN or infinity in logits to a random batch"):
        write_variant(graph, digits, tmp_path, parse_variant("fp16"), weight_bytes(graph) + 1)


def test_a_model_that_is_itself_not_finite_on_random_batches_is_not_held_against_the_variant(
    graph_of: Callable[..., Artifact], make: Make
) -> None:
    model = graph_of(
        "log (float[batch, 32] x) => (float[batch, 32] y) { h = MatMul(x, w) y = Log(h) }",
        w=np.eye(32, dtype=np.float32),
    )
    assert make(model, "int8-dynamic").metadata["operators"]["MatMulInteger"] == 1


def test_a_variant_that_is_no_smaller_is_refused(digits: Artifact, tmp_path: Path) -> None:
    graph = read_graph(digits)
    with pytest.raises(StageError, match="made the weights no smaller"):
        write_variant(graph, digits, tmp_path, parse_variant("int8-dynamic"), weight_bytes(graph))


def test_a_variant_with_another_signature_is_refused(digits: Artifact, tmp_path: Path) -> None:
    graph = read_graph(digits)
    graph.graph.outputs[0].name = "scores"
    with pytest.raises(StageError, match="outputs are scores; its signature has logits"):
        write_variant(graph, digits, tmp_path, parse_variant("int8-dynamic"), weight_bytes(graph) + 1)


@pytest.mark.parametrize("kind", ["fp16", "int8-dynamic"])
def test_a_model_without_weights_cannot_be_quantised(
    kind: str, graph_of: Callable[..., Artifact], tmp_path: Path
) -> None:
    model = graph_of("relu (float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }")
    with pytest.raises(StageError, match=r"nothing to (quantise|convert)"):
        quantise(model, parse_variant(kind), tmp_path, SILENT)


# FP16


def test_fp16_weights_are_all_half_precision(minilm: Artifact, make: Make) -> None:
    floats = {name for name in dtypes(make(minilm, "fp16")) if "FLOAT" in name}
    assert floats == {"FLOAT16"}


def test_fp16_turns_the_fill_of_a_mask_into_a_finite_number(graph_of: Callable[..., Artifact], make: Make) -> None:
    model = graph_of(
        """mask (float[batch, 4] x, bool[batch, 4] mask) => (float[batch, 4] y) {
            h = MatMul(x, w) filled = Where(mask, h, fill) y = Softmax(filled) }""",
        w=np.eye(4, dtype=np.float32),
        fill=np.array(np.finfo(np.float32).min),
    )
    batch = {"x": np.ones((2, 4), np.float32), "mask": np.array([[True, False, False, True], [False] * 4])}
    with open_session(make(model, "fp16")) as session:
        assert np.allclose(session(batch)["y"], [[0.5, 0, 0, 0.5], [0.25] * 4])


def test_fp16_keeps_what_leaves_its_range_in_32_bits(graph_of: Callable[..., Artifact], make: Make) -> None:
    """Root mean square normalisation of activations in the hundreds: the squares are beyond 65504."""
    import onnx.reference

    model = graph_of(
        """rms (float[batch, 16] x) => (float[batch, 16] y) {
            h = MatMul(x, w) squares = Mul(h, h) mean = ReduceMean(squares, axes)
            root = Sqrt(mean) normal = Div(h, root) y = MatMul(normal, v) }""",
        w=np.eye(16, dtype=np.float32) * 900,
        v=np.eye(16, dtype=np.float32),
        axes=np.array([1]),
    )
    half = make(model, "fp16")
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    with open_session(model) as session:
        exact = session({"x": x})["y"]
    # ONNX's reference evaluator has 16-bit arithmetic throughout; ONNX Runtime has not on a CPU, and would hide it.
    answer = onnx.reference.ReferenceEvaluator(onnx.load(half.path / "model.onnx")).run(None, {"x": x})[0]
    assert np.allclose(answer, exact, rtol=2e-3, atol=2e-3)
    assert "FLOAT16" in dtypes(half)


# Dynamic INT8


def test_int8_quantises_every_product_with_weights_and_the_embeddings(minilm: Artifact, make: Make) -> None:
    graph = read_graph(make(minilm, "int8-dynamic"))
    counts = operator_counts(graph)
    assert (counts["MatMulInteger"], counts["MatMul"]) == (36, 12)  # the other 12 are inside attention
    constants = graph.graph.initializers
    assert not [n for n in nodes(graph) if n.op_type == "MatMul" and any(i.name in constants for i in n.inputs if i)]
    assert all(value.const_value.size < 2**16 for value in constants.values() if str(value.dtype) == "FLOAT")


def test_int8_of_fused_attention_keeps_the_mask(minilm_fused: Artifact, make: Make) -> None:
    graph = read_graph(make(minilm_fused, "int8-dynamic"))
    assert operator_counts(graph, FUSED_DOMAIN)["MultiHeadAttention"] == 6
    assert operator_counts(graph)["MatMulInteger"] == 24  # query, key and value are one product
    assert all(node.inputs[5] is not None for node in nodes(graph) if node.op_type == "MultiHeadAttention")


def test_onnxruntime_merges_the_quantised_products(minilm: Artifact, make: Make, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    path = make(minilm, "int8-dynamic").path / "model.onnx"
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    merged = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert merged.count("MatMulIntegerToFloat") + merged.count("DynamicQuantizeMatMul") == 36


def test_a_convolution_may_follow_another_at_once(graph_of: Callable[..., Artifact], make: Make) -> None:
    """The quantised form of what lies between, and the product that gives it, need names of their own."""
    generator = np.random.default_rng(0)
    model = graph_of(
        """two (float[batch, 4, 8, 8] x) => (float[batch, 4, 8, 8] y) {
            h = Conv <pads: ints = [1, 1, 1, 1]> (x, v) y = Conv <pads: ints = [1, 1, 1, 1]> (h, w) }""",
        v=generator.standard_normal((4, 4, 3, 3)).astype(np.float32),
        w=generator.standard_normal((4, 4, 3, 3)).astype(np.float32),
    )
    assert Model.of(make(model, "int8-dynamic")).operators["ConvInteger"] == 2


def test_one_scale_for_a_whole_weight_costs_accuracy(minilm: Artifact, make: Make, embed: Embed) -> None:
    exact = embed(minilm)
    fine = (embed(make(minilm, "int8-dynamic")) * exact).sum(axis=1).mean()
    coarse = (embed(make(minilm, {"type": "int8-dynamic", "per_channel": False, "name": "coarse"})) * exact).sum(axis=1)
    assert coarse.mean() < fine - 0.01


def test_int8_of_convolutions_can_be_turned_off(digits: Artifact, make: Make) -> None:
    assert Model.of(make(digits, "int8-dynamic")).operators["ConvInteger"] == 2
    kept = Model.of(make(digits, {"type": "int8-dynamic", "convolutions": False})).operators
    assert (kept["Conv"], kept["MatMulInteger"]) == (2, 2)


def test_excluded_nodes_stay_in_32_bits(digits: Artifact, make: Make) -> None:
    head = next(node.name for node in nodes(read_graph(digits)) if node.op_type == "Gemm")
    kept = Model.of(make(digits, {"type": "int8-dynamic", "exclude": [head]})).operators
    assert (kept["Gemm"], kept["MatMulInteger"]) == (1, 1)


def test_the_factors_and_transpositions_of_a_product_go_into_its_weights(
    graph_of: Callable[..., Artifact], make: Make
) -> None:
    generator = np.random.default_rng(0)
    tied = generator.standard_normal((24, 16)).astype(np.float32)
    model = graph_of(
        """products (float[batch, 16] x) => (float[batch, 24] y, float[batch, 24] z) {
            y = Gemm <alpha: float = 0.5, beta: float = 2.0, transB: int = 1> (x, tied, c)
            turned = Transpose <perm: ints = [1, 0]> (tied) z = MatMul(x, turned) }""",
        tied=tied,
        c=generator.standard_normal(24).astype(np.float32),
    )
    variant = make(model, "int8-dynamic")
    assert operator_counts(read_graph(variant))["MatMulInteger"] == 2
    x = generator.standard_normal((5, 16)).astype(np.float32)
    with open_session(model) as exact, open_session(variant) as session:
        for name, values in exact({"x": x}).items():
            assert np.abs(session({"x": x})[name] - values).max() < 0.03 * np.abs(values).max()


def test_weights_are_rounded_to_the_nearest_of_their_channels_steps() -> None:
    weight = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    weight[:, 3] = 0
    integers, scale = quantise_weight(weight, channel=1)
    assert (integers.dtype, scale.shape) == (np.int8, (7,))
    assert np.abs(integers).max(axis=0).tolist() == [127, 127, 127, 0, 127, 127, 127]
    assert (np.abs(integers * scale - weight) <= scale / 2 * 1.0001).all()
    assert np.abs(quantise_weight(weight, channel=1, reduce_range=True)[0]).max() == 63
    assert quantise_weight(weight, channel=None)[1].shape == ()
