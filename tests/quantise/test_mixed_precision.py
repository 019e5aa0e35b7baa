"""16-bit floats where they hold what the model needs, 32 bits where a gate asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import Planted, plant_small_weights, quick_run
from workplace import Workplace

from stages.artifact import Artifact
from stages.onnx_model import nodes, read_graph
from stages.progress import SILENT
from stages.quantise.fp16 import Fp16
from stages.quantise.groups import groups, quantisable_graph
from stages.quantise.half import declare_types
from stages.quantise.variant import build


@pytest.fixture(scope="module")
def small_weights(minilm_model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant_small_weights(minilm_model, tmp_path_factory.mktemp("small_weights"))


def wide_nodes(graph: object) -> set[str]:
    """The first outputs of the nodes that compute in 32 bits, casts aside."""
    import onnx_ir

    assert isinstance(graph, onnx_ir.Model)
    declare_types(graph)
    return {
        str(node.outputs[0].name)
        for node in nodes(graph)
        if node.op_type != "Cast" and node.outputs[0].dtype == onnx_ir.DataType.FLOAT
    }


def test_a_gate_returns_what_sixteen_bits_do_not_hold(small_weights: Planted, workplace: Workplace) -> None:
    ended = workplace.optimize(*quick_run(small_weights, "fp16"))
    assert ended.code == 0, ended.err
    fp32, fp16, found = ended.json["variants"]
    assert (fp16["name"], fp16["verdict"]) == ("fp16", "fail")
    assert (found["name"], found["verdict"]) == ("fp16+fallback", "pass")
    assert ended.json["release"]["variant"] == "fp16+fallback"
    assert small_weights.damaged in [name for group in found["kept"] for name in group["operators"]]
    assert found["quantised_operators"] >= 0.5 * found["operators"]
    assert found["size_bytes"] < 0.6 * fp32["size_bytes"]
    (search,) = ended.json["fallbacks"]
    first = search["sensitivity"][0]
    assert small_weights.damaged in first["operators"], "the planted attention is the most sensitive group"


def test_what_follows_a_kept_operator_stays_in_32_bits_too(minilm_model: Artifact, tmp_path: Path) -> None:
    """An attention comes back with its softmax, and with no 16-bit value inside."""
    whole = groups(quantisable_graph(minilm_model))
    attention = next(group for group in whole if "attention" in group.name)
    config = Fp16(exclude=attention.operators)
    graph = read_graph(build(config, minilm_model, tmp_path, SILENT, None))
    wide = wide_nodes(graph)
    assert set(attention.operators) <= wide
    kinds = [node.op_type for node in nodes(graph) if node.outputs[0].name in wide]
    every = [node.op_type for node in nodes(graph)]
    assert kinds.count("Softmax") == 1
    assert every.count("Softmax") == 6


def test_projections_inside_of_fused_attention_can_be_kept(minilm_fused: Artifact, tmp_path: Path) -> None:
    attention = next(group for group in groups(quantisable_graph(minilm_fused)) if "attention" in group.name)
    config = Fp16(exclude=attention.operators)
    wide = wide_nodes(read_graph(build(config, minilm_fused, tmp_path, SILENT, None)))
    assert set(attention.operators) <= wide
