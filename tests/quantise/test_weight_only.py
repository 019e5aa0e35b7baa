"""The weight-only variants: `int4` and `int8-weight-only`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.statistics import Collector
from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.model import ASSETS, Model
from stages.onnx_model import nodes, read_graph, weight_bytes
from stages.progress import SILENT
from stages.quantise.block_operators import BlockOperators
from stages.quantise.blocks.form import BlockFormat
from stages.quantise.blocks.ranges import rtn
from stages.quantise.weight_only import make_weight_only
from stages.runtime import RuntimeOptions, open_session
from stages.variants import parse_variant, quantise

Make = Callable[[Artifact, str | Mapping[str, Any]], Artifact]
Arrays = dict[str, NDArray[Any]]

BOTH = ["int4", "int8-weight-only"]


def file_bytes(model: Artifact) -> int:
    return sum((model.path / name).stat().st_size for name in model.files if not name.startswith("assets/"))


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def answer(model: Artifact, batch: Arrays) -> Arrays:
    with open_session(model, RuntimeOptions(spinning=False)) as session:
        return session(batch)


@pytest.fixture(scope="module")
def long_sentences(minilm: Artifact) -> Arrays:
    """48 texts of 128 tokens out of NumPy's documentation, of which calibration has seen nothing."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm.path / ASSETS / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.no_padding()
    texts = sorted({" ".join((inspect.getdoc(getattr(np, name)) or "").split()) for name in np.__all__})
    ids = [ids for text in texts if len(ids := tokenizer.encode(text).ids) == 128][:48]
    return {
        "input_ids": np.array(ids),
        "attention_mask": np.ones((len(ids), 128), np.int64),
        "token_type_ids": np.zeros((len(ids), 128), np.int64),
    }


@pytest.fixture(scope="module")
def cosine(minilm: Artifact, long_sentences: Arrays) -> Callable[[Artifact], float]:
    exact = answer(minilm, long_sentences)["sentence_embedding"]

    def mean(variant: Artifact) -> float:
        found = answer(variant, long_sentences)["sentence_embedding"]
        return float((found * exact).sum(axis=1).mean())

    return mean


# MiniLM


@pytest.mark.parametrize(
    ("spec", "least", "most_bytes"),
    [
        ("int4", 0.985, 15_000_000),
        ("int4-openvino", 0.985, 15_500_000),
        ({"type": "int4", "embedding_bits": 8, "name": "int4-rows"}, 0.985, 20_000_000),
        ("int8-weight-only", 0.999, 24_000_000),
        ("int8-weight-only-openvino", 0.999, 24_500_000),
    ],
)
def test_minilm_is_small_and_says_the_same_of_long_sentences(
    spec: Any, least: float, most_bytes: int, minilm: Artifact, make: Make, cosine: Callable[[Artifact], float]
) -> None:
    variant = make(minilm, spec)
    assert cosine(variant) > least
    assert file_bytes(variant) < most_bytes
    assert Model.of(variant).operators["MatMulNBits"] == 36


def test_what_needs_more_of_the_data_keeps_more(
    minilm: Artifact, make: Make, cosine: Callable[[Artifact], float]
) -> None:
    lost = {
        method: 1 - cosine(make(minilm, {"type": "int4", "method": method})) for method in ("rtn", "hqq", "awq-clip")
    }
    assert lost["rtn"] > lost["hqq"] > lost["awq-clip"] > 1.5 * (1 - cosine(make(minilm, "int4")))


def test_all_weights_of_products_and_large_tables_are_integers(minilm: Artifact, make: Make) -> None:
    for spec in BOTH:
        graph = read_graph(make(minilm, spec))
        floats = [value.const_value for value in graph.graph.initializers.values() if str(value.dtype) == "FLOAT"]
        integers = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if str(v.dtype) != "FLOAT")
        assert sum(value.nbytes for value in floats) < 0.3 * integers
        assert weight_bytes(graph) < weight_bytes(read_graph(minilm)) / (6 if spec == "int4" else 3.7)


