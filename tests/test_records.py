"""Records: what MLflow holds after a run, and that nothing that happens to MLflow costs the run anything."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from example_result import example_result
from example_search import searched_result

from pipeline.records import Recorder, sync
from pipeline.records.address import page_of, public, resolve, sqlite_file
from pipeline.records.names import METRICS, PARAMS, TAGS, is_param, metric_name
from pipeline.records.note import note_of, without_folders
from pipeline.records.record import Record, make_record, result_digest
from pipeline.records.spool import RECORD, Spool, key_of
from pipeline.result import FallbackResult, MlflowLink, RunResult

ROOT = Path(__file__).parent.parent
VARIANTS = ["fp32", "fp16", "int8-dynamic", "int4-weight-only"]


class Place:
    """A spool, a database and a recorder that all tests of this file share; each has a job of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spool = path / "spool"
        self.uri = f"sqlite:///{path / 'mlflow.db'}"
        self.recorder = Recorder(self.spool, self.uri)
        self.report = path / "report.html"
        self.report.write_text("<p>report</p>")

    @property
    def waiting(self) -> list[Path]:
        return sorted((self.spool / "waiting").glob("*"))

    def client(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(self.uri)

    def runs(self, job_id: str) -> list[Any]:
        return runs_of(self.client(), job_id)


def runs_of(client: Any, job_id: str) -> list[Any]:
    experiment = client.get_experiment_by_name("optimize/minilm")
    return list(client.search_runs([experiment.experiment_id], f"tags.`optimize.job_id` = '{job_id}'"))


def result_of(job_id: str, running: bool = False) -> RunResult:
    result = example_result()
    result.job_id = job_id
    if running:
        result.release, result.message, result.seconds = None, "", 0.0
    return result


def searched_of(job_id: str) -> RunResult:
    result = searched_result()
    result.job_id = job_id
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("records"))
    yield place
    place.recorder.close()


@pytest.fixture(scope="module")
def recorded(place: Place) -> MlflowLink:
    """A job that was recorded in both phases."""
    first = place.recorder.deliver(result_of("whole", running=True), running=True)
    assert [run.info.status for run in place.runs("whole") if run.info.run_id == first.run_id] == ["RUNNING"]
    second = place.recorder.deliver(result_of("whole"), report=place.report)
    assert second.run_id == first.run_id
    return second


@contextlib.contextmanager
def held_lock(place: Place, job_id: str) -> Iterator[None]:
    """Whoever delivers this job stops in the middle, before the first call to MLflow."""
    (place.spool / "locks").mkdir(parents=True, exist_ok=True)
    with (place.spool / "locks" / key_of(job_id, place.uri)).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def job_and_variants(runs: list[Any]) -> tuple[Any, dict[str, Any]]:
    jobs = [run for run in runs if run.data.tags["optimize.role"] == "job"]
    variants = {run.data.tags["optimize.variant"]: run for run in runs if run.data.tags["optimize.role"] == "variant"}
    assert len(jobs) == 1
    assert len(runs) == 1 + len(variants)
    return jobs[0], variants


# What MLflow holds


def test_one_run_for_the_job_and_a_flat_one_for_every_variant(place: Place, recorded: MlflowLink) -> None:
    job, variants = job_and_variants(place.runs("whole"))
    assert job.info.run_id == recorded.run_id
    assert sorted(variants) == sorted(VARIANTS)
    assert all("mlflow.parentRunId" not in run.data.tags for run in (job, *variants.values()))
    assert recorded.experiment == "optimize/minilm"
    assert job.info.status == "FINISHED"
    assert {name: run.info.status for name, run in variants.items()} == dict.fromkeys(VARIANTS, "FINISHED") | {
        "int4-weight-only": "FAILED"
    }
    assert {name: run.data.tags["optimize.verdict"] for name, run in variants.items()} == {
        "fp32": "pass", "fp16": "fail", "int8-dynamic": "pass", "int4-weight-only": "error",
    }  # fmt: skip
    assert place.waiting == []


