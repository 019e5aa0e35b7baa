"""Releases to serve, and one server that serves several: digits (trained), words, table, fixed; digits and sum in
OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from released import (
    FIXED,
    SUM,
    TABLE,
    WORDS,
    Release,
    Released,
    Served,
    in_openvino,
    make_data,
    make_model,
    release_of,
    released_from,
)

from calibration.samples import Samples
from model_repository import Repository
from model_repository.environment import ServerEnvironment, server_environment
from model_repository.server import Server
from stages.artifact import Artifact


@pytest.fixture
def released(tmp_path: Path) -> Release:
    """`released(name, text, **options)`: the release of a graph in ONNX' own text form."""

    def make(name: str, text: str, **options: Any) -> Released:
        return released_from(tmp_path / name, name, text, **options)

    return make


@pytest.fixture(scope="session")
def triton() -> ServerEnvironment:
    """The server's environment, in the user's cache: made by the first test run on a machine."""
    return server_environment()


@pytest.fixture(scope="session")
def digits(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Released:
    path = tmp_path_factory.mktemp("digits")
    return release_of(path / "release", make_model(path / "model", classifier.model), "digits")


@pytest.fixture(scope="session")
def digits_fp32(digits: Released, tmp_path_factory: pytest.TempPathFactory) -> Released:
    return in_openvino(tmp_path_factory.mktemp("fp32"), digits.model, "digits-fp32", "fp32-openvino")


@pytest.fixture(scope="session")
def digits_bf16(digits: Released, tmp_path_factory: pytest.TempPathFactory) -> Released:
    return in_openvino(tmp_path_factory.mktemp("bf16"), digits.model, "digits-bf16", "bf16-openvino")


@pytest.fixture(scope="session")
def digits_data(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    with np.load(classifier.evaluation) as arrays:
        return make_data(tmp_path_factory.mktemp("data") / "digits", Samples({"x": list(arrays["x"][:100])}))


@pytest.fixture(scope="session")
def served(
    triton: ServerEnvironment,
    digits: Released,
    digits_fp32: Released,
    digits_bf16: Released,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("served")
    releases = {"digits": digits, "digits-fp32": digits_fp32, "digits-bf16": digits_bf16}
    summing = released_from(path / "parts", "parts", SUM).model
    releases["sum"] = in_openvino(path / "sum", summing, "sum", "fp32-openvino")
    for name, text in (("words", WORDS), ("table", TABLE), ("fixed", FIXED)):
        releases[name] = released_from(path / name, name, text)
    repository = path / "repository"
    for name, item in releases.items():
        Repository(repository).publish(name, item.release.path, {})
    with Server(repository, triton, grace_s=0) as server:
        yield Served(server, repository, releases)
