"""`optimize compare`: what is told to be different, and what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from workplace import Classifier, Workplace

from pipeline.compare import Comparison, compare
from pipeline.compare.reference import Reference, parse
from pipeline.compare.table import print_comparison
from pipeline.records.registration import Registration, register
from pipeline.result import RunResult
from stages.errors import InputError, RequirementError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("compare"))


def run(place: Workplace, classifier: Classifier, *more: object) -> RunResult:
    ended = place.optimize(
        "run", classifier.model, "--name", "digits", "--evaluation", classifier.evaluation, "--variants",
        "int8-dynamic", "--fuse", "never", "--objective", "size", "--batch-sizes", "1", "--no-verify", "--json", *more,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return RunResult.model_validate_json(ended.out)


@pytest.fixture(scope="module")
def first(place: Workplace, classifier: Classifier) -> RunResult:
    """The size is the objective, so that int8 is what is published however fast this machine is just now."""
    return run(place, classifier, "--max-drop", "5%", "--budget", "10s")


@pytest.fixture(scope="module")
def second(place: Workplace, classifier: Classifier, first: RunResult) -> RunResult:
    """The same, measured again."""
    return run(place, classifier, "--max-drop", "6%", "--budget", "8s")


@pytest.fixture(scope="module")
def runs(place: Workplace, first: RunResult) -> dict[str, Any]:
    """The first job's runs in MLflow by variant, its own under `job`."""
    import mlflow

    client = mlflow.MlflowClient(place.tracking_uri)
    experiment = client.get_experiment_by_name("optimize/digits").experiment_id
    found = client.search_runs([experiment], f"tags.`optimize.job_id` = '{first.job_id}'")
    return {run.data.tags.get("optimize.variant", "job"): run for run in found}


def differences(told: Comparison) -> dict[str, Any]:
    return {one.figure: one for one in told.differences}


# What can be named


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("last", Reference("last", "job", "last")),
        ("14e5:int8-static+fallback", Reference("14e5:int8-static+fallback", "job", "14e5", "int8-static+fallback")),
        ("0" * 32, Reference("0" * 32, "run", "0" * 32)),
        ("models:/minilm/3", Reference("models:/minilm/3", "version", "minilm", "3")),
        ("models:/minilm@champion", Reference("models:/minilm@champion", "alias", "minilm", "champion")),
        ("out/repo:minilm@3", Reference("out/repo:minilm@3", "release", "out/repo", "minilm", 3)),
        ("C:/repo:minilm@3", Reference("C:/repo:minilm@3", "release", "C:/repo", "minilm", 3)),
    ],
)
def test_what_can_be_named(text: str, expected: Reference) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "a b", "../x", "models:/minilm", "models:/a/b/3", "models:/../3", "models:/m@latest", "models:m/3", "/x"],
)
def test_what_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse(text)


# What is found


def test_a_job_alone_is_its_variants_beside_the_baseline(place: Workplace, first: RunResult) -> None:
    told = compare([first.job_id], place.store)
    assert [(one.variant, one.baseline) for one in told.compared] == [("fp32", True), ("int8-dynamic", False)]
    rows = {row.name: row for row in first.variants}
    for one in told.compared:
        assert one.latency_ms == rows[one.variant].latency_ms
        assert one.measured_at is not None
    found = differences(told)
    assert found["speed"].basis == "paired"
    assert found["speed"].value == pytest.approx(rows["int8-dynamic"].speedup)
    assert found["speed"].low <= found["speed"].value <= found["speed"].high
    assert found["speed"].real == (not found["speed"].low <= 1 <= found["speed"].high)
    assert (found["accuracy"].basis, found["accuracy"].kind) == ("paired", "drop")
    assert found["accuracy"].value == pytest.approx(rows["int8-dynamic"].metric.drop)  # type: ignore[union-attr]
    assert found["accuracy"].high > rows["int8-dynamic"].metric.drop_upper, "97.5 % against 95 %"  # type: ignore[union-attr]
    assert found["size"].value < 1
    assert found["size"].real is True
    assert found["memory"].real is None