def test_the_figures_are_those_of_the_result(place: Place, recorded: MlflowLink) -> None:
    job, variants = job_and_variants(place.runs("whole"))
    int8, metrics = example_result().variants[2], variants["int8-dynamic"].data.metrics
    assert int8.latency_ms is not None
    assert int8.metric is not None
    assert metrics["latency/p50_ms"] == int8.latency_ms.p50
    assert metrics["latency/p99_ms"] == int8.latency_ms.p99
    assert metrics["accuracy/recall_at_1"] == int8.metric.value
    assert metrics["accuracy/drop_upper"] == int8.metric.drop_upper
    assert metrics["accuracy/delta_pp"] == pytest.approx(-0.2)
    assert metrics["fidelity/cosine"] == 0.9941
    assert metrics["size/bytes"] == 22_900_000
    assert metrics["gate/passed"] == 1
    assert variants["fp16"].data.metrics["gate/passed"] == 0
    assert variants["int4-weight-only"].data.metrics == {"gate/passed": 0}
    assert variants["int8-dynamic"].data.params == {
        "variant": "int8-dynamic", "precision": "int8", "runtime": "onnxruntime", "fused": "true", "target": "cpu",
        "objective": "latency", "source": "sentence-transformers/all-MiniLM-L6-v2", "task": "sentence-embedding",
        "metric": "recall@1",
    }  # fmt: skip
    headline = {name: value for name, value in metrics.items() if not name.startswith("sweep/")}
    assert headline.items() <= job.data.metrics.items(), "the job shows the chosen variant's figures"
    assert job.data.metrics["job/seconds"] == 78.4


def test_sweeps_have_a_step_for_every_batch_size(place: Place, recorded: MlflowLink) -> None:
    _, variants = job_and_variants(place.runs("whole"))
    history = place.client().get_metric_history(variants["fp32"].info.run_id, "sweep/throughput_per_s")
    assert [point.step for point in history] == [1, 8, 32]
    assert len(place.client().get_metric_history(variants["fp32"].info.run_id, "latency/p50_ms")) == 1


def test_report_result_data_and_verdicts_are_with_the_job(place: Place, recorded: MlflowLink) -> None:
    job, variants = job_and_variants(place.runs("whole"))
    client = place.client()
    assert {file.path for file in client.list_artifacts(job.info.run_id)} == {
        "report.html", "result.json", "environment.json",
    }  # fmt: skip
    folder = Path(job.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(place.path / "mlartifacts" / "optimize" / "minilm")
    assert (folder / "report.html").read_text() == "<p>report</p>"
    assert RunResult.model_validate_json((folder / "result.json").read_text()).release == example_result().release
    used = {(data.tags[0].value, data.dataset.name, data.dataset.digest) for data in job.inputs.dataset_inputs}
    assert used == {("calibration", "docstrings.jsonl", "ca" * 16), ("evaluation", "search.jsonl", "e5" * 16)}
    assert [data.dataset.name for data in variants["fp16"].inputs.dataset_inputs] == ["search.jsonl"]
    note = job.data.tags["mlflow.note.content"]
    assert "| **int8-dynamic** | &nbsp;pass |" in note
    assert "fp16: recall@1 drops by 1.5 %" in note
    assert job.data.tags["optimize.release"] == "minilm/3"
    assert job.data.tags["optimize.status"] == "published"


def test_only_documented_names_are_used_and_all_of_them_are_documented(place: Place, recorded: MlflowLink) -> None:
    page = (ROOT / "docs" / "records.md").read_text()
    for heading, names in (("Metrics", METRICS), ("Parameters", PARAMS), ("Tags", TAGS)):
        section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
        assert dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE)) == names
    metrics, params = (
        [re.compile(re.sub(r"<\w+>", r"[\\w.-]+", name)) for name in names] for names in (METRICS, PARAMS)
    )
    place.recorder.deliver(searched_of("documented"))
    for run in place.runs("whole") + place.runs("documented"):
        assert all(any(pattern.fullmatch(name) for pattern in metrics) for name in run.data.metrics)
        assert all(any(pattern.fullmatch(name) for pattern in params) for name in run.data.params)
        assert all(is_param(name) for name in run.data.params)
        assert {name for name in run.data.tags if name.startswith("optimize.")} <= set(TAGS)


