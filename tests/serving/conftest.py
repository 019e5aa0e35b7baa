"""Releases to serve, and one server that serves several: digits (trained), words, table, fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.samples import Samples
from model_repository import Repository
from model_repository.environment import ServerEnvironment, server_environment
from model_repository.server import Server
from stages.artifact import Artifact, link
from stages.model import Model
from stages.package import PackageOptions, package
from stages.runtime.onnxruntime import signature_of

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


def make_data(path: Path, samples: Samples) -> Artifact:
    path.mkdir(parents=True)
    samples.save(path)
    return Artifact.write(path, "dataset", {})


Release = Callable[..., Released]


@pytest.fixture
def released(tmp_path: Path) -> Release:
    """`released(name, text, **options)`: the release of a graph in ONNX' own text form."""

    def make(name: str, text: str, **options: Any) -> Released:
        return _released(tmp_path / name, name, text, **options)

    return make


def _released(path: Path, name: str, text: str, **options: Any) -> Released:
    import onnx

    path.mkdir()
    onnx.save(onnx.parser.parse_model(text), path / "graph.onnx")
    return release_of(path / "release", make_model(path / "model", path / "graph.onnx"), name, **options)


@pytest.fixture(scope="session")
def triton() -> ServerEnvironment:
    """The server's environment, in the user's cache: made by the first test run on a machine."""
    return server_environment()


@pytest.fixture(scope="session")
def digits(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Released:
    path = tmp_path_factory.mktemp("digits")
    return release_of(path / "release", make_model(path / "model", classifier.model), "digits")


@pytest.fixture(scope="session")
def digits_data(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    with np.load(classifier.evaluation) as arrays:
        return make_data(tmp_path_factory.mktemp("data") / "digits", Samples({"x": list(arrays["x"][:100])}))


@dataclass(frozen=True)
class Served:
    server: Server
    repository: Path
    releases: dict[str, Released]


@pytest.fixture(scope="session")
def served(triton: ServerEnvironment, digits: Released, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("served")
    releases = {"digits": digits}
    for name, text in (("words", WORDS), ("table", TABLE), ("fixed", FIXED)):
        releases[name] = _released(path / name, name, text)
    repository = path / "repository"
    for name, item in releases.items():
        Repository(repository).publish(name, item.release.path, {})
    with Server(repository, triton, grace_s=0) as server:
        yield Served(server, repository, releases)