def test_the_same_variant_under_every_name(
    place: Workplace, first: RunResult, runs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By job, by run, by version, by alias and by release: one measurement, so nothing differs."""
    import mlflow

    client = mlflow.MlflowClient(place.tracking_uri, place.tracking_uri)
    client.create_registered_model("digits")
    source = int(client.create_model_version("digits", source=str(place.path)).version)
    wanted = Registration(key="0" * 64, model="digits", version=source, target="digits-optimized", alias="champion")
    register(first, wanted, place.tracking_uri, place.path)
    names = [
        f"{first.job_id}:int8-dynamic",
        first.job_id,
        runs["int8-dynamic"].info.run_id,
        "models:/digits-optimized/1",
        "models:/digits-optimized@champion",
        f"{place.repository}:digits@1",
    ]
    for store in (place.store, place.path / "elsewhere"):  # elsewhere MLflow and the release know it alone
        wished = names if store == place.store else names[2:]
        told = compare(wished, store, place.tracking_uri)
        assert {one.variant for one in told.compared} == {"int8-dynamic"}
        assert {one.job_id for one in told.compared} == {first.job_id}
        assert len({one.latency_ms.p50 for one in told.compared if one.latency_ms}) == 1
        assert not any(one.real for one in told.differences)
    job = compare([runs["job"].info.run_id, runs["fp32"].info.run_id], place.path / "elsewhere", place.tracking_uri)
    assert [one.variant for one in job.compared] == ["int8-dynamic", "fp32"]
    with pytest.raises(InputError, match=r"models:/digits/1 was not made by optimize"):
        compare(["models:/digits/1", names[0]], place.store, place.tracking_uri)


def test_a_release_alone_is_beside_its_baseline(place: Workplace, first: RunResult) -> None:
    told = compare([f"{place.repository}:digits@1"], place.store)
    assert [one.variant for one in told.compared] == ["fp32", "int8-dynamic"]
    with pytest.raises(InputError, match="alone has nothing to be compared with"):
        compare([f"{place.repository}:digits@1"], place.path / "elsewhere")


# What differs


def test_other_minutes_are_compared_by_their_own_baselines(
    place: Workplace, first: RunResult, second: RunResult
) -> None:
    assert first.job_id != second.job_id
    told = compare([f"{first.job_id}:int8-dynamic", f"{second.job_id}:int8-dynamic"], place.store)
    found = differences(told)
    speed = found["speed"]
    assert speed.basis == "own-baselines"
    assert "than its own baseline" in speed.note
    before, after = (one.speedup for one in told.compared)
    assert before is not None
    assert after is not None
    assert speed.value == pytest.approx(after.value / before.value)
    if after.low is None or before.high is None:  # a busy machine took few turns in the time that there was
        assert (speed.low, speed.real) == (None, None)
        assert "too few turns" in speed.note
    else:
        assert speed.low == pytest.approx(after.low / before.high)
    assert (found["latency p95"].basis, found["latency p95"].value) == ("none", None)
    assert found["accuracy"].basis == "paired", "the samples are the same, whenever they were answered"
    assert (found["accuracy"].value, found["accuracy"].real) == (0, False)
    assert found["size"].real is False


def test_without_the_store_two_intervals_have_to_do(place: Workplace, first: RunResult, tmp_path: Path) -> None:
    """Result and report are kept for long; the steps behind them may be gone."""
    shutil.copytree(place.store / "jobs", tmp_path / "jobs")
    found = differences(compare([first.job_id], tmp_path))
    assert found["speed"].basis == "own-baselines"
    assert "the times are not in this store" in found["speed"].note
    assert found["latency p95"].basis == "intervals", "they are of one measurement all the same"
    assert found["accuracy"].basis == "intervals"
    assert "miss small differences" in found["accuracy"].note


def test_other_data_and_other_metrics_are_not_compared(place: Workplace, first: RunResult, tmp_path: Path) -> None:
    other = first.model_copy(deep=True)
    other.job_id = "other-data"
    other.data[0].digest = "0" * 64
    third = first.model_copy(deep=True)
    third.job_id = "other-metric"
    for row in third.variants:
        assert row.metric is not None
        row.metric.name = "f1"
    for result in (other, third):
        folder = tmp_path / "jobs" / result.job_id
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(result.model_dump_json())
    shutil.copytree(place.store / "jobs" / first.job_id, tmp_path / "jobs" / first.job_id)
    told = compare([first.job_id, "other-data", "other-metric"], tmp_path)
    notes = {(one.of, one.figure): (one.value, one.real, one.note) for one in told.differences}
    assert notes[("other-data", "accuracy")] == (None, None, "they were judged on different data")
    assert notes[("other-metric", "f1")] == (None, None, "accuracy and f1 are different metrics")


# The command


def test_the_command_prints_a_table_or_one_document(place: Workplace, first: RunResult) -> None:
    ended = place.optimize("compare", first.job_id, "--store", place.store)
    assert ended.code == 0, ended.err
    for words in ("digits int8-dynamic", "B beside A", "speed", "size", "really less", "turn by turn"):
        assert words in ended.out
    assert max(map(len, ended.out.splitlines())) <= 100
    told = place.optimize("compare", first.job_id, "--store", place.store, "--json")
    assert Comparison.model_validate(told.json) == compare([first.job_id], place.store)
    assert json.loads(told.out)["batch_size"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "nobody"], "there is no run 'nobody'"),
        (["compare", "last:int9"], "has no variant 'int9'; it has"),
        (["compare", "last", "last"], "is named twice"),
        (["compare", "repository:digits@9", "last"], "has no version 9"),
        (["compare", "repository:nothing@1", "last"], "there is no model 'nothing'"),
        (["compare", "models:/nobody/1", "last"], "refuses models:/nobody/1"),
        (["compare", "f" * 32, "last"], "refuses the run"),
    ],
)
def test_what_is_not_there_is_said(place: Workplace, first: RunResult, arguments: list[str], says: str) -> None:
    ended = place.optimize(*arguments, "--store", place.store, "--tracking-uri", place.tracking_uri)
    assert (ended.code, ended.out) == (2, ""), ended.err
    assert says in ended.err


def test_a_server_that_is_away_is_no_bug(place: Workplace) -> None:
    with pytest.raises(RequirementError, match="does not answer"):
        compare(["0" * 32, "1" * 32], place.store, "http://127.0.0.1:9")


def test_many_fit_a_terminal(place: Workplace, first: RunResult) -> None:
    import io

    from rich.console import Console

    stream = io.StringIO()
    print_comparison(compare([first.job_id], place.store), Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert all("…" not in line for line in lines)
    figures = lines[lines.index("") + 1 :]
    assert all(len(line) <= 80 for line in figures if not line[:1].isdigit())