def test_how_a_variant_was_made_what_it_learnt_from_and_what_fell_back_is_with_its_run(
    place: Place, recorded: MlflowLink
) -> None:
    result = searched_of("searched")
    place.recorder.deliver(result, report=place.report)
    job, variants = job_and_variants(place.runs("searched"))
    params = variants["int8-static-openvino"].data.params
    assert {name: value for name, value in params.items() if name.startswith("variant")} == {
        "variant": "int8-static-openvino", "variant.observer": "min-max", "variant.smoothing": "auto",
    }  # fmt: skip
    assert params["runtime"] == "openvino"
    assert params.items() <= job.data.params.items(), "the job shows the chosen variant's"

    def contexts(run: Any) -> set[str]:
        return {data.tags[0].value for data in run.inputs.dataset_inputs}

    assert contexts(variants["int8-static-openvino"]) == {"calibration", "evaluation"}
    assert contexts(variants["int8-dynamic"]) == {"evaluation"}
    fronts = {name: run.data.tags["optimize.front"] for name, run in variants.items()}
    assert {name for name, value in fronts.items() if value == "true"} == set(result.front)
    client = place.client()
    for name, run in variants.items():
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        told = {"fallback-int8-dynamic.json"} if name.startswith("int8-dynamic") else set()
        assert files == told, name
    assert "fallback-int8-dynamic.json" not in {file.path for file in client.list_artifacts(job.info.run_id)}
    found = variants["int8-dynamic+fallback"]
    assert (found.data.metrics["operators/quantised"], found.data.metrics["operators/all"]) == (34, 37)
    folder = Path(found.info.artifact_uri.removeprefix("file://"))
    kept = FallbackResult.model_validate_json((folder / "fallback-int8-dynamic.json").read_text())
    assert [group.name for group in kept.sensitivity if group.kept] == [
        group.name for row in result.variants for group in row.kept
    ]


def test_another_setting_of_a_variant_makes_a_new_run_in_place_of_the_old(place: Place, recorded: MlflowLink) -> None:
    place.recorder.deliver(searched_of("setting"))
    _, before = job_and_variants(place.runs("setting"))
    other = searched_of("setting")
    for variant in other.variants:
        if variant.name == "int8-static":
            variant.parameters = {"observer": "entropy"}
    place.recorder.deliver(other)
    _, after = job_and_variants(place.runs("setting"))
    assert {name for name in after if after[name].info.run_id != before[name].info.run_id} == {"int8-static"}
    assert "variant.smoothing" not in after["int8-static"].data.params


def test_a_note_has_no_empty_column_and_says_what_failed_without_folders() -> None:
    result = example_result()
    assert result.metric is not None
    assert " &nbsp;drop ≤ |" in note_of(result)
    for variant in result.variants:
        variant.metric, variant.fidelity, variant.speedup = None, {}, None
    headings = note_of(result).replace("&nbsp;", "")
    assert "| variant | verdict | p50 ms | p95 ms | p99 ms | per s | size |" in headings
    assert "Accuracy was judged" not in note_of(result)
    result.status, result.message = "failed", "the disk of /home/me/work is full: /home/me/work/model.onnx"
    assert note_of(result).startswith("**the disk of …/work is full: …/model.onnx**")
    result.status = "none_passed"
    assert note_of(result).startswith("**No variant passed its gates: nothing was published.**")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/tmp/a/b/c.onnx is bad (/x/y).", "…/c.onnx is bad (…/y)."),
        ("see '/a b/c d/e f.txt' and `/x/y`", "see '…/e f.txt' and `…/y`"),
        ("~/data/rows.npz, file:///a/b.npz, sqlite:////a/mlflow.db", "…/rows.npz, …/b.npz, …/mlflow.db"),
        ("docker://host/a/b models:/minilm/1 http://h/a/b", "docker://host/a/b models:/minilm/1 http://h/a/b"),
        ("a/b, 3/4 and / and /x", "a/b, 3/4 and / and /x"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
    ],
)
def test_folders_of_this_machine_are_left_out(text: str, told: str) -> None:
    assert without_folders(text) == told


