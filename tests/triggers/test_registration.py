"""Registering a release in a real registry: once, whatever interrupts it; and which version gets the alias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from example_result import example_result
from registries import register as register_source
from registries import versions
from test_repository import make_tree

from model_repository import Repository
from pipeline.records.registration import Registration, register
from pipeline.result import MlflowLink, Release, RunResult
from stages.errors import StageError


class Bench:
    """A source model with versions, a repository with a release, and a run on record."""

    def __init__(self, uri: str, folder: Path, model: str) -> None:
        from mlflow import MlflowClient

        self.uri, self.folder, self.model = uri, folder, model
        self.client = MlflowClient(uri, uri)
        self.target = f"{model}-optimized"

    def result(self, weights: str = "one") -> RunResult:
        repository = Repository(self.folder / "repository")
        published = repository.publish("m", make_tree(self.folder / weights, weights), {})
        result = example_result()
        result.status, result.model, result.message = "published", "m", "published"
        result.release = Release(
            repository=str(repository.path), model="m", version=published.version, variant="int8-dynamic",
            digest=published.digest, verified=True,
        )  # fmt: skip
        experiment = self.client.get_experiment_by_name("sources").experiment_id
        run = self.client.create_run(experiment)
        result.mlflow = MlflowLink(tracking_uri=self.uri, experiment="sources", run_id=run.info.run_id)
        return result

    def register(self, result: RunResult, version: int, key: str = "5" * 64) -> Any:
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        done = register(result, Registration(key, self.model, version, self.target, "champion"), self.uri, scratch)
        assert list(scratch.iterdir()) == []
        return done

    def champion(self) -> int:
        return int(self.client.get_registered_model(self.target).aliases["champion"])


@pytest.fixture
def bench(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    bench = Bench(database, tmp_path, request.node.name)
    for _ in range(2):
        register_source(bench.client, bench.model, tmp_path)
    return bench


def test_twice_is_once(bench: Bench) -> None:
    result = bench.result()
    first, second = bench.register(result, 1), bench.register(result, 1)
    assert (first.version, first.new, first.alias) == (1, True, "champion moved to version 1")
    assert (second.version, second.new, second.alias) == (1, False, "champion is on version 1")
    [version] = versions(bench.client, bench.target)
    assert version.tags["optimize.variant"] == "int8-dynamic"
    assert float(version.tags["optimize.accuracy_drop"]) == pytest.approx(example_drop(), rel=1e-3)
    assert version.tags["optimize.metric"] == "recall@1"


def example_drop() -> float:
    [chosen] = [variant for variant in example_result().variants if variant.name == "int8-dynamic"]
    assert chosen.metric is not None
    return chosen.metric.drop


@pytest.mark.parametrize(
    "call",
    ["create_logged_model", "log_model_artifacts", "finalize_logged_model", "create_model_version",
     "set_registered_model_alias"],
)  # fmt: skip
@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_is_interrupted_is_finished_and_is_there_once(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, when: str
) -> None:
    from mlflow import MlflowClient

    bench = Bench(database, tmp_path, f"cut-{when}-{call}")
    register_source(bench.client, bench.model, tmp_path)
    key = f"{abs(hash(bench.model)):064x}"
    result, real = bench.result(), getattr(MlflowClient, call)

    def cut(*arguments: Any, **options: Any) -> None:
        if when == "after":
            real(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, call, cut)
        with pytest.raises(KeyboardInterrupt):
            bench.register(result, 1, key)
    assert bench.register(result, 1, key).version == 1
    assert len(versions(bench.client, bench.target)) == bench.champion() == 1
    experiment = bench.client.get_experiment_by_name("sources").experiment_id
    [model] = bench.client.search_logged_models([experiment], f"tags.`optimize.key` = '{key}'")
    assert str(model.status) == "READY"


def test_the_latest_source_version_has_the_alias(bench: Bench) -> None:
    assert bench.register(bench.result("two"), 2, "2" * 64).version == 1
    late = bench.register(bench.result("one"), 1, "1" * 64)
    assert late.version == 2
    assert late.alias == "champion stays on version 1, the result of the later version 2"
    assert bench.champion() == 1


def test_or_the_one_that_the_source_models_alias_is_on(bench: Bench) -> None:
    bench.client.set_registered_model_alias(bench.model, "champion", "1")
    early = bench.register(bench.result("two"), 2, "2" * 64)
    assert early.alias.startswith("champion stays: ")
    assert dict(bench.client.get_registered_model(bench.target).aliases) == {}
    bench.register(bench.result("one"), 1, "1" * 64)
    assert bench.champion() == 2


def test_what_was_not_published_is_not_registered(bench: Bench) -> None:
    result = bench.result()
    result.status = "none_passed"
    with pytest.raises(StageError, match="not published"):
        bench.register(result, 1)
    unrecorded = bench.result("two")
    unrecorded.mlflow = None
    with pytest.raises(StageError, match="not on record"):
        bench.register(unrecorded, 1)


def test_a_release_that_was_changed_is_not_registered(bench: Bench) -> None:
    from model_repository import RepositoryError

    result = bench.result()
    file = bench.folder / "repository" / "m" / "1" / "model.onnx"
    file.unlink()
    file.write_bytes(b"another")
    with pytest.raises(RepositoryError, match="has changed since it was published"):
        bench.register(result, 1, "c" * 64)
    assert versions(bench.client, bench.target) == []
