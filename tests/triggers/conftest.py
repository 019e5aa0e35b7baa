"""What the tests of the triggers share: a registry in a database, a recipe that costs little, a receiver."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from registries import MlflowServer

SECRET = "a secret of some length"
CHEAP: dict[str, Any] = {
    "model": "the watch says which", "variants": ["int8-dynamic"], "fuse": "never", "objective": "size",
    "fallback": False, "verify": False, "profile": {"batch_sizes": [1], "budget": "1s", "threads": 1},
    "evaluation": "evaluation.npz", "gates": {"min_cosine": 0.5}, "serving": {"threads": 1},
}  # fmt: skip


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recipes: `cheap`, `verified` (a real Triton answers), `impossible` (nothing passes)."""
    folder = tmp_path_factory.mktemp("recipes")
    np.savez(folder / "evaluation.npz", x=np.random.default_rng(0).standard_normal((64, 4)).astype("f4"))
    for name, change in {
        "cheap": {},
        "verified": {"verify": True},
        "impossible": {"gates": {"max_size": "1B"}},
    }.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(CHEAP | change))
    return folder


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tracking URI of an MLflow database; each test has models of its own in it."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(uri).create_experiment("sources", artifact_location=(folder / "artifacts").as_uri())
    return uri


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server. Whoever stops it starts it again."""
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Callable[..., tuple[str, subprocess.Popen[bytes]]]]:
    """Starts `optimize webhook serve` with further options; gives its address and its process."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str, store: Path | None = None, **environment: str) -> tuple[str, subprocess.Popen[bytes]]:
        process = start_receiver(store or tmp_path / "store", *options, **environment)
        started.append(process[1])
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def start_receiver(store: Path, *options: str, **environment: str) -> tuple[str, subprocess.Popen[bytes]]:
    """What it says goes into `receiver.log` in the store."""
    store.mkdir(parents=True, exist_ok=True)
    log = store / "receiver.log"
    command = [str(Path(sys.executable).with_name("optimize")), "webhook", "serve", "--port", "0"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--store", str(store), *options], stdout=stream, stderr=stream,
            env=os.environ | {"OPTIMIZE_WEBHOOK_SECRET": SECRET} | environment,
        )  # fmt: skip
    while (found := re.search(r"listening on (http://\S+)\n", log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    return found[1], process