def test_without_data_the_fused_graph_is_quantised(minilm_fused: Artifact, make: Make) -> None:
    operators = Model.of(make(minilm_fused, "int8-weight-only")).operators
    assert (operators["MatMulNBits"], operators["MultiHeadAttention"]) == (24, 6)
    assert not parse_variant("int4").takes_fused_graph
    assert parse_variant({"type": "int4", "method": "rtn"}).takes_fused_graph


# The digits


@pytest.mark.parametrize("spec", [*BOTH, "int4-openvino", "int8-weight-only-openvino"])
def test_the_digits_are_still_read(
    spec: str, digits: Artifact, make: Make, digits_accuracy: Callable[[Artifact], float]
) -> None:
    variant = make(digits, spec)
    assert digits_accuracy(variant) > digits_accuracy(digits) - 0.01
    operators = Model.of(variant).operators
    assert (operators["MatMulNBits"], operators["DequantizeLinear"], operators["Conv"]) == (2, 2, 2)
    assert operators.get("Gemm", 0) == 0


@pytest.mark.parametrize("kind", BOTH)
def test_single_operators_stay_as_they_are(kind: str, digits: Artifact, make: Make) -> None:
    graph = read_graph(digits)
    head = next(node.name for node in nodes(graph) if node.op_type == "Gemm")
    stem = next(node.outputs[0].name for node in nodes(graph) if node.op_type == "Conv")
    kept = Model.of(make(digits, {"type": kind, "exclude": [head, stem]})).operators
    assert (kept["Gemm"], kept["MatMulNBits"], kept["DequantizeLinear"]) == (1, 1, 1)
    plain = Model.of(make(digits, {"type": kind, "convolutions": False})).operators
    assert "DequantizeLinear" not in plain


# Small graphs


def products(graph_of: Callable[..., Artifact]) -> tuple[Artifact, Arrays]:
    """One weight behind two activations, and the same again, transposed, in a `Gemm` with factors."""
    generator = np.random.default_rng(0)
    tied = generator.standard_normal((64, 64)).astype(np.float32)
    model = graph_of(
        """products (float[batch, 64] x) => (float[batch, 64] y, float[batch, 64] z) {
            h = MatMul(x, w) g = Relu(h) k = MatMul(g, w) y = Add(b, k)
            z = Gemm <alpha: float = 0.5, beta: float = 2.0, transB: int = 1> (x, v, c) }""",
        w=tied,
        v=np.ascontiguousarray(2 * tied.T),
        b=generator.standard_normal(64).astype(np.float32),
        c=generator.standard_normal((1, 64)).astype(np.float32),
    )
    return model, {"x": (generator.standard_normal((512, 64)) + 1).astype(np.float32)}


def statistics_of(folder: Path, **vectors: NDArray[np.float32]) -> Artifact:
    collector = Collector(gram=True)
    for name, rows in vectors.items():
        collector.add(name, rows)
    collector.save(folder)
    return Artifact.write(folder, "statistics", {})


def test_equal_weights_are_kept_once(graph_of: Callable[..., Artifact], make: Make) -> None:
    model, batch = products(graph_of)
    variant = make(model, "int8-weight-only")
    assert Model.of(variant).operators["MatMulNBits"] == 3
    graph = read_graph(variant)
    assert [value.const_value.nbytes for value in graph.graph.initializers.values()].count(64 * 64) == 1
    exact, found = answer(model, batch), answer(variant, batch)
    for name in ("y", "z"):
        assert np.abs(found[name] - exact[name]).max() < 0.03 * np.abs(exact[name]).max()


@pytest.mark.parametrize("method", ["gptq", "awq-clip"])
def test_the_mean_of_the_outputs_is_kept(method: str, graph_of: Callable[..., Artifact], tmp_path: Path) -> None:
    model, batch = products(graph_of)
    inner = np.maximum(batch["x"] @ read_graph(model).graph.initializers["w"].const_value.numpy(), 0)
    statistics = statistics_of(empty(tmp_path / "statistics"), x=batch["x"], g=inner)
    exact = answer(model, batch)
    off = {}
    for corrected in (False, True):
        config = parse_variant(
            {"type": "int4", "method": method, "bias_correction": corrected, "accuracy_level": 1, "symmetric": True}
        )
        variant = quantise(model, config, empty(tmp_path / str(corrected)), SILENT, statistics)
        off[corrected] = np.abs((answer(variant, batch)["z"] - exact["z"]).mean(axis=0)).max()
    assert off[True] < 1e-4 < off[False]


