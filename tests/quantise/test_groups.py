"""Groups of operators: what belongs together in real graphs, and what it is called."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.onnx_model import nodes
from stages.quantise.groups import Group, groups, quantisable_graph
from stages.quantise.operators import operators


def _sizes(found: list[Group]) -> dict[str, int]:
    return {group.name: len(group.operators) for group in found}


def _is_partition(found: list[Group], graph: ir.Model) -> bool:
    return sorted(name for group in found for name in group.operators) == sorted(o.name for o in operators(graph))


def test_a_transformers_groups_are_the_attention_and_the_mlp_of_each_block(minilm: Artifact) -> None:
    graph = quantisable_graph(minilm)
    found = groups(graph)
    assert _is_partition(found, graph)
    sizes = _sizes(found)
    assert {name: sizes.pop(name) for name in list(sizes) if name.startswith("embeddings.")} == {
        "embeddings.word_embeddings": 1,
        "embeddings.position_embeddings": 1,
    }
    blocks = range(6)
    assert sizes == {f"encoder.layer.{b} attention": 4 for b in blocks} | {f"encoder.layer.{b} MLP": 2 for b in blocks}


def test_a_fused_graph_has_the_same_groups_with_packed_projections(minilm: Artifact, minilm_fused: Artifact) -> None:
    graph = quantisable_graph(minilm_fused)
    found = groups(graph)
    assert _is_partition(found, graph)
    assert [group.name for group in found] == [group.name for group in groups(quantisable_graph(minilm))]
    assert _sizes(found)["encoder.layer.3 attention"] == 2
    assert _sizes(found)["encoder.layer.3 MLP"] == 2


def test_without_names_the_shape_of_the_graph_says_the_same(minilm: Artifact) -> None:
    """A graph whose exporter has named everything by numbers."""
    graph = quantisable_graph(minilm)
    named = groups(graph)
    for number, value in enumerate(list(graph.graph.initializers.values())):
        value.name = f"c{number}"
    for number, node in enumerate(nodes(graph)):
        node.name = f"n{number}"
    found = groups(graph)
    assert [group.operators for group in found] == [group.operators for group in named]
    assert "block 0 attention" in _sizes(found)
    assert "Gather embedding" in _sizes(found)


def test_the_layers_of_a_convolutional_network_stand_alone(digits: Artifact) -> None:
    graph = quantisable_graph(digits)
    found = groups(graph)
    assert _is_partition(found, graph)
    assert all(len(group.operators) == 1 for group in found)
    assert len({group.name for group in found}) == 4


def test_what_is_excluded_is_in_no_group(minilm: Artifact) -> None:
    graph = quantisable_graph(minilm)
    first, *_ = operators(graph)
    left = [name for group in groups(graph, [str(first.node.name)]) for name in group.operators]
    assert first.name not in left
    assert len(left) == len(operators(graph)) - 1


def test_operators_that_share_a_weight_are_one_group(graph_of: Callable[..., Artifact]) -> None:
    """A language model's output layer is often its embedding table, transposed."""
    model = graph_of(
        "tied (int64[batch, length] ids) => (float[batch, length, 600] logits) {"
        "  h = Gather(table, ids)  back = Transpose<perm=[1, 0]>(table)  logits = MatMul(h, back) }",
        table=np.random.default_rng(0).standard_normal((600, 128)).astype(np.float32),
    )
    found = groups(quantisable_graph(model))
    assert [group.operators for group in found] == [("h", "logits")]


def test_cross_attention_takes_the_projections_of_what_it_attends_to_and_not_the_encoder(
    graph_of: Callable[..., Artifact],
) -> None:
    model = graph_of(
        "crossed (float[n, 16] x, float[m, 16] z) => (float[m, 16] y) {"
        "  e0 = MatMul(x, w0)  e1 = MatMul(e0, w1)  e2 = Relu(e1)  e3 = MatMul(e2, w2)  enc = Add(e0, e3)"
        "  d0 = MatMul(z, w3)  q = MatMul(d0, w4)  k = MatMul(enc, w5)  t = Transpose(k)  s = MatMul(q, t)"
        "  p = Softmax(s)  v = MatMul(enc, w6)  c = MatMul(p, v)  o = MatMul(c, w7)  d = Add(o, d0)"
        "  y = MatMul(d, w8) }",
        **_weights(9),
    )
    found = groups(quantisable_graph(model))
    assert [group.operators for group in found] == [("e0",), ("e1", "e3"), ("d0",), ("q", "k", "v", "o"), ("y",)]
    assert [group.name for group in found if len(group.operators) > 1] == ["block 0 MLP", "block 0 attention"]


def test_a_connection_round_several_blocks_leaves_them_as_they_are(graph_of: Callable[..., Artifact]) -> None:
    model = graph_of(
        "nested (float[n, 16] x) => (float[n, 16] y) {"
        "  h = MatMul(x, w0)  a1 = MatMul(h, w1)  a2 = MatMul(a1, w2)  b = Add(h, a2)"
        "  c1 = MatMul(b, w3)  c2 = MatMul(c1, w4)  d = Add(b, c2)  e = MatMul(d, w5)  y = Add(e, h) }",
        **_weights(6),
    )
    assert [group.operators for group in groups(quantisable_graph(model))] == [
        ("h",), ("a1", "a2"), ("c1", "c2"), ("e",),
    ]  # fmt: skip


def test_a_mask_that_is_added_again_and_again_is_no_residual_connection(graph_of: Callable[..., Artifact]) -> None:
    model = graph_of(
        "masked (float[n, 16] x, float[n, 16] given) => (float[n, 16] y) {"
        "  mask = Mul(given, given)"
        "  a = MatMul(x, w0)  b = Add(a, mask)  c = Softmax(b)  d = MatMul(c, w1)"
        "  e = MatMul(d, w2)  f = Add(e, mask)  g = Softmax(f)  y = MatMul(g, w3) }",
        **_weights(4),
    )
    assert [group.operators for group in groups(quantisable_graph(model))] == [("a",), ("d",), ("e",), ("y",)]


def _weights(count: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return {f"w{number}": random.standard_normal((16, 16)).astype(np.float32) for number in range(count)}


def test_a_scaled_residual_connection_is_one(graph_of: Callable[..., Artifact]) -> None:
    model = graph_of(
        "scaled (float[n, 16] x) => (float[n, 16] y) {"
        "  h = MatMul(x, w0)  a = MatMul(h, w1)  b = Relu(a)  c = MatMul(b, w2)  s = Mul(h, half)  r = Add(s, c)"
        "  y = MatMul(r, w3) }",
        half=np.array(0.5, np.float32),
        **_weights(4),
    )
    assert [group.operators for group in groups(quantisable_graph(model))] == [("h",), ("a", "c"), ("y",)]
