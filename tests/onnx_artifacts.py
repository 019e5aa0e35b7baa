"""Small ONNX models and data sets as artifacts, for tests that need real ones made to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.model import Model, Task
from stages.runtime.onnxruntime import signature_of


def model_artifact(
    path: Path,
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[str, Sequence[Any]]],
    outputs: Mapping[str, tuple[str, Sequence[Any]]],
    weights: Mapping[str, NDArray[Any]] | None = None,
    task: Task = "generic",
) -> Artifact:
    """An artifact of kind `model`; inputs and outputs as name: (ONNX type such as "FLOAT", shape)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def infos(values: Mapping[str, tuple[str, Sequence[Any]]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
            for name, (kind, shape) in values.items()
        ]

    constants = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", infos(inputs), infos(outputs), constants)
    path.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path / "model.onnx")
    model = Model(task=task, signature=signature_of(path / "model.onnx"), opset=20)
    return Artifact.write(path, "model", model.model_dump(mode="json"))


def linear(path: Path, weight: NDArray[Any], task: Task = "generic", output: str = "logits") -> Artifact:
    """x [batch, n] → logits [batch, m] = x @ weight."""
    from onnx import helper

    return model_artifact(
        path,
        [helper.make_node("MatMul", ["x", "w"], [output])],
        {"x": ("FLOAT", ["batch", weight.shape[0]])},
        {output: ("FLOAT", ["batch", weight.shape[1]])},
        {"w": weight.astype(np.float32)},
        task,
    )


def token_model(path: Path, table: NDArray[Any], task: Task, output: str = "logits") -> Artifact:
    """input_ids [batch, sequence] → one row of `table` for each token; attention_mask is asked for and not used."""
    from onnx import helper

    return model_artifact(
        path,
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("CastLike", ["attention_mask", "rows"], ["mask"]),
            helper.make_node("Mul", ["mask", "zero"], ["nothing"]),
            helper.make_node("Unsqueeze", ["nothing", "last"], ["spread"]),
            helper.make_node("Add", ["rows", "spread"], [output]),
        ],
        {"input_ids": ("INT64", ["batch", "sequence"]), "attention_mask": ("INT64", ["batch", "sequence"])},
        {output: ("FLOAT", ["batch", "sequence", table.shape[1]])},
        {
            "table": table.astype(np.float32),
            "zero": np.zeros((), dtype=np.float32),
            "last": np.array([-1], dtype=np.int64),
        },
        task,
    )


def dataset(path: Path, samples: Samples, evidence_kind: str = "data") -> Artifact:
    """An artifact of kind `dataset`."""
    path.mkdir(parents=True)
    samples.save(path)
    metadata = {"evidence": "test data", "evidence_kind": evidence_kind, "samples": len(samples)}
    return Artifact.write(path, "dataset", metadata)


def rows(x: NDArray[Any], truth: Mapping[str, Any] | None = None) -> Samples:
    """Samples of one input x [n, features]."""
    return Samples({"x": [row.astype(np.float32) for row in x]}, truth=truth)


def tokens(ids: Sequence[Sequence[int]], truth: Mapping[str, Any] | None = None) -> Samples:
    """Ragged samples of input_ids and attention_mask."""
    inputs = {
        "input_ids": [np.array(one, dtype=np.int64) for one in ids],
        "attention_mask": [np.ones(len(one), dtype=np.int64) for one in ids],
    }
    return Samples(inputs, {"input_ids": 0.0, "attention_mask": 0.0}, truth)