def test_what_no_sample_reached_is_rounded(graph_of: Callable[..., Artifact], tmp_path: Path) -> None:
    model, batch = products(graph_of)
    nothing = statistics_of(empty(tmp_path / "statistics"), elsewhere=np.ones((4, 64), np.float32))
    level = {"type": "int4", "accuracy_level": 1}
    reached_not = quantise(model, parse_variant(level), empty(tmp_path / "gptq"), SILENT, nothing)
    rounded = quantise(model, parse_variant({**level, "method": "rtn"}), empty(tmp_path / "rtn"), SILENT)
    assert np.array_equal(answer(reached_not, batch)["y"], answer(rounded, batch)["y"])


def test_what_the_bias_corrects_is_no_concern_of_the_weights(graph_of: Callable[..., Artifact], tmp_path: Path) -> None:
    """Activations that vary in few directions, about a mean far from zero."""
    model, _ = products(graph_of)
    generator = np.random.default_rng(1)
    varying = generator.standard_normal((512, 8)) @ generator.standard_normal((8, 64))
    shifted = {"x": (varying + np.linspace(-20, 20, 64)).astype(np.float32)}
    statistics = statistics_of(empty(tmp_path / "statistics"), **shifted)
    exact = answer(model, shifted)["z"]
    spread = {}
    for corrected in (False, True):
        config = parse_variant({"type": "int4", "bias_correction": corrected, "accuracy_level": 1})
        variant = quantise(model, config, empty(tmp_path / str(corrected)), SILENT, statistics)
        spread[corrected] = (answer(variant, shifted)["z"] - exact).std(axis=0).mean()
    assert spread[True] < 0.8 * spread[False]


def test_activations_far_from_zero_and_close_together_are_learnt_from(
    graph_of: Callable[..., Artifact], tmp_path: Path
) -> None:
    """Their covariance is what is left of large second moments in single precision."""
    model, batch = products(graph_of)
    far = {"x": (1000 + batch["x"] / 100).astype(np.float32)}
    config = parse_variant({"type": "int4", "damping": 1e-6, "accuracy_level": 1})
    variant = quantise(model, config, empty(tmp_path / "v"), SILENT, statistics_of(empty(tmp_path / "s"), **far))
    exact, found = answer(model, far)["z"], answer(variant, far)["z"]
    assert np.abs(found - exact).mean() < 1e-3 * np.abs(exact).mean()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("width", "operator"), [(128, "GatherBlockQuantized"), (96, "Gather")])
