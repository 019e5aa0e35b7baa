"""Real servers, one a version: what is deployed, the same again, one that delays its answers, one that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from front import address, haproxy, make_repository

from model_repository.environment import ServerEnvironment, server_environment
from model_repository.server import Server


@pytest.fixture(scope="session")
def triton() -> ServerEnvironment:
    """The server's environment, in the user's cache: made by the first test run on a machine."""
    return server_environment()


@pytest.fixture(scope="session")
def versions(triton: ServerEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of servers by what their version is like.

    `slow` waits up to 60 ms for a batch of 64 that never comes: a configuration, not a slower machine.
    """
    haproxy()
    path: Path = tmp_path_factory.mktemp("versions")
    made = {
        "stable": make_repository(path / "stable"),
        "twin": make_repository(path / "twin"),
        "slow": make_repository(path / "slow", max_batch_size=64, max_queue_delay_us=60_000),
        "wrong": make_repository(path / "wrong", "2.5"),
        "refusing": make_repository(path / "refusing", width=5),
    }
    with ExitStack() as running:
        servers = {
            name: running.enter_context(Server(repository, triton, grace_s=0)) for name, repository in made.items()
        }
        yield {name: address(server) for name, server in servers.items()}
