"""The watch with a real MLflow server: from a registered version to its optimised form, whatever happens in between."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import SECRET, start_receiver
from registries import MlflowServer, register, versions
from workplace import Finished

from model_repository import Repository
from pipeline.records.names import VERSION_TAGS
from pipeline.triggers.queue import Queue, Row

ROOT = Path(__file__).parent.parent.parent


class Place:
    """A store, a repository and a registered model that the tests of this file share; `optimize watch` over them."""

    model = "small"

    def __init__(self, path: Path, server: MlflowServer, recipes: Path) -> None:
        from mlflow import MlflowClient

        self.path, self.server, self.recipes = path, server, recipes
        self.store, self.repository = path / "store", path / "repository"
        self.client = MlflowClient(server.uri, server.uri)

    def command(self, *options: object, model: str | None = None) -> list[str]:
        common = ["--store", self.store, "--repository", self.repository, "--tracking-uri", self.server.uri]
        words = ["watch", model or self.model, *common, "--recipes", self.recipes, *options]
        return [str(Path(sys.executable).with_name("optimize")), *map(str, words)]

    def once(self, *options: object, model: str | None = None) -> Finished:
        ended = subprocess.run(self.command("--once", *options, model=model), capture_output=True, text=True)
        return Finished(ended.returncode, ended.stdout, ended.stderr)

    def start(self, *options: object) -> tuple[subprocess.Popen[bytes], Path]:
        """A watch that goes on; what it says goes into a file."""
        log = self.path / f"watch-{time.monotonic_ns()}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self.command("--recipe", self.recipes / "cheap.yaml", *options),
                stderr=stream,
                # What a shell starts in the background ignores SIGINT, and so do its children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        return process, log

    def rows(self) -> list[Row]:
        with Queue(self.store / "triggers") as queue:
            return queue.rows()

    def results(self) -> list[Any]:
        return versions(self.client, f"{self.model}-optimized")

    def champion(self) -> int:
        return int(self.client.get_registered_model(f"{self.model}-optimized").aliases["champion"])

    def served(self) -> int | None:
        return Repository(self.repository).current(self.model)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, server: MlflowServer, recipes: Path) -> Place:
    return Place(tmp_path_factory.mktemp("watch"), server, recipes)


def wait_for(true: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    while not true():
        assert process is None or process.poll() is None, "it has ended"
        time.sleep(0.1)


# The first version


@dataclass(frozen=True)
class First:
    """A round that has optimised version 1, with what it wrote for a CI job."""

    ended: Finished
    junit: ET.Element
    summary: str


@pytest.fixture(scope="module")
def first(place: Place) -> First:
    register(place.client, place.model, place.path)
    place.client.set_registered_model_tag(place.model, "optimize.recipe", "verified")
    junit, summary = place.path / "junit.xml", place.path / "summary.md"
    ended = place.once("--json", "--junit", junit, "--summary", summary)
    place.client.delete_registered_model_tag(place.model, "optimize.recipe")
    assert ended.code == 0, ended.err + "".join(log.read_text() for log in place.store.glob("triggers/logs/*"))
    return First(ended, ET.fromstring(junit.read_bytes()), summary.read_text())


def test_a_new_version_is_optimised_and_registered(place: Place, first: First) -> None:
    [work] = first.ended.json["work"]
    assert (work["state"], work["recipe"], work["registered"]) == ("done", "verified", "small-optimized/1")
    [version] = place.results()
    assert int(version.version) == place.champion() == place.served() == 1
    assert set(version.tags) == set(VERSION_TAGS) - {
        "optimize.accuracy_drop",
        "optimize.metric",
        "optimize.image",
        "optimize.tokens_per_s",
    }, "there are no labels and no image, and it generates nothing"
    assert version.tags["optimize.key"] == work["key"]
    assert version.tags["optimize.source_version"] == "1"
    assert version.tags["optimize.verdict"] == "pass"
    assert version.tags["optimize.verified"] == "true"
    assert version.tags["optimize.release"] == "small/1"
    assert float(version.tags["optimize.p95_ms"]) > 0
    run = place.client.get_run(version.run_id)
    assert run.data.tags["optimize.job_id"] == version.tags["optimize.job_id"]


def test_the_ci_job_gets_its_page(first: First) -> None:
    assert first.junit.attrib == {"name": "optimize watch", "tests": "1", "failures": "0", "errors": "0"}
    [case] = first.junit.findall("testcase")
    assert (case.get("classname"), case.get("name")) == ("small", "version 1 (verified)")
    assert "| small | 1 | new version | verified | done: " in first.summary


def test_the_alias_downloads_a_repository_that_triton_serves(
    place: Place, first: First, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(place.server.uri)
    try:
        root = Path(mlflow.artifacts.download_artifacts("models:/small-optimized@champion", dst_path=str(tmp_path)))
    finally:
        mlflow.set_tracking_uri(before)
    assert Repository(root).verify("small").version == 1
    released = Repository(place.repository).directory("small")
    held = {file.relative_to(released).as_posix(): file.read_bytes() for file in released.rglob("*") if file.is_file()}
    loaded = root / "small" / "1"
    assert {
        file.relative_to(loaded).as_posix(): file.read_bytes() for file in loaded.rglob("*") if file.is_file()
    } == held
    from model_repository.environment import existing_environment
    from model_repository.server import Server

    environment = existing_environment()
    if environment is None:
        pytest.skip("Triton is not here yet: the first verification makes it")
    with Server(root, environment=environment):
        pass  # it starts only if the model is ready


def test_the_second_round_has_nothing_to_do(place: Place, first: First) -> None:
    place.client.set_registered_model_tag(place.model, "optimize.recipe", "verified")
    ended = place.once("--json")
    assert (ended.code, ended.json) == (0, {"work": [], "problems": {}})
    shutil.rmtree(place.store / "triggers")
    ended = place.once("--json")
    assert (ended.code, ended.json) == (0, {"work": [], "problems": {}}), "though the queue was lost"
    place.client.delete_registered_model_tag(place.model, "optimize.recipe")
    assert len(place.results()) == 1


# A webhook, and a watch that is killed


@dataclass(frozen=True)
class Second:
    """Version 2, which a webhook told of, and whose first watch was killed."""

    receiver: subprocess.Popen[bytes]
    address: str
    child: int
    log: Path
    interrupted: Row
    rows: list[Row]


@pytest.fixture(scope="module")
def second(place: Place, first: First) -> Iterator[Second]:
    address, receiver = start_receiver(place.store)
    try:
        command = [place.command()[0], "webhook", "register", address, "--test", "--tracking-uri", place.server.uri]
        hooked = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"OPTIMIZE_WEBHOOK_SECRET": SECRET}
        )
        assert hooked.returncode == 0, hooked.stderr
        assert "a test delivery was received" in hooked.stderr
        assert hints_open(place), "the test delivery's"
        process, log = place.start("--interval", "1h")  # so that only a delivery wakes it
        wait_for(lambda: not hints_open(place), process)  # its first look is over
        register(place.client, place.model, place.path, width=500)
        wait_for(lambda: "small 2: started" in log.read_text(), process)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        interrupted = place.rows()[-1]
        process, log = place.start("--interval", "1h")
        wait_for(lambda: "small 2: started" in log.read_text(), process)
        [child] = psutil.Process(process.pid).children()
        wait_for(lambda: "convert" in logged(place, 2), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        child.wait()
        rows = place.rows()
        process, log = place.start("--interval", "1h")
        wait_for(lambda: place.rows()[-1].state not in ("queued", "running"), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        yield Second(receiver, address, child.pid, log, interrupted, rows)
    finally:
        receiver.kill()
        receiver.wait()


def test_work_of_a_watch_that_is_interrupted_goes_back_into_the_queue(second: Second) -> None:
    row = second.interrupted
    assert (row.state, row.attempts, row.message) == ("queued", 0, "the watch was ended")


def test_a_watch_that_is_killed_in_the_middle_is_resumed_with_one_result(place: Place, second: Second) -> None:
    assert [(row.work.version, row.state) for row in second.rows] == [(1, "done"), (2, "running")]
    assert not psutil.pid_exists(second.child), "its work died with it"
    assert "started (attempt 2;" in second.log.read_text()
    row = place.rows()[-1]
    assert (row.state, row.attempts, row.registered) == ("done", 2, "small-optimized/2"), row.message
    assert [int(version.version) for version in place.results()] == [1, 2]
    assert [version.tags["optimize.source_version"] for version in place.results()] == ["1", "2"]
    experiment = place.client.get_run(place.results()[1].run_id).info.experiment_id
    job = place.results()[1].tags["optimize.job_id"]
    [model] = place.client.search_logged_models([experiment], f"tags.`optimize.job_id` = '{job}'")
    assert place.results()[1].source == f"models:/{model.model_id}", "the one that the run's record has"
    assert place.champion() == place.served() == 2


def test_results_of_ours_that_are_told_of_start_nothing(place: Place, second: Second) -> None:
    log = (place.store / "receiver.log").read_text()
    assert "model_version.created small 2: accepted" in log
    assert "model_version.created example_model" in log, "the test delivery"
    wait_for(lambda: "model_version.created small-optimized 2: accepted" in (place.store / "receiver.log").read_text())
    assert {row.work.model for row in place.rows()} == {"small"}


# Aliases, and a server that goes away


def test_a_moved_alias_is_a_new_job_and_the_same_alias_again_is_none(place: Place, second: Second) -> None:
    process, log = place.start("--interval", "1h")
    try:
        wait_for(lambda: not hints_open(place), process)
        place.client.set_registered_model_alias("small", "champion", "1")
        wait_for(lambda: "small 1: done" in log.read_text(), process)
        assert "small 1: alias champion, queued with the recipe cheap" in log.read_text()
        assert [version.tags["optimize.source_version"] for version in place.results()] == ["1", "2", "1"], (
            "another recipe than before"
        )
        assert place.champion() == place.served() == 3
        place.client.set_registered_model_alias("small", "champion", "2")
        wait_for(lambda: "small 2: done: registered before; champion moved to version 2" in log.read_text(), process)
        assert place.champion() == place.served() == 2, "the release that is served follows"
        for _ in range(2):
            before = told(place)
            place.client.set_registered_model_alias("small", "champion", "2")
            wait_for(lambda: told(place) > before and not hints_open(place), process)  # noqa: B023
        # What a look asks for is in the queue before the hint that brought it is closed.
        assert {row.state for row in place.rows()} == {"done"}
        assert log.read_text().count("queued") == 2
    finally:
        process.terminate()
        process.wait()
    assert {row.state for row in place.rows()} == {"done"}
    assert len(place.results()) == 3, "the same work has the same result"


def hints_open(place: Place) -> bool:
    from pipeline.triggers.inbox import Inbox

    with Queue(place.store / "triggers") as queue:
        return bool(Inbox(queue.connection).open_hints())


def told(place: Place) -> int:
    """How many moves of the alias were delivered."""
    return (place.store / "receiver.log").read_text().count("model_version_alias.created small 2 champion: accepted")


def test_a_server_that_goes_away_in_the_middle_is_told_once_and_waited_for(place: Place, second: Second) -> None:
    second.receiver.kill()
    process, log = place.start("--interval", "1s")
    try:
        register(place.client, place.model, place.path, width=400)
        wait_for(lambda: "small 3: started" in log.read_text(), process)
        wait_for(lambda: "convert" in logged(place, 3), process)
        place.server.stop()
        wait_for(lambda: "does not answer" in log.read_text(), process)
        ended = place.once("--recipe", place.recipes / "cheap.yaml")
        assert ended.code == 5
        assert "does not answer: [Errno 111] Connection refused" in ended.err
        place.server.start()
        wait_for(lambda: "small 3: done" in log.read_text(), process)
        wait_for(lambda: "is back" in log.read_text(), process)  # the work may end before the next look
    finally:
        process.terminate()
        process.wait()
    assert log.read_text().count("asking again, less and less often") == 1
    assert log.read_text().count("is back") == 1
    row = place.rows()[-1]
    assert (row.attempts, row.registered) == (1, "small-optimized/4"), "it was nobody's fault"
    assert "champion stays: small@champion is version 2, not 3" in row.message
    assert place.champion() == 2
    assert len(place.results()) == 4


def logged(place: Place, version: int) -> str:
    """What the work on a version has printed."""
    [key] = [row.work.key for row in place.rows() if row.work.version == version]
    file = place.store / "triggers" / "logs" / f"{key}.log"
    return file.read_text() if file.exists() else ""


# What does not become a result


def test_what_no_variant_came_through_is_not_registered(place: Place, tmp_path: Path) -> None:
    register(place.client, "weak", tmp_path)
    place.client.set_registered_model_tag("weak", "optimize.recipe", "impossible")
    junit = tmp_path / "junit.xml"
    ended = place.once("--junit", junit, model="weak")
    assert ended.code == 3
    assert ET.fromstring(junit.read_bytes()).get("failures") == "1"
    assert versions(place.client, "weak-optimized") == []
    assert place.once(model="weak").code == 0, "the gates would say the same"


def test_a_pickle_in_the_registry_is_not_read(place: Place, tmp_path: Path) -> None:
    """The flavour says pytorch, and the file would write one if it were loaded."""
    import pickle

    from registries import register_files

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "pwned",)

    files = tmp_path / "evil"
    (files / "data").mkdir(parents=True)
    (files / "data" / "model.pth").write_bytes(pickle.dumps(Evil()))
    (files / "MLmodel").write_text("flavors: {pytorch: {model_data: data}}\n")
    register_files(place.client, "evil", files)
    ended = place.once(model="evil")
    assert ended.code == 2
    assert "is a pickle" in ended.err
    assert not (tmp_path / "pwned").exists()


def test_folders_of_this_machine_are_not_read_because_a_server_names_them(place: Place, tmp_path: Path) -> None:
    identity = place.client.create_experiment("local", artifact_location=(tmp_path / "private").as_uri())
    model = place.client.create_logged_model(identity, name="local")
    place.client.finalize_logged_model(model.model_id, "READY")
    place.client.create_registered_model("local")
    place.client.create_model_version("local", f"models:/{model.model_id}", model_id=model.model_id)
    ended = place.once(model="local")
    assert ended.code == 2
    assert re.search(r"would be read from file:\S*/private/\S* on this machine: say --allow-local-files", ended.err)


@pytest.fixture(scope="module")
def several(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Three versions that are too large, two at once."""
    for _ in range(3):
        register(place.client, "several", tmp_path_factory.mktemp("several"))
    return place.once("--backfill", "--jobs", "2", "--max-download", "1kB", model="several")


def test_a_model_that_is_too_large_is_not_fetched(several: Finished) -> None:
    assert several.code == 2
    assert re.search(r"models:/several/1 has more than 1,000 bytes of files; --max-download", several.err)


def test_no_more_is_done_at_once_than_is_allowed(several: Finished) -> None:
    told = re.findall(r"^several \d: (started|failed)", several.err, re.MULTILINE)
    running = [told[: end + 1].count("started") - told[: end + 1].count("failed") for end in range(len(told))]
    assert (len(told), max(running), running[-1]) == (6, 2, 0)


def test_the_queue_can_be_seen(place: Place, second: Second) -> None:
    command = [place.command()[0], "watch", "--status", "--store", str(place.store)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^done +small +2 +cheap ", text, re.MULTILINE)
    document = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert {work["registered"] for work in document["work"]} >= {"small-optimized/1", "small-optimized/2"}


def test_the_tags_are_documented() -> None:
    page = (ROOT / "docs" / "records.md").read_text()
    section = page.split("## Tags of a registered version\n")[1].split("\n## ")[0]
    assert dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE)) == VERSION_TAGS
