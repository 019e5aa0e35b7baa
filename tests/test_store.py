"""The store: finished steps are found again, unfinished ones never are."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from pipeline.store import Made, Store, step_description, step_key
from stages.artifact import Artifact
from stages.errors import StageError
from stages.stage import Stage

MADE = Made(seconds=1.0, cpu_seconds=2.0, peak_memory_bytes=3)


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = 1


def stage(**changes: object) -> Stage:
    return Stage(**{"name": "test", "revision": 1, "function": write_hello, "libraries": ("numpy",), **changes})


def write_hello(out: Path) -> Made:
    (out / "hello.txt").write_text("hello")
    Artifact.write(out, "text", {})
    return MADE


def key_of(made_by: Stage, options: Options, inputs: dict[str, Artifact], host: str = "here") -> str:
    return step_key(step_description(made_by, options, inputs, (), host))


def test_a_step_is_made_once_and_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.make("k" * 64, {}, write_hello)
    second = Store(tmp_path).make("k" * 64, {}, lambda out: pytest.fail("made twice"))
    assert not first.cached
    assert second.cached
    assert second.artifact.digest == first.artifact.digest
    assert second.made == MADE
    assert (second.artifact.path / "hello.txt").read_text() == "hello"


def test_the_key_changes_with_everything_that_decides_the_result(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    a = Artifact.of_files(tmp_path, "text", {}, names=["a"])
    b = Artifact.of_files(tmp_path, "text", {}, names=["b"])
    keys = [
        key_of(stage(), Options(), {"x": a}),
        key_of(stage(), Options(number=2), {"x": a}),
        key_of(stage(), Options(), {"x": b}),
        key_of(stage(), Options(), {"y": a}),
        key_of(stage(revision=2), Options(), {"x": a}),
        key_of(stage(name="other"), Options(), {"x": a}),
        key_of(stage(libraries=("pydantic",)), Options(), {"x": a}),
        key_of(stage(host_bound=True), Options(), {"x": a}),
        key_of(stage(host_bound=True), Options(), {"x": a}, host="there"),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(stage(), Options(), {"x": a}, host="there") == keys[0], "only measurements are bound to the host"


def test_a_failing_step_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(out: Path) -> Made:
        (out / "half.txt").write_text("half")
        raise StageError("no")

    with pytest.raises(StageError, match="no"):
        store.make("f" * 64, {}, fail)
    assert store.find("f" * 64) is None
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_step_whose_file_was_cut_short_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.make("c" * 64, {}, write_hello)
    (first.artifact.path / "hello.txt").write_text("hell")
    assert store.find("c" * 64) is None
    assert not store.make("c" * 64, {}, write_hello).cached
    assert store.find("c" * 64) is not None


def _make_slowly(path: str, log: str) -> None:
    def build(out: Path) -> Made:
        with Path(log).open("a") as stream:
            stream.write("made\n")
        time.sleep(0.3)
        return write_hello(out)

    Store(Path(path)).make("s" * 64, {}, build)


def test_two_processes_that_want_the_same_step_wait_for_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    processes = [context.Process(target=_make_slowly, args=(str(tmp_path / "s"), str(log))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert log.read_text() == "made\n"


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from pipeline.store import Store\n"
        "with Store(Path(sys.argv[1])).scratch() as scratch:\n"
        "    (scratch / 'half').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    Store(tmp_path)
    assert len(list((tmp_path / "scratch").iterdir())) == 1, "its owner lives"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    Store(tmp_path)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_artifact_tells_when_it_was_changed(tmp_path: Path) -> None:
    artifact = Store(tmp_path).make("v" * 64, {}, write_hello).artifact
    artifact.verify()
    (artifact.path / "hello.txt").write_text("hallo")
    with pytest.raises(StageError, match=r"hello\.txt has changed"):
        artifact.verify()


def test_a_full_disk_is_told_and_keeps_nothing(small_disk: Path) -> None:
    store = Store(small_disk / "store")

    def fill(out: Path) -> Made:
        (out / "big").write_bytes(bytes(8 << 20))
        return MADE

    with pytest.raises(StageError, match="no space left for the store"):
        store.make("d" * 64, {}, fill)
    assert store.find("d" * 64) is None
    assert list((store.path / "scratch").iterdir()) == []
    assert json.dumps(store.make("e" * 64, {}, write_hello).artifact.digest)
