"""What these tests need: a GPU, and the software that uses it. Skipped with the reason where it is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.target import Target, lacking


@pytest.fixture(scope="session")
def needs() -> Callable[[Target], None]:
    """Skip the test if this machine lacks something for a target."""

    def or_skip(target: Target) -> None:
        if reason := lacking(target):
            pytest.skip(f"the target {target} {reason}")

    return or_skip


@pytest.fixture(scope="session")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Two products with a ReLU between them, batch [batch, 256] or of a fixed size."""
    import onnx
    import onnx_ir

    from stages.onnx_model import signature_of, write_model

    def made(batch: int | None = None) -> Artifact:
        random = np.random.default_rng(0)
        axis = "batch" if batch is None else batch
        model = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 21]> g (float[{axis}, 256] x) => (float[{axis}, 16] y) '
            "{ h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
        )
        for name, shape in (("w", (256, 512)), ("v", (512, 16))):
            array = (random.standard_normal(shape) / 16).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        graph = onnx_ir.from_proto(model)
        out: Path = tmp_path_factory.mktemp("perceptron")
        return write_model(graph, out, signature=signature_of(graph))

    return made


@pytest.fixture(scope="session")
def inputs() -> Callable[[int], dict[str, NDArray[Any]]]:
    def batch(size: int) -> dict[str, NDArray[Any]]:
        return {"x": np.random.default_rng(size).standard_normal((size, 256)).astype(np.float32)}

    return batch
