"""Trained models that a precision destroys, though they compute what the original does."""

from __future__ import annotations

import inspect
import json
import shutil
import statistics
import textwrap
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.model import ASSETS
from stages.onnx_model import read_graph

FACTOR, LENGTH, SAMPLES = 100.0, 48, 64


@dataclass(frozen=True)
class Planted:
    """`model` is an ONNX file, `evaluation` its inputs without truth. `damaged`: the operator, by its output, in whose
    activation the outlier is."""

    model: Path
    evaluation: Path
    damaged: str


def plant_outlier(minilm: Artifact, folder: Path) -> Planted:
    """The first two of MiniLM's blocks, with the largest channel of a normalisation a hundred times as large, which all
    that follows undoes."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = read_graph(minilm)
    last, second = (_normalised(graph, f"encoder.layer.{block}.output") for block in (5, 1))
    onnx_ir.convenience.replace_all_uses_with(last, second)
    RemoveUnusedNodesPass()(graph)

    stream = _normalised(graph, "encoder.layer.0.attention.output")
    _, scale, shift = stream.producer().inputs
    grow = np.ones(len(scale.const_value.numpy()), np.float32)
    grow[np.abs(scale.const_value.numpy()).argmax()] = FACTOR
    _multiply(scale, grow)
    _multiply(shift, grow)
    undo = onnx_ir.val("undo", const_value=onnx_ir.tensor(1 / grow, name="undo"))
    graph.graph.register_initializer(undo)
    ((product, _), (addition, place)) = sorted(stream.uses(), key=lambda use: use[0].op_type != "MatMul")
    _multiply(product.inputs[1], 1 / grow[:, None])
    undone = onnx_ir.node("Mul", [stream, undo], outputs=[onnx_ir.val("undone")])
    graph.graph.insert_before(addition, undone)
    addition.replace_input_with(place, undone.outputs[0])
    onnx_ir.save(graph, folder / "planted.onnx")
    np.savez(folder / "evaluation.npz", **encoded(minilm.path / ASSETS))  # type: ignore[arg-type]
    return Planted(folder / "planted.onnx", folder / "evaluation.npz", product.outputs[0].name)


def plant_small_weights(minilm: Artifact, folder: Path) -> Planted:
    """The first two of MiniLM's blocks, with the values of one attention a millionth as large, which the product behind
    it undoes: weights that 16 bits do not hold. `damaged` is the product that makes the values."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = read_graph(minilm)
    last, second = (_normalised(graph, f"encoder.layer.{block}.output") for block in (5, 1))
    onnx_ir.convenience.replace_all_uses_with(last, second)
    RemoveUnusedNodesPass()(graph)

    block = "model.encoder.layer.1.attention"
    bias, undoing = (graph.graph.initializers[f"{block}.{name}.bias"] for name in ("self.value", "output.dense"))
    ((addition, _),), ((undone, _),) = bias.uses(), undoing.uses()
    product, behind = (
        next(producer for value in node.inputs if (producer := value.producer()) is not None)
        for node in (addition, undone)
    )
    small = np.float32(1e-6)
    _multiply(product.inputs[1], small)
    _multiply(bias, small)
    _multiply(behind.inputs[1], 1 / small)
    onnx_ir.save(graph, folder / "planted.onnx")
    np.savez(folder / "evaluation.npz", **encoded(minilm.path / ASSETS))  # type: ignore[arg-type]
    return Planted(folder / "planted.onnx", folder / "evaluation.npz", product.outputs[0].name)


def quick_run(planted: Planted, variant: str = "int8-dynamic") -> list[object]:
    """The command for `Workplace`. The size is the objective, so that nothing hangs on a busy machine's speed."""
    return [
        "run", planted.model, "--name", "planted", "--evaluation", planted.evaluation, "--variants", variant,
        "--fuse", "never", "--objective", "size", "--batch-sizes", "1", "--budget", "1s", "--no-verify", "--no-record",
        "--json",
    ]  # fmt: skip


def _normalised(graph: Any, module: str) -> Any:
    """What the LayerNorm of a module gives."""
    weight = graph.graph.initializers[f"model.{module}.LayerNorm.weight"]
    ((node, _),) = weight.uses()
    return node.outputs[0]


def _multiply(value: Any, factors: NDArray[np.float32] | np.float32) -> None:
    import onnx_ir

    value.const_value = onnx_ir.tensor(value.const_value.numpy() * factors, name=value.name)


def encoded(tokenizer: Path) -> dict[str, NDArray[np.int64]]:
    """Docstrings of the standard library as token ids, all padded to one length."""
    from tokenizers import Tokenizer

    found = {
        " ".join(text.split())
        for module in (json, statistics, textwrap, inspect, typing, shutil)
        for member in vars(module).values()
        if inspect.isfunction(member) and (text := inspect.getdoc(member)) and len(text) > 40
    }
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    backend.enable_truncation(LENGTH)
    backend.enable_padding(length=LENGTH)
    texts = backend.encode_batch(sorted(found)[:SAMPLES])
    return {
        "input_ids": np.array([text.ids for text in texts]),
        "attention_mask": np.array([text.attention_mask for text in texts]),
        "token_type_ids": np.array([text.type_ids for text in texts]),
    }
