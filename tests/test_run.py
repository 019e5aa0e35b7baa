"""`optimize run` from the command line to the served answer, on real models."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from workplace import Classifier, Finished, Workplace


@pytest.fixture(scope="session")
def minilm_place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("minilm_place"))


def minilm_command(checkpoint: Path, data: Path) -> list[object]:
    # 300 pairs cannot prove a drop under 1 %, and the tests are not about that limit.
    return [
        "run", checkpoint, "--name", "minilm", "--evaluation", data / "evaluation.jsonl", "--max-drop", "5%",
        "--batch-sizes", "1,4", "--budget", "8s", "--json",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def minilm_run(minilm_place: Workplace, minilm_checkpoint: Path, minilm_data: Path) -> Finished:
    """The main job on all-MiniLM-L6-v2, with the real server and a real MLflow database."""
    ended = minilm_place.optimize(*minilm_command(minilm_checkpoint, minilm_data))
    assert ended.code == 0, ended.err
    return ended


def test_the_best_variant_is_published_and_was_served(minilm_run: Finished, minilm_place: Workplace) -> None:
    result = minilm_run.json
    assert result["status"] == "published"
    assert result["release"]["verified"]
    assert result["release"]["version"] == 1
    variants = {variant["name"]: variant for variant in result["variants"]}
    assert list(variants) == ["fp32", "fp16", "int8-dynamic"]
    assert variants["fp32"]["baseline"]
    # int8 is more than twice as fast wherever it has instructions of its own; a machine without them may keep fp32.
    passed = [variant for variant in variants.values() if variant["verdict"] == "pass"]
    known = [v for v in passed if v["baseline"] or (v["batches"][0]["speedup"]["low"] or 0) > 1]
    assert result["release"]["variant"] == min(known, key=lambda v: v["latency_ms"]["p50"])["name"]
    assert variants["int8-dynamic"]["size_bytes"] < 0.3 * variants["fp32"]["size_bytes"]
    assert variants["fp16"]["fidelity"]["cosine"]["value"] > 0.999
    assert 0.98 < variants["int8-dynamic"]["fidelity"]["cosine"]["value"] < 0.9999
    assert variants["int8-dynamic"]["metric"]["name"] == "recall@1"
    version = minilm_place.repository / "minilm" / "1"
    provenance = json.loads((version / "provenance.json").read_text())
    assert provenance["verification"]["requests"] > 0
    assert provenance["verification"]["executions"] < provenance["verification"]["requests"], "Triton batched"
    assert provenance["source"]["digest"] == result["source_digest"]
    assert provenance["mlflow"]["run_id"] == result["mlflow"]["run_id"]
    assert (version / "assets" / "tokenizer.json").is_file()
    assert 'backend: "onnxruntime"' in (minilm_place.repository / "minilm" / "config.pbtxt").read_text()


def test_the_table_and_the_report_tell_the_same(minilm_run: Finished) -> None:
    for word in ("fp32", "fp16", "int8-dynamic", "recall@1", "pass", "published minilm version 1"):
        assert word in minilm_run.err
    report = Path(minilm_run.json["report"]).read_text()
    assert "int8-dynamic" in report
    assert "<svg" in report
    assert "http-equiv" not in report
    assert 'src="http' not in report


def test_every_run_is_flat_in_mlflow_and_tied_by_the_job(minilm_run: Finished, minilm_place: Workplace) -> None:
    import mlflow

    client = mlflow.MlflowClient(minilm_place.tracking_uri)
    experiment = client.get_experiment_by_name(minilm_run.json["mlflow"]["experiment"])
    job_id = minilm_run.json["job_id"]
    runs = client.search_runs([experiment.experiment_id], f"tags.`optimize.job_id` = '{job_id}'")
    assert len(runs) == 4
    assert all("mlflow.parentRunId" not in run.data.tags for run in runs)
    assert {run.info.status for run in runs} == {"FINISHED"}
    job = next(run for run in runs if run.info.run_id == minilm_run.json["mlflow"]["run_id"])
    assert "report.html" in {file.path for file in client.list_artifacts(job.info.run_id)}
    assert job.inputs.dataset_inputs


def test_the_same_again_is_cached_and_adds_nothing(
    minilm_run: Finished, minilm_place: Workplace, minilm_checkpoint: Path, minilm_data: Path
) -> None:
    before = _runs(minilm_place)
    again = minilm_place.optimize(*minilm_command(minilm_checkpoint, minilm_data))
    assert again.code == 0, again.err
    assert all(stage["cached"] for stage in again.json["stages"])
    assert again.json["release"] == {**minilm_run.json["release"], "new": False}
    assert again.json["job_id"] == minilm_run.json["job_id"]
    assert again.json["mlflow"]["run_id"] == minilm_run.json["mlflow"]["run_id"]
    assert _runs(minilm_place) == before
    assert "measured" in again.err, "a reused measurement says when it was taken"
    assert [path.name for path in (minilm_place.repository / "minilm").iterdir() if path.name.isdigit()] == ["1"]


def _runs(place: Workplace) -> int:
    with sqlite3.connect(place.path / "mlflow.db") as connection:
        return int(connection.execute("select count(*) from runs").fetchone()[0])


def test_the_json_fits_its_schema(minilm_run: Finished) -> None:
    import jsonschema

    schema = json.loads((Path(__file__).parent.parent / "docs" / "run.schema.json").read_text())
    jsonschema.validate(minilm_run.json, schema)


def test_a_goal_that_nothing_meets_publishes_nothing(workplace: Workplace, classifier: Classifier) -> None:
    ended = workplace.optimize(
        "run", classifier.model, "--evaluation", classifier.evaluation, "--max-p99", "1us", "--budget", "1s", "--json"
    )
    assert ended.code == 3, ended.err
    assert ended.json["status"] == "none_passed"
    assert ended.json["release"] is None
    assert {variant["verdict"] for variant in ended.json["variants"]} == {"fail"}
    assert not list(workplace.repository.glob("*/*"))
    assert "nothing was published" in ended.err


def test_without_proof_the_baseline_is_published(workplace: Workplace, classifier: Classifier) -> None:
    """No data were given for a model whose inputs mean nothing to us: variants are inconclusive, not passed."""
    ended = workplace.optimize("run", classifier.model, "--budget", "1s", "--no-verify", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["release"]["variant"] == "fp32"
    assert {v["verdict"] for v in ended.json["variants"] if not v["baseline"]} == {"inconclusive"}
    assert "--evaluation" in ended.err
    assert "the baseline was published: no other variant passed" in ended.err


def test_versions_promote_and_rollback_restore_what_was(workplace: Workplace, classifier: Classifier) -> None:
    common = ["run", classifier.model, "--name", "digits", "--evaluation", classifier.evaluation, "--budget", "1s",
              "--no-verify", "--no-record", "--max-drop", "10%", "--objective", "size"]  # fmt: skip
    assert workplace.optimize(*common, "--variants", "fp16").code == 0
    config = workplace.repository / "digits" / "config.pbtxt"
    first = config.read_bytes()
    assert workplace.optimize(*common, "--variants", "int8-dynamic").code == 0
    second = config.read_bytes()
    assert second != first
    listed = workplace.optimize("versions", workplace.repository, "--json").json
    assert [(row["version"], row["current"]) for row in listed] == [(1, False), (2, True)]
    assert workplace.optimize("rollback", workplace.repository, "digits").code == 0
    assert config.read_bytes() == first
    assert workplace.optimize("promote", workplace.repository, "digits", "2").code == 0
    assert config.read_bytes() == second
    wrong = workplace.optimize("promote", workplace.repository, "digits", "9")
    assert wrong.code == 2
    assert "9" in wrong.err


def test_the_python_interface_takes_a_program_to_a_served_release(workplace: Workplace, digits_build: Path) -> None:
    """The digits network, a `torch.export` program: small enough that its size is the objective."""
    from pipeline import Recipe, run

    recipe = Recipe.parse(
        {
            "model": str(digits_build / "digits.pt2"),
            "name": "digits",
            "task": "image-classification",
            "evaluation": str(digits_build / "evaluation.npz"),
            "objective": "size",
            "gates": {"max_drop": "2%"},
            "profile": {"batch_sizes": [1, 8], "budget": "4s"},
            "repository": str(workplace.repository),
        }
    )
    result = run(recipe, store=workplace.store, record=False)
    assert result.status == "published", result.message
    assert result.release is not None
    assert result.release.verified
    assert result.release.variant == "int8-dynamic"
    baseline, *_, int8 = result.variants
    assert baseline.metric is not None
    assert baseline.metric.name == "accuracy"
    assert baseline.metric.value > 0.98
    assert int8.size_bytes is not None
    assert baseline.size_bytes is not None
    assert int8.size_bytes < 0.5 * baseline.size_bytes
    assert int8.fused is False, "a convolutional network has nothing that is fused here"


def test_a_registered_model_is_found_by_its_alias(workplace: Workplace, classifier: Classifier) -> None:
    import mlflow
    import onnx

    mlflow.set_tracking_uri(workplace.tracking_uri)
    client = mlflow.MlflowClient(workplace.tracking_uri)
    experiment = client.create_experiment("training", artifact_location=str(workplace.path / "artifacts"))
    with mlflow.start_run(experiment_id=experiment):
        mlflow.onnx.log_model(onnx.load(classifier.model), name="model", registered_model_name="digits")
    client.set_registered_model_alias("digits", "champion", "1")
    ended = workplace.optimize(
        "run", "models:/digits@champion", "--evaluation", classifier.evaluation, "--max-drop", "10%",
        "--variants", "fp16", "--batch-sizes", "1", "--budget", "1s", "--no-verify", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.json["release"]["model"] == "digits"
    assert ended.json["stages"][0]["name"] == "source"
    absent = workplace.optimize("run", "models:/digits@nobody")
    assert absent.code == 2
    assert "nobody" in absent.err