def test_metric_names_are_such_as_mlflow_takes() -> None:
    assert metric_name("recall@1") == "recall_at_1"
    assert metric_name("f1 (macro)") == "f1 _macro_"


# Once, however often it is delivered


def test_delivering_again_changes_nothing(place: Place, recorded: MlflowLink) -> None:
    before = {run.info.run_id: run.data.metrics for run in place.runs("whole")}
    for _ in range(2):
        assert place.recorder.deliver(result_of("whole"), report=place.report).run_id == recorded.run_id
    assert {run.info.run_id: run.data.metrics for run in place.runs("whole")} == before
    for run_id in before:
        assert len(place.client().get_metric_history(run_id, "gate/passed")) <= 1


def test_a_run_left_behind_half_written_is_taken_up(place: Place, recorded: MlflowLink) -> None:
    """As a delivery leaves it that was killed: the job's run is there, RUNNING, with its first tags only."""
    client = place.client()
    experiment = client.get_experiment_by_name("optimize/minilm").experiment_id
    tags = {"optimize.job_id": "half", "optimize.role": "job"}
    stale = client.create_run(experiment, tags=tags).info.run_id
    client.create_run(
        experiment, tags={**tags, "optimize.role": "variant", "optimize.variant": "fp32", "optimize.gone": "x"}
    )
    assert place.recorder.deliver(result_of("half")).run_id == stale
    job, variants = job_and_variants(place.runs("half"))
    assert job.info.status == "FINISHED"
    assert sorted(variants) == sorted(VARIANTS)
    assert "optimize.gone" not in variants["fp32"].data.tags


def test_what_mlflow_cannot_change_makes_a_new_run_in_place_of_the_old(place: Place, recorded: MlflowLink) -> None:
    place.recorder.deliver(result_of("again"))
    _, before = job_and_variants(place.runs("again"))
    other = result_of("again")
    other.variants[2].fused = False
    other.variants[0].metric = None
    place.recorder.deliver(other)
    _, after = job_and_variants(place.runs("again"))
    replaced = {name for name in VARIANTS if after[name].info.run_id != before[name].info.run_id}
    assert replaced == {"int8-dynamic", "fp16"}
    assert after["int8-dynamic"].data.params["fused"] == "false"
    assert "accuracy/drop" not in after["fp16"].data.metrics
    assert place.client().get_run(before["fp16"].info.run_id).info.lifecycle_stage == "deleted"


def test_two_at_once_make_one_job(place: Place, recorded: MlflowLink) -> None:
    place.recorder.start()
    other = Recorder(place.spool, place.uri)
    try:
        links: list[MlflowLink] = []
        threads = [
            threading.Thread(target=lambda r=recorder: links.append(r.deliver(result_of("twins"))))
            for recorder in (place.recorder, other)
        ]
        other.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        other.close()
    assert links[0].run_id == links[1].run_id
    assert len(job_and_variants(place.runs("twins"))[1]) == 4


# Known already


def test_what_is_on_record_is_known_without_mlflow(place: Place, recorded: MlflowLink) -> None:
    again = result_of("whole")
    again.seconds, again.warnings, again.message = 2.1, [], "nothing to do"
    assert again.release is not None
    again.release.new = False
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.records import Recorder\nfrom pipeline.result import RunResult\n"
        f"recorder = Recorder(Path({str(place.spool)!r}), {place.uri!r})\n"
        "link = recorder.known(RunResult.model_validate_json(sys.stdin.read()))\n"
        "print(link.run_id, 'mlflow' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], input=again.model_dump_json(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [recorded.run_id, "False"]


