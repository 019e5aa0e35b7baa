"""BF16 for TensorRT: the graph in the form that it takes, and how near it stays, computed as hardware would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.compile.dtypes import dtype_counts, ensure_promised, ensure_supported
from stages.errors import RequirementError, StageError
from stages.model import Model
from stages.onnx_model import nodes, operator_counts, opset, read_graph
from stages.quantise.bfloat16 import in_bfloat16
from stages.runtime import open_session

BF16 = {"type": "bf16", "runtime": "tensorrt"}


def graph_of(text: str, opset: int = 21, **initialisers: Any) -> onnx_ir.Model:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in initialisers.items())
    return onnx_ir.from_proto(model)


def converted(graph: onnx_ir.Model, **options: Any) -> onnx_ir.Model:
    """In BF16, and known to be ONNX: the checker infers every type."""
    made = in_bfloat16(graph, **options)
    onnx.checker.check_model(onnx_ir.to_proto(made), full_check=True)
    return made


def casts(graph: onnx_ir.Model) -> list[tuple[str, str]]:
    """What is cast, and to what, in alphabetical order."""
    found = [node for node in nodes(graph) if node.op_type == "Cast"]
    return sorted((str(node.inputs[0].name), str(node.outputs[0].dtype)) for node in found)


def test_minilm_is_in_bf16_with_casts_at_its_edges_only(
    minilm: Artifact, make: Callable[..., Artifact], embed: Callable[[Artifact], NDArray[Any]]
) -> None:
    made = make(minilm, BF16)
    graph = read_graph(made)
    ensure_promised(graph, "bf16")
    assert "FLOAT" not in dtype_counts(graph)
    assert operator_counts(graph)["Cast"] == operator_counts(read_graph(minilm))["Cast"] + 1, "that of the output"
    assert (Model.of(made).precision, Model.of(made).runtime) == ("bf16", "onnxruntime")
    assert Model.of(made).signature == Model.of(minilm).signature
    assert made.size_bytes < 0.6 * minilm.size_bytes
    cosine = (embed(minilm) * embed(made)).sum(axis=1)
    assert cosine.min() > 0.999
    assert cosine.max() < 0.999999, "it was rounded"


def test_convolutions_take_opset_22_and_keep_their_accuracy(
    digits: Artifact, make: Callable[..., Artifact], digits_accuracy: Callable[[Artifact], float]
) -> None:
    made = make(digits, BF16)
    graph = read_graph(made)
    assert (opset(read_graph(digits)) < 22, opset(graph)) == (True, 22)
    assert "FLOAT" not in dtype_counts(graph)
    assert operator_counts(graph)["Cast"] == 2
    assert digits_accuracy(made) > digits_accuracy(digits) - 0.01


def test_onnx_s_reference_agrees_within_the_digits_of_bf16(
    digits: Artifact, make: Callable[..., Artifact], digits_images: NDArray[np.float32]
) -> None:
    """Three ways: FP32, ONNX's own evaluator of the very graph, and ours, which rounds every tensor."""
    from onnx.reference import ReferenceEvaluator

    made, batch = make(digits, BF16), {"image": digits_images[:8]}
    with open_session(digits) as session:
        wanted = session(batch)["logits"]
    with open_session(made) as session:
        ours = session(batch)["logits"]
    [theirs] = ReferenceEvaluator(str(made.path / "model.onnx")).run(None, batch)
    unit = np.abs(wanted).max() * 2.0**-8  # half of the last digit of the largest answer
    assert np.abs(ours - wanted).max() < 4 * unit
    assert np.abs(theirs - wanted).max() < 4 * unit
    assert np.abs(ours - theirs).max() < 4 * unit
    assert np.abs(ours - wanted).max() > unit / 64, "it was rounded"


def test_a_product_is_what_torch_computes_in_bf16(tmp_path: Any, graph_of: Callable[..., Artifact]) -> None:
    import torch

    from stages.progress import SILENT
    from stages.variants import parse_variant, quantise

    generator = np.random.default_rng(0)
    weight, bias = generator.standard_normal((64, 32), np.float32), generator.standard_normal(32, np.float32)
    text = "g (float[batch, 64] x) => (float[batch, 32] y) { p = MatMul(x, w) s = Add(p, b) y = Erf(s) }"
    made = quantise(graph_of(text, w=weight, b=bias), parse_variant(BF16), tmp_path, SILENT)
    batch = generator.standard_normal((16, 64), np.float32)
    with open_session(made) as session:
        ours = session({"x": batch})["y"]
    x, w, b = (torch.from_numpy(array).bfloat16() for array in (batch, weight, bias))
    theirs = torch.erf(x @ w + b).float().numpy()
    same = (ours == theirs).mean()
    assert same > 0.98, "sums of another order may round to the neighbour"
    assert np.abs(ours - theirs).max() <= 2.0**-7