def test_tables_take_4_bits_where_every_engine_reads_them(
    width: int, operator: str, runtime: str, graph_of: Callable[..., Artifact], make: Make
) -> None:
    generator = np.random.default_rng(0)
    table = generator.standard_normal((2**16 // width + 1, width)).astype(np.float32)
    model = graph_of(
        "table (int64[batch, n] ids) => (float[batch, n, 8] y) { h = Gather(t, ids) y = MatMul(h, w) }",
        t=table,
        w=np.eye(width, 8, dtype=np.float32),
    )
    variant = make(model, {"type": "int4", "method": "rtn", "runtime": runtime})
    assert operator in Model.of(variant).operators
    ids = generator.integers(0, len(table), (3, 5))
    error = answer(variant, {"ids": ids})["y"] - table[ids][..., :8]
    assert 0.001 < np.abs(error).max() < (0.25 if width == 128 else 0.05)


# What is refused


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "int4", "methd": "rtn"}, "no parameter 'methd' .did you mean 'method'"),
        ({"type": "int4", "method": "gptq2"}, "method: Input should be 'gptq', 'awq-clip', 'hqq' or 'rtn'"),
        ({"type": "int4", "block_size": 48}, "block_size: Input should be 16, 32, 64 or 128"),
        (
            {"type": "int4", "method": "hqq", "symmetric": True},
            "hqq chooses zero points, and symmetric blocks have none",
        ),
        ({"type": "int8-weight-only", "method": "gptq"}, "the variant int8-weight-only has no parameter 'method'"),
        ("int8-weigth-only", "did you mean 'int8-weight-only'"),
    ],
)
def test_a_wrong_request_is_answered_with_what_there_is(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_variant(spec)


def test_only_what_learns_asks_for_data() -> None:
    needs = {
        method: (config.needs_data, config.needs_gram)
        for method in ("gptq", "awq-clip", "hqq", "rtn")
        for config in [parse_variant({"type": "int4", "method": method})]
    }
    assert needs == {"gptq": (True, True), "awq-clip": (True, False), "hqq": (False, False), "rtn": (False, False)}
    assert not parse_variant("int8-weight-only").needs_data


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "int4", "method": "rtn"}, "int4 has nothing to quantise: the model has no matrix product with"),
        ({"type": "int8-weight-only", "convolutions": False}, "the model has no matrix product with constant 32-bit"),
    ],
)
def test_a_model_of_convolutions_alone_is_not_for_4_bits(
    spec: Any, message: str, graph_of: Callable[..., Artifact], make: Make
) -> None:
    model = graph_of(
        "conv (float[batch, 8, 9, 9] x) => (float[batch, 16, 7, 7] y) { y = Conv(x, w) }",
        w=np.random.default_rng(0).standard_normal((16, 8, 3, 3)).astype(np.float32),
    )
    assert Model.of(make(model, "int8-weight-only")).operators["DequantizeLinear"] == 1
    with pytest.raises(StageError, match=message):
        make(model, spec)


def test_convolutions_of_an_old_opset_are_refused(graph_of: Callable[..., Artifact], make: Make) -> None:
    import onnx_ir

    from stages.onnx_model import signature_of, write_model

    model = graph_of(
        "conv (float[batch, 8, 9, 9] x) => (float[batch, 16, 7, 7] y) { y = Conv(x, w) }",
        w=np.ones((16, 8, 3, 3), np.float32),
    )
    graph = onnx_ir.load(model.path / "model.onnx")
    graph.opset_imports[""] = 11
    old = write_model(graph, empty(model.path / "old"), signature=signature_of(graph))
    with pytest.raises(StageError, match="needs ONNX opset 13 for convolutions; the model has opset 11"):
        make(old, "int8-weight-only")


def test_more_bytes_than_were_promised_are_refused(graph_of: Callable[..., Artifact], tmp_path: Path) -> None:
    model = graph_of(
        "g (float[batch, 512] x) => (float[batch, 512] y) { y = MatMul(x, w) }",
        w=np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32),
    )
    config = parse_variant({"type": "int4", "method": "rtn"})
    with pytest.raises(StageError, match=r"the weights of int4 take 27\d,\d{3} bytes, and should take 2\d\d,\d{3} at"):
        make_weight_only(
            config,  # type: ignore[arg-type]
            model,
            tmp_path,
            SILENT,
            format=BlockFormat(4, 128),
            table_bits=4,
            quantise=lambda weight, activations: (rtn(weight, BlockFormat(8, 128, True)), [None]),
        )


def test_a_product_that_was_left_out_is_noticed(
    graph_of: Callable[..., Artifact], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = graph_of(
        "g (float[batch, 64] x) => (float[batch, 64] y) { h = MatMul(x, w) y = MatMul(h, v) }",
        w=np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32),
        v=np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32),
    )
    rewrite = BlockOperators.products
    monkeypatch.setattr(
        BlockOperators,
        "products",
        lambda self, sharing, *rest: None if sharing[0].name == "h" else rewrite(self, sharing, *rest),
    )
    with pytest.raises(StageError, match="int8-weight-only has 1 MatMulNBits, not the 2 that it should have"):
        make(model, "int8-weight-only")
