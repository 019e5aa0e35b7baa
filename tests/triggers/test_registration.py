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
from pipeline.records.model_files import model_files
from pipeline.records.record import make_record, model_folder
from pipeline.records.registration import Registration, register
from pipeline.records.spool import Spool
from pipeline.records.upsert import upsert
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
        result.status, result.model, result.message = "published", "m", f"published m in {repository.path}"
        result.job_id = f"{self.model}-{weights}"
        result.release = Release(
            repository=str(repository.path), model="m", version=published.version, variant="int8-dynamic",
            digest=published.digest, verified=True,
        )  # fmt: skip
        experiment = self.client.get_experiment_by_name("sources").experiment_id
        run = self.client.create_run(experiment)
        result.mlflow = MlflowLink(tracking_uri=self.uri, experiment="sources", run_id=run.info.run_id)
        return result

    def record(self, result: RunResult) -> None:
        """As the process that records a run does: its logged model holds the release."""
        kept = model_files(result, "published", self.folder)
        digests = {variant: {name: digest for name, (_, digest) in files.items()} for variant, files in kept.items()}
        files = {
            f"{model_folder(variant)}/{name}": path
            for variant, files in kept.items() for name, (path, _) in files.items()
        }  # fmt: skip
        record = make_record(result, self.uri, {}, models=digests)
        _, run_id = upsert(record, Spool(self.folder / "spool").keep(record, files))
        result.mlflow = MlflowLink(tracking_uri=self.uri, experiment=record.experiment, run_id=run_id)

    def models(self, job_id: str) -> list[Any]:
        """The logged models of a job, wherever they are."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_logged_models(experiments, f"tags.`optimize.job_id` = '{job_id}'"))

    def download(self, into: Path) -> Repository:
        import mlflow

        before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(self.uri)
        try:
            uri = f"models:/{self.target}@champion"
            return Repository(mlflow.artifacts.download_artifacts(uri, dst_path=str(into)))
        finally:
            mlflow.set_tracking_uri(before)

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
    [model] = bench.models(result.job_id)
    assert str(model.status) == "READY"


# The files


def test_the_logged_model_of_the_runs_record_is_registered_and_nothing_is_sent_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def sent(*_: Any) -> None:
        raise AssertionError("the files were sent a second time")

    result = bench.result()
    bench.record(result)
    [model] = bench.models(result.job_id)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_model_artifacts", sent)
        bench.register(result, 1)
    [version] = versions(bench.client, bench.target)
    assert version.source == f"models:/{model.model_id}"
    assert [found.model_id for found in bench.models(result.job_id)] == [model.model_id]
    assert bench.download(bench.folder / "download").verify("m").version == 1


def test_a_run_whose_record_has_no_files_has_them_sent_once(bench: Bench) -> None:
    """As with `logged_models: none`."""
    result = bench.result()
    bench.register(result, 1)
    [made] = bench.models(result.job_id)
    assert result.mlflow is not None
    outputs = bench.client.get_run(result.mlflow.run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [made.model_id]
    assert bench.download(bench.folder / "download").verify("m").digest == result.release.digest  # type: ignore[union-attr]


def test_files_that_were_left_incomplete_are_completed_not_sent_beside(bench: Bench) -> None:
    result = bench.result()
    bench.record(result)
    [left] = bench.models(result.job_id)
    bench.client.finalize_logged_model(left.model_id, "FAILED")
    bench.register(result, 1)
    [model] = bench.models(result.job_id)
    assert (model.model_id, str(model.status)) == (left.model_id, "READY")


def test_another_job_with_the_same_files_has_a_model_of_its_own(bench: Bench) -> None:
    """The figures that a model carries are those of its job."""
    first = bench.result()
    second = first.model_copy(update={"job_id": f"{first.job_id}-again"})
    for result in (first, second):
        bench.record(result)
    assert bench.register(first, 1, "1" * 64).version == 1
    assert bench.register(second, 2, "2" * 64).version == 2
    [one], [two] = bench.models(first.job_id), bench.models(second.job_id)
    assert one.tags["optimize.files"] == two.tags["optimize.files"]
    sources = [version.source for version in versions(bench.client, bench.target)]
    assert sources == [f"models:/{one.model_id}", f"models:/{two.model_id}"]


def test_the_description_tells_figures_and_no_folder_of_this_machine(bench: Bench) -> None:
    result = bench.result()
    bench.record(result)
    bench.register(result, 1)
    [version] = versions(bench.client, bench.target)
    assert version.description == (
        "int8-dynamic of m: 2.85\N{MULTIPLICATION SIGN} the speed of fp32, p95 5.11 ms, recall@1 0.8720 (a drop of "
        "0.71 % at most), 22.9 MB instead of 90.4 MB. Release m/1, which Triton has served and whose answers were "
        f"compared. Made from {bench.model} version 1."
    )
    assert result.mlflow is not None
    note = bench.client.get_run(result.mlflow.run_id).data.tags["mlflow.note.content"]
    assert version.description.partition(" Made from")[0] in note
    assert str(bench.folder) in result.message
    assert str(bench.folder) not in note


# Which version has the alias


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