def test_any_doubt_means_that_it_is_not_known(place: Place, recorded: MlflowLink) -> None:
    assert place.recorder.known(result_of("whole")) is not None
    assert place.recorder.known(result_of("unheard-of")) is None
    changed = result_of("whole")
    changed.variants[0].speedup = 1.2
    assert place.recorder.known(changed) is None, "other figures"
    moved = result_of("whole")
    assert moved.release is not None
    moved.release.version = 4
    assert place.recorder.known(moved) is None, "another release"
    elsewhere = Recorder(place.spool, f"sqlite:///{place.path}/other.db")
    assert elsewhere.known(result_of("whole")) is None, "another server"
    deleted = place.recorder.deliver(result_of("deleted"))
    assert place.recorder.known(result_of("deleted")) is not None
    place.client().delete_run(deleted.run_id)
    assert place.recorder.known(result_of("deleted")) is None, "deleted by a person"


# Whatever happens to MLflow


def test_a_child_that_is_killed_leaves_the_record_waiting(place: Place, recorded: MlflowLink) -> None:
    place.recorder.start()
    with held_lock(place, "killed"):
        pid = place.recorder._courier.pid
        assert pid is not None
        timer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
        timer.start()
        link = place.recorder.deliver(result_of("killed"))
    assert link.run_id is None
    assert link.spooled is not None
    assert "SIGKILL" in link.spooled
    assert place.runs("killed") == []
    assert (place.waiting[0] / "reason.txt").read_text().strip() == link.spooled
    deliveries = sync(place.spool)
    assert [delivery.reason for delivery in deliveries] == [None]
    job, _ = job_and_variants(place.runs("killed"))
    assert job.info.run_id == deliveries[0].run_id
    assert sync(place.spool) == []
    assert place.recorder.deliver(result_of("killed")).run_id == job.info.run_id, "a new child is started"


def test_a_child_that_hangs_is_given_up_once(place: Place, recorded: MlflowLink) -> None:
    recorder = Recorder(place.spool, place.uri, timeout_s=0.5)
    try:
        with held_lock(place, "hung"):
            first = recorder.deliver(result_of("hung", running=True), running=True)
            assert recorder._courier.pid is None, "it was ended"
            second = recorder.deliver(result_of("hung"))
            assert recorder._courier.pid is None, "and not tried again"
    finally:
        recorder.close()
    for link in (first, second):
        assert link.spooled is not None
        assert "no answer in 0.5 s" in link.spooled
    assert len(place.waiting) == 1, "the second record says all that the first one said"
    assert [delivery.reason for delivery in sync(place.spool)] == [None]
    assert job_and_variants(place.runs("hung"))[0].info.status == "FINISHED"


def test_a_child_that_hangs_ignores_ctrl_c_and_ends_with_its_parent(place: Place, recorded: MlflowLink) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.records import Recorder\n"
        "from pipeline.result import RunResult\n"
        f"recorder = Recorder(Path({str(place.spool)!r}), {place.uri!r})\n"
        "recorder.start(); print(recorder._courier.pid, flush=True)\n"
        "recorder.deliver(RunResult.model_validate_json(sys.stdin.read()))"
    )
    with held_lock(place, "orphan"):
        parent = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(result_of("orphan").model_dump_json())
        parent.stdin.close()
        child = psutil.Process(int(parent.stdout.readline()))
        lock = str(place.spool / "locks" / key_of("orphan", place.uri))
        while lock not in {file.path for file in child.open_files()}:
            assert parent.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        with pytest.raises(psutil.TimeoutExpired):
            child.wait(3)
        parent.kill()
        parent.wait()
        child.wait(20)
    assert [delivery.job_id for delivery in sync(place.spool)] == ["orphan"]


