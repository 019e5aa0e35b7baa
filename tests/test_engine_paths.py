"""A published release of the vLLM backend names what lies in it by the place where servers see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_repository import Repository, RepositoryError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for folder in ("checkpoint", "adapters/pirate"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "config.json").write_text("{}")
    (tree / "config.pbtxt").write_text(
        'backend: "vllm" parameters { key: "MODEL_REPOSITORY" value { string_value: "/srv/models/" } }'
    )
    (tree / "model.json").write_text(json.dumps({"model": "checkpoint", "dtype": "auto"}))
    (tree / "multi_lora.json").write_text(json.dumps({"pirate": "adapters/pirate", "hub": "someone/lora", "at": "/x"}))
    return tree


def read(repository: Repository, version: int, name: str) -> dict[str, str]:
    return dict(json.loads((repository.directory("tiny", version) / name).read_text()))


def test_relative_paths_become_those_of_the_version(tmp_path: Path, tree: Path) -> None:
    repository = Repository(tmp_path / "repository")
    assert repository.publish("tiny", tree, {}).new
    assert not repository.publish("tiny", tree, {}).new
    (tree / "checkpoint" / "more.json").write_text("{}")
    assert repository.publish("tiny", tree, {}).version == 2
    for version in (1, 2):
        home = f"/srv/models/tiny/{version}"
        assert read(repository, version, "model.json") == {"model": f"{home}/checkpoint", "dtype": "auto"}
        adapters = {"pirate": f"{home}/adapters/pirate", "hub": "someone/lora", "at": "/x"}
        assert read(repository, version, "multi_lora.json") == adapters
        repository.verify("tiny", version)


def test_what_names_nothing_in_the_tree_stays_byte_for_byte(tmp_path: Path, tree: Path) -> None:
    (tree / "model.json").write_text('{"model":   "s3://bucket/tiny"}')
    (tree / "multi_lora.json").write_text('{"up": "../adapters"}')
    repository = Repository(tmp_path / "repository")
    repository.publish("tiny", tree, {})
    for name in ("model.json", "multi_lora.json"):
        assert (repository.directory("tiny") / name).read_bytes() == (tree / name).read_bytes()


def test_without_the_parameter_nothing_changes(tmp_path: Path, tree: Path) -> None:
    (tree / "config.pbtxt").write_text('backend: "vllm"')
    repository = Repository(tmp_path / "repository")
    repository.publish("tiny", tree, {})
    assert read(repository, 1, "model.json")["model"] == "checkpoint"


def test_damaged_arguments_are_named(tmp_path: Path, tree: Path) -> None:
    (tree / "model.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"model\.json is damaged"):
        Repository(tmp_path / "repository").publish("tiny", tree, {})
    assert not (tmp_path / "repository").exists() or not any((tmp_path / "repository").iterdir())