def test_what_onnx_has_no_bf16_for_stays_in_fp32_between_casts() -> None:
    """Resize takes its scales in FP32, and Einsum takes no BF16 at all. The transposition between two of those would
    round for nothing, and a value that two of them take is cast once."""
    graph = converted(
        graph_of(
            "(float[2, 3] x) => (float[2, 2] y, float[2, 3] z) "
            "{ a = Relu(x) b = Einsum<equation = \"ij->ji\">(a) c = Transpose(b) d = Einsum<equation = \"ij->ij\">(a)"
            "  e = Einsum<equation = \"ij,kj->ik\">(c, d) y = MatMul(e, w) z = Neg(d) }",
            w=np.ones((2, 2), np.float32),
        )
    )  # fmt: skip
    assert casts(graph) == [
        ("a", "FLOAT"), ("d", "BFLOAT16"), ("e", "BFLOAT16"),
        ("x", "BFLOAT16"), ("y_bf16", "FLOAT"), ("z_bf16", "FLOAT"),
    ]  # fmt: skip
    resized = converted(
        graph_of(
            "(float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) { y = Resize<mode = \"nearest\">(x, r, s) }",
            r=np.zeros(0, np.float32), s=np.array([1, 1, 2, 2], np.float32),
        )
    )  # fmt: skip
    assert casts(resized) == [("x", "BFLOAT16"), ("y_bf16", "FLOAT")]
    assert resized.graph.initializers["s"].dtype == onnx_ir.DataType.FLOAT


def test_a_mask_of_minus_infinity_stays_finite() -> None:
    """The largest FP32 number rounds to infinity in BF16, and infinity times 0 is no number."""
    least = float(np.finfo(np.float32).min)
    graph = converted(
        graph_of(
            "(int64[2, 3] mask) => (float[2, 3] y, float[3] full) { m = Cast<to = 1>(mask) n = Mul(m, least) "
            "f = Constant<value = float {-3.4028234663852886e38}>() k = Shape<start = 1>(n) "
            "c = ConstantOfShape<value = float[1] {-3.4028234663852886e38}>(k) full = Abs(c) y = Add(n, f) }",
            least=np.float32(least),
        )
    )  # fmt: skip
    stored = [value.const_value.numpy() for value in graph.graph.initializers.values() if value.const_value is not None]
    made = next(node for node in nodes(graph) if node.op_type == "ConstantOfShape").attributes["value"].as_tensor()
    for array in (*stored, made.numpy()):
        assert str(array.dtype) == "bfloat16"
        assert np.isfinite(array.astype(np.float32)).all()
    assert casts(graph) == [("full_bf16", "FLOAT"), ("mask", "BFLOAT16"), ("y_bf16", "FLOAT")]


def test_a_cast_is_not_cast_again() -> None:
    graph = converted(
        graph_of(
            "(int64[2, 3] ids) => (float[3, 2] y, float[2, 3] z) "
            "{ f = Cast<to = 1>(ids) y = Einsum<equation = \"ij->ji\">(f) z = Mul(f, w) }",
            w=np.float32(3),
        )
    )  # fmt: skip
    assert casts(graph) == [("ids", "BFLOAT16"), ("ids", "FLOAT"), ("z_bf16", "FLOAT")]


def test_integers_on_their_way_to_integers_stay_exact() -> None:
    """Position 257 has nine binary digits: in BF16 it would be 256 or 258."""
    graph = converted(
        graph_of(
            "(int64[n] positions, float[n, 4] x) => (float[n, 4] y) { p = Cast<to = 1>(positions) h = Mul(p, half) "
            "i = Cast<to = 7>(h) r = Gather(t, i) y = Add(x, r) }",
            half=np.float32(0.5), t=np.ones((600, 4), np.float32),
        )
    )  # fmt: skip
    assert casts(graph) == [
        ("h", "INT64"), ("positions", "FLOAT"), ("x", "BFLOAT16"), ("y_bf16", "FLOAT"),
    ]  # fmt: skip
    assert graph.graph.initializers["half"].dtype == onnx_ir.DataType.FLOAT


def test_what_is_excluded_and_what_has_a_graph_inside_keep_fp32() -> None:
    text = (
        "(float[2] x, bool c) => (float[2] y) { a = Relu(x) "
        "b = If(c) <then_branch = t () => (float[2] u) { u = Mul(a, w) }, "
        "else_branch = e () => (float[2] v) { v = Neg(a) }> y = Add(b, w) }"
    )
    graph = converted(graph_of(text, w=np.ones(2, np.float32)))
    assert sorted(node.op_type for node in nodes(graph) if node.graph is not graph.graph) == [
        "Cast", "Cast", "Mul", "Neg",
    ]  # fmt: skip
    outside = [("b", "BFLOAT16"), ("u_bf16", "FLOAT"), ("v_bf16", "FLOAT"), ("x", "BFLOAT16"), ("y_bf16", "FLOAT")]
    assert casts(graph) == outside
    kept = converted(graph_of(text, w=np.ones(2, np.float32)), exclude=["a"])
    assert casts(kept) == [("a", "BFLOAT16"), *(each for each in outside if each[0] != "x")]


def test_a_quantised_graph_and_one_without_weights_are_refused(
    minilm: Artifact, make: Callable[..., Artifact], graph_of: Callable[..., Artifact]
) -> None:
    with pytest.raises(StageError, match="has DynamicQuantizeLinear: BF16 is made of graphs that are not quantised"):
        in_bfloat16(read_graph(make(minilm, "int8-dynamic")))
    with pytest.raises(StageError, match="bf16 found nothing to convert"):
        make(graph_of("g (float[b, 2] x) => (float[b, 2] y) { y = Relu(x) }"), BF16)


def test_a_gpu_before_ampere_is_refused() -> None:
    ensure_supported("bf16", (8, 0))
    with pytest.raises(RequirementError, match=r"BF16 needs a GPU of compute capability 8\.0 .*; this one has 7\.5"):
        ensure_supported("bf16", (7, 5))