def test_the_record_of_a_run_that_died_is_delivered_as_killed(place: Place, recorded: MlflowLink) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    record = make_record(result_of("died", running=True), place.uri, {}, running=True)
    Spool(place.spool).keep(record.model_copy(update={"pid": dead.pid}), {})
    alive = Spool(place.spool).keep(make_record(result_of("alive", running=True), place.uri, {}, running=True), {})
    assert [delivery.job_id for delivery in sync(place.spool)] == ["died"]
    assert job_and_variants(place.runs("died"))[0].info.status == "KILLED"
    assert place.waiting == [alive], "a run that goes on delivers its own"
    Spool(place.spool).drop(alive)


def test_a_run_that_dies_while_it_publishes_is_there_whole_in_the_end(place: Place, recorded: MlflowLink) -> None:
    """What the run waits for is little: the job's run. The rest lies in the spool until it is delivered."""
    link = place.recorder.deliver(result_of("cut", running=True), running=True)
    [run] = place.runs("cut")
    assert (run.info.run_id, run.info.status, run.data.tags["optimize.chosen"]) == (
        link.run_id, "RUNNING", "int8-dynamic",
    )  # fmt: skip
    assert sync(place.spool) == [], "it is going on"
    [kept] = place.waiting
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    record = Record.model_validate_json((kept / RECORD).read_bytes())
    Spool(place.spool).rewrite(kept, record.model_copy(update={"pid": dead.pid}))
    assert [(delivery.job_id, delivery.run_id) for delivery in sync(place.spool)] == [("cut", link.run_id)]
    job, variants = job_and_variants(place.runs("cut"))
    assert job.info.status == "KILLED"
    assert sorted(variants) == sorted(VARIANTS)
    assert {file.path for file in place.client().list_artifacts(job.info.run_id)} == {"result.json", "environment.json"}
    assert place.waiting == []


def test_a_record_that_a_later_delivery_has_overtaken_is_dropped(place: Place, recorded: MlflowLink) -> None:
    old = make_record(result_of("late"), place.uri, {}).model_copy(update={"pid": 1, "written_ms": 1})
    Spool(place.spool).keep(old, {})
    place.recorder.deliver(result_of("late"))
    assert sync(place.spool) == []
    assert place.waiting == []


def test_a_database_of_another_version_is_not_touched(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("create table experiments (experiment_id integer)")
        connection.commit()
    before = database.read_bytes()
    recorder = Recorder(tmp_path / "spool", f"sqlite:///{database}")
    try:
        link = recorder.deliver(result_of("old"))
    finally:
        recorder.close()
    assert link.spooled is not None
    assert "another version of MLflow" in link.spooled
    assert "mlflow db upgrade" in link.spooled
    assert database.read_bytes() == before


def test_a_new_database_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """Killed while MLflow fills a new database, which takes it seconds and many steps."""
    deep = tmp_path / "deep"
    recorder = Recorder(tmp_path / "spool", f"sqlite:///{deep}/mlflow.db")
    for _ in range(5):  # on a busy machine this process may come too late
        recorder.start()
        while not list((tmp_path / "spool").glob(".scratch-*/mlflow.db")) and not deep.exists():
            time.sleep(0.02)
        recorder.close()
        if not deep.exists():
            break
        shutil.rmtree(deep)
    else:
        pytest.fail("the database is there before it is whole")
    try:
        assert recorder.deliver(result_of("fresh")).spooled is None
    finally:
        recorder.close()
    assert list((tmp_path / "deep").iterdir()) != []
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"mlflow.db", "mlartifacts"}
    assert list((tmp_path / "spool").glob(".scratch-*")) == [], "what the killed one left was swept"


def test_a_full_disk_costs_the_record_only(small_disk: Path, place: Place) -> None:
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"\0" * 65536)
    recorder = Recorder(small_disk / "spool", place.uri)
    link = recorder.deliver(result_of("full"), report=place.report)
    assert link.spooled is not None
    assert "No space left" in link.spooled


# Where


