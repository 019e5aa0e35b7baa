"""The logged model of a run: the files that were published, with the figures that they have."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from workplace import Classifier, Workplace

from model_repository import Repository
from pipeline.records import Recorder
from pipeline.records.model_files import model_files
from pipeline.records.record import make_record, model_folder
from pipeline.result import RunResult
from stages.artifact import link


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("logged_model"))


@pytest.fixture(scope="module")
def result(place: Workplace, classifier: Classifier) -> RunResult:
    ended = place.optimize(
        "run", classifier.model, "--name", "digits", "--evaluation", classifier.evaluation, "--variants",
        "int8-dynamic", "--max-drop", "5%", "--fuse", "never", "--objective", "size", "--batch-sizes", "1",
        "--budget", "1s", "--no-verify", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return RunResult.model_validate_json(ended.out)


def client_of(place: Workplace) -> Any:
    import mlflow

    return mlflow.MlflowClient(place.tracking_uri)


def models_of(place: Workplace, result: RunResult) -> dict[str, Any]:
    client = client_of(place)
    experiment = client.get_experiment_by_name("optimize/digits").experiment_id
    query = f"tags.`optimize.job_id` = '{result.job_id}'"
    found = client.search_logged_models([experiment], filter_string=query)
    models = {model.tags["optimize.variant"]: model for model in found}
    assert len(models) == len(found)
    return models


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_published_variant_is_a_logged_model_that_holds_the_release(place: Workplace, result: RunResult) -> None:
    assert result.chosen == "int8-dynamic"
    models = models_of(place, result)
    assert list(models) == ["int8-dynamic"]
    model = models["int8-dynamic"]
    assert (str(model.status), model.model_type, model.name) == ("READY", "triton", "digits-1-int8-dynamic")
    assert result.release is not None
    assert model.tags["optimize.release_digest"] == result.release.digest
    held = tree(Path(model.artifact_location.removeprefix("file://")))
    home = Repository(place.repository).path / "digits"
    assert held == {"digits/config.pbtxt": tree(home)["config.pbtxt"]} | {
        f"digits/1/{name}": digest for name, digest in tree(home / "1").items()
    }
    assert held["digits/config.pbtxt"] == held["digits/1/config.pbtxt"]


def test_run_and_model_are_tied_by_outputs_and_by_figures_on_their_data(place: Workplace, result: RunResult) -> None:
    (model,) = models_of(place, result).values()
    client = client_of(place)
    runs = client.search_runs([model.experiment_id], f"tags.`optimize.job_id` = '{result.job_id}'")
    by_name = {run.data.tags.get("optimize.variant", "job"): run for run in runs}
    outputs = {name: [output.model_id for output in run.outputs.model_outputs] for name, run in by_name.items()}
    assert outputs == {"job": [model.model_id], "int8-dynamic": [model.model_id], "fp32": []}
    assert model.source_run_id == by_name["int8-dynamic"].info.run_id
    run = by_name["int8-dynamic"]
    held = {metric.key: metric for metric in model.metrics}
    assert {name: metric.value for name, metric in held.items()} == {
        name: value for name, value in run.data.metrics.items() if not name.startswith("sweep/")
    }
    assert {metric.dataset_digest for metric in held.values()} == {result.data[0].digest[:32]}
    assert len(client.get_metric_history(run.info.run_id, "latency/p50_ms")) == 1, "not logged twice"


def test_delivering_again_makes_no_second_one_and_takes_up_a_half_one(place: Workplace, result: RunResult) -> None:
    (model,) = models_of(place, result).values()
    client = client_of(place)
    other = result.model_copy(update={"job_id": "half"})
    half = client.create_logged_model(
        model.experiment_id, name="x", tags=dict(model.tags) | {"optimize.job_id": "half"}
    ).model_id
    recorder = Recorder(place.store / "records", place.tracking_uri)
    try:
        for told in (result, other, other):
            link = recorder.deliver(told)
            assert link.spooled is None
    finally:
        recorder.close()
    (again,) = models_of(place, result).values()
    assert again.model_id == model.model_id
    (taken_up,) = models_of(place, other).values()
    assert (taken_up.model_id, str(taken_up.status)) == (half, "READY")
    assert tree(Path(taken_up.artifact_location.removeprefix("file://"))) == tree(
        Path(model.artifact_location.removeprefix("file://"))
    )


def test_a_delivery_that_ends_before_the_job_has_its_model_is_finished_by_the_next(
    place: Workplace, result: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.records import upsert as module

    real = module.point_to
    cut = result.model_copy(update={"job_id": "cut"})
    kept = model_files(cut, "published", tmp_path)
    digests = {variant: {name: digest for name, (_, digest) in files.items()} for variant, files in kept.items()}
    record = make_record(cut, place.tracking_uri, {}, models=digests)
    for variant, files in kept.items():
        for name, (path, _) in files.items():
            link(path, tmp_path / "spool" / "waiting" / "cut" / model_folder(variant) / name)

    def not_the_job(client: Any, run: Any, model_id: str) -> None:
        if run.data.tags["optimize.role"] == "job":
            raise KeyboardInterrupt
        real(client, run, model_id)

    with monkeypatch.context() as patched:
        patched.setattr(module, "point_to", not_the_job)
        with pytest.raises(KeyboardInterrupt):
            module.upsert(record, tmp_path / "spool" / "waiting" / "cut")
    for _ in range(2):
        _, run_id = module.upsert(record, tmp_path / "spool" / "waiting" / "cut")
    [model] = models_of(place, cut).values()
    outputs = client_of(place).get_run(run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model.model_id]


def test_all_variants_have_their_files_if_that_is_wished_and_none_have_if_not(
    place: Workplace, result: RunResult
) -> None:
    for models, expected in (("all", {"fp32", "int8-dynamic"}), ("none", set())):
        told = result.model_copy(update={"job_id": f"models-{models}"})
        recorder = Recorder(place.store / "records", place.tracking_uri, models=models)  # type: ignore[arg-type]
        try:
            assert recorder.deliver(told).spooled is None
        finally:
            recorder.close()
        found = models_of(place, told)
        assert set(found) == expected
        if "fp32" in found:
            fp32 = next(row for row in result.variants if row.baseline)
            held = tree(Path(found["fp32"].artifact_location.removeprefix("file://")))
            assert found["fp32"].tags["optimize.model_digest"] == fp32.digest
            assert {"artifact.json", "model.onnx"} <= set(held)


def test_a_release_that_is_no_more_leaves_no_model(result: RunResult, tmp_path: Path) -> None:
    assert result.release is not None
    assert set(model_files(result, "published", tmp_path)) == {"int8-dynamic"}
    for change in ({"digest": "0" * 64}, {"version": 7}, {"model": "gone"}):
        moved = result.model_copy(update={"release": result.release.model_copy(update=change)})
        assert model_files(moved, "published", tmp_path) == {}


def test_a_recipe_says_whose_files_are_kept(place: Workplace, result: RunResult, classifier: Classifier) -> None:
    recipe = place.path / "recipe.yaml"
    recipe.write_text(
        f"model: {classifier.model}\nname: bare\nevaluation: {classifier.evaluation}\nvariants: []\nverify: false\n"
        "fuse: never\nprofile: {batch_sizes: [1], budget: 1s}\nlogged_models: none\n"
    )
    ended = place.optimize("run", recipe, "--json")
    assert ended.code == 0, ended.err
    client = client_of(place)
    experiment = client.get_experiment_by_name("optimize/bare").experiment_id
    assert len(client.search_runs([experiment])) == 2
    assert len(client.search_logged_models([experiment])) == 0
