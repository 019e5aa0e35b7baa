"""Making releases to serve, from graphs in ONNX' own text form or from files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.samples import Samples
from model_repository.server import Server
from stages.artifact import Artifact, link
from stages.model import Model
from stages.package import PackageOptions, package
from stages.runtime.onnxruntime import signature_of
from stages.variants import parse_variant, quantise

WORDS = """
    <ir_version: 8, opset_import: ["" : 17]>
    words (string[batch] word) => (string[batch] same) { same = Identity(word) }
"""
TABLE = """
    <ir_version: 8, opset_import: ["" : 17]>
    table (int64[batch, length] ids) => (float[batch, length] values)
    <float[4] weights = {10, 20, 30, 40}>
    { values = Gather(weights, ids) }
"""
SUM = """
    <ir_version: 8, opset_import: ["" : 17]>
    sum (float[batch, m] a, float[batch, n] b) => (float[batch, k] total) { total = Add(a, b) }
"""
FIXED = """
    <ir_version: 8, opset_import: ["" : 17]>
    fixed (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }
"""


@dataclass(frozen=True)
class Released:
    """A model with its release."""

    model: Artifact
    release: Artifact


def make_model(path: Path, graph: Path, precision: str = "fp32") -> Artifact:
    path.mkdir(parents=True)
    link(graph, path / "model.onnx")
    model = Model(signature=signature_of(graph), opset=17, precision=precision)
    return Artifact.write(path, "model", model.model_dump(mode="json"))


def release_of(path: Path, model: Artifact, name: str, **options: Any) -> Released:
    path.mkdir(parents=True)
    return Released(model, package(model=model, options=PackageOptions(name=name, threads=1, **options), out=path))


def in_openvino(path: Path, model: Artifact, name: str, variant: str, **options: Any) -> Released:
    (path / "ir").mkdir(parents=True)
    return release_of(path / "release", quantise(model, parse_variant(variant), path / "ir"), name, **options)


def make_data(path: Path, samples: Samples) -> Artifact:
    path.mkdir(parents=True)
    samples.save(path)
    return Artifact.write(path, "dataset", {})


Release = Callable[..., Released]


def released_from(path: Path, name: str, text: str, **options: Any) -> Released:
    import onnx

    path.mkdir()
    onnx.save(onnx.parser.parse_model(text), path / "graph.onnx")
    return release_of(path / "release", make_model(path / "model", path / "graph.onnx"), name, **options)


@dataclass(frozen=True)
class Served:
    server: Server
    repository: Path
    releases: dict[str, Released]