def test_where_records_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve("sqlite:///here.db") == f"sqlite:///{tmp_path}/here.db"
    assert resolve("sqlite:////there/x.db") == "sqlite:////there/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve(None) == "http://tracking:5000"
    assert resolve("sqlite:///here.db") == f"sqlite:///{tmp_path}/here.db"
    assert sqlite_file("http://tracking:5000") is None


def test_a_password_is_not_shown() -> None:
    uri = "https://me:secret@tracking:5000/base"
    assert public(uri) == "https://tracking:5000/base"
    page = page_of(uri, "7")
    assert page == (
        "https://tracking:5000/base/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
    )
    assert page_of("sqlite:////x/mlflow.db", "7") is None


def test_the_digest_is_of_what_lasts() -> None:
    assert result_digest(example_result()) == result_digest(example_result())
    assert result_digest(example_result(metric=False)) != result_digest(example_result())


# A real server, at first not there


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, MlflowLink, int]]:
    """A record for a server that is not there yet: the spool, the address, what the run was told, and the port."""
    with socket.socket() as held:
        # Bound, but never listening: nobody else gets the port, and the server will, since it too says SO_REUSEADDR.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        spool, uri = tmp_path_factory.mktemp("away"), f"http://127.0.0.1:{port}"
        recorder = Recorder(spool, uri)
        try:
            recorder.deliver(result_of("away", running=True), running=True)
            link = recorder.deliver(result_of("away"))
        finally:
            recorder.close()
        yield spool, uri, link, port


@pytest.fixture(scope="module")
def server(away: tuple[Path, str, MlflowLink, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real `mlflow server` at the address that nothing answered from before."""
    folder = tmp_path_factory.mktemp("server")
    _, uri, _, port = away
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=1):
                break
            time.sleep(0.3)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_that_is_down_leaves_the_record_waiting(away: tuple[Path, str, MlflowLink, int]) -> None:
    spool, uri, link, _ = away
    assert link.run_id is None
    assert link.spooled == f"{uri} cannot be reached: [Errno 111] Connection refused"
    assert len(list((spool / "waiting").iterdir())) == 1
    deliveries = sync(spool)
    assert [delivery.reason for delivery in deliveries] == [link.spooled]
    assert len(list((spool / "waiting").iterdir())) == 1


def test_when_the_server_is_back_it_is_delivered_once(away: tuple[Path, str, MlflowLink, int], server: str) -> None:
    import mlflow

    spool = away[0]
    deliveries = sync(spool)
    assert [(delivery.job_id, delivery.reason) for delivery in deliveries] == [("away", None)]
    assert sync(spool) == []
    client = mlflow.MlflowClient(server)
    job, variants = job_and_variants(runs_of(client, "away"))
    assert job.info.run_id == deliveries[0].run_id
    assert job.info.status == "FINISHED"
    assert sorted(variants) == sorted(VARIANTS)
    assert {file.path for file in client.list_artifacts(job.info.run_id)} == {"result.json", "environment.json"}
    experiment = client.get_experiment_by_name("optimize/minilm").experiment_id
    assert (
        deliveries[0].url
        == f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    )


def test_a_server_knows_what_it_holds(server: str, tmp_path: Path) -> None:
    import mlflow

    report = tmp_path / "report.html"
    report.write_text("<p>report</p>")
    recorder = Recorder(tmp_path / "spool", server)
    try:
        first = recorder.deliver(result_of("served", running=True), running=True)
        link = recorder.deliver(result_of("served"), report=report)
        assert link.run_id == first.run_id
        assert recorder.known(result_of("served")) == link
        assert recorder.deliver(result_of("served"), report=report).run_id == link.run_id
        client = mlflow.MlflowClient(server)
        job, _ = job_and_variants(runs_of(client, "served"))
        assert Path(client.download_artifacts(job.info.run_id, "report.html", str(tmp_path))).read_text() == (
            "<p>report</p>"
        )
        assert json.loads(Path(client.download_artifacts(job.info.run_id, "result.json", str(tmp_path))).read_text())
        client.delete_run(job.info.run_id)
        assert recorder.known(result_of("served")) is None
    finally:
        recorder.close()
