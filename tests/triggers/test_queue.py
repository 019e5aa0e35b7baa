"""The queue: each piece of work once, whoever dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.recipe import Recipe
from pipeline.triggers.cursor import Cursor, read_cursor, write_cursor
from pipeline.triggers.database import connect
from pipeline.triggers.queue import ATTEMPTS, Queue
from pipeline.triggers.work import SourceVersion, Work, is_alias, is_name, make_work
from stages.errors import InputError

PLACE = "http://tracking:5000"


def work(version: int = 1, model: str = "minilm", **recipe: object) -> Work:
    source = SourceVersion(model, version, f"models:/m-{version}", 1000 + version)
    asked = Recipe.parse({"model": f"models:/{model}/{version}", **recipe})
    return make_work(source, asked, "plain", PLACE, "new version")


def test_the_same_work_is_there_once(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue, Queue(tmp_path) as other:
        assert queue.put(work(1))
        assert not other.put(work(1))
        assert other.put(work(2))
        assert [row.work.version for row in queue.rows()] == [1, 2]
        assert queue.rows()[0].work == work(1)


def test_what_decides_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    first = work(1)
    assert work(1, tracking_uri="http://me:secret@tracking").key == first.key
    assert work(1, repository="/elsewhere").key == first.key
    assert work(1, objective="size").key != first.key
    assert work(2).key != first.key
    recipe = Recipe.parse({"model": "models:/minilm/1"})
    again = make_work(SourceVersion("minilm", 1, "models:/m-1", 9999), recipe, "plain", PLACE, "alias x")
    assert again.key != first.key, "the model was deleted and made anew"
    monkeypatch.setattr("pipeline.triggers.work.library_versions", lambda names: dict.fromkeys(names, "next"))
    assert work(1).key != first.key, "another version of a runtime"


def test_no_password_is_kept(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue:
        queue.put(work(1, tracking_uri="http://me:secret@tracking"))
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.glob("triggers.db*"))
    assert (tmp_path / "triggers.db").stat().st_mode & 0o077 == 0


def test_work_is_taken_in_order_and_by_one(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue, Queue(tmp_path) as other:
        for version in (1, 2):
            queue.put(work(version))
        first, second = queue.claim(PLACE), other.claim(PLACE)
        assert first is not None and second is not None
        assert [first.work.version, second.work.version] == [1, 2]
        assert queue.claim(PLACE) is None
        assert queue.claim("http://another") is None
        os.close(first.lock)
        os.close(second.lock)


def test_only_the_models_that_are_watched(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue:
        queue.put(work(1, "minilm"))
        assert queue.claim(PLACE, frozenset({"resnet"})) is None
        assert not queue.waiting(PLACE, frozenset({"resnet"}))
        assert queue.waiting(PLACE, frozenset({"minilm"}))


def claim_and_hang(folder: Path) -> None:
    """Take work, say so, and hold it."""
    with Queue(folder) as queue:
        claim = queue.claim(PLACE)
        print(None if claim is None else claim.work.version, flush=True)
        time.sleep(600)


def holder(folder: Path) -> subprocess.Popen[str]:
    code = f"from test_queue import claim_and_hang; from pathlib import Path; claim_and_hang(Path({str(folder)!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


def test_what_a_killed_process_held_is_taken_again(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue:
        queue.put(work(1))
        process = holder(tmp_path)
        assert queue.claim(PLACE) is None
        assert queue.rows()[0].state == "running"
        process.send_signal(signal.SIGKILL)
        process.wait()
        claim = queue.claim(PLACE)
        assert claim is not None
        assert claim.attempt == 2
        os.close(claim.lock)


def test_what_kills_its_process_every_time_fails_in_the_end(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue:
        queue.put(work(1))
        for attempt in range(1, ATTEMPTS + 1):
            claim = queue.claim(PLACE)
            assert claim is not None
            assert claim.attempt == attempt
            os.close(claim.lock)  # as when the process dies
        assert queue.claim(PLACE) is None
        row = queue.rows()[0]
        assert (row.state, row.exit_code) == ("failed", 1)
        assert row.message == "given up after 3 attempts: the process that worked on it died"
        assert queue.retry(PLACE) == 1
        claim = queue.claim(PLACE)
        assert claim is not None
        os.close(claim.lock)


def test_an_attempt_that_could_not_begin_does_not_count(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue:
        queue.put(work(1))
        for _ in range(ATTEMPTS + 2):
            claim = queue.claim(PLACE)
            assert claim is not None
            assert claim.attempt == 1
            os.close(claim.lock)
            queue.give_back(claim.work.key, "the registry is away", counts=False)


def test_work_that_waits_is_not_due(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue:
        queue.put(work(1))
        claim = queue.claim(PLACE)
        assert claim is not None
        os.close(claim.lock)
        queue.give_back(claim.work.key, "killed", delay_s=60)
        assert queue.claim(PLACE) is None
        assert queue.waiting(PLACE)


def test_work_is_done_again_only_where_it_is_asked_for(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue:
        queue.put(work(1))
        assert not queue.put(work(1), again=True), "it has not been done yet"
        queue.finish(work(1).key, "refused", "no variant passed", exit_code=3)
        assert not queue.put(work(1), again=True), "the gates would say the same"
        queue.finish(work(1).key, "done", "published", registered="minilm-optimized/1")
        assert not queue.put(work(1))
        assert queue.put(work(1), again=True)
        assert queue.rows()[0].state == "queued"
        assert not queue.put(work(2), state="done", registered="minilm-optimized/2"), "somebody else did it"


def claim_all(folder: Path, taken: multiprocessing.Queue[int]) -> None:
    with Queue(folder) as queue:
        while (claim := queue.claim(PLACE)) is not None:
            taken.put(claim.work.version)
            queue.finish(claim.work.key, "done", "")
            os.close(claim.lock)


def test_four_processes_share_forty_pieces(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue:
        for version in range(1, 41):
            queue.put(work(version))
    context = multiprocessing.get_context("fork")
    taken: multiprocessing.Queue[int] = context.Queue()
    processes = [context.Process(target=claim_all, args=(tmp_path, taken)) for _ in range(4)]
    for process in processes:
        process.start()
    versions = sorted(taken.get(timeout=60) for _ in range(40))
    for process in processes:
        process.join()
    assert versions == list(range(1, 41))
    assert taken.empty()


def test_the_cursor_moves_with_the_work_or_not_at_all(tmp_path: Path) -> None:
    with Queue(tmp_path) as queue:
        with pytest.raises(RuntimeError), queue.transaction():
            queue.put(work(1))
            write_cursor(queue.connection, PLACE, "minilm", Cursor(1, 1, {"champion": 1}))
            raise RuntimeError
        assert queue.rows() == []
        assert read_cursor(queue.connection, PLACE, "minilm") is None
        write_cursor(queue.connection, PLACE, "minilm", Cursor(1, 1, {"champion": 1}))
    with Queue(tmp_path) as queue:
        assert read_cursor(queue.connection, PLACE, "minilm") == Cursor(1, 1, {"champion": 1})


def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    connection = connect(tmp_path)
    connection.execute("pragma user_version = 7")
    connection.close()
    with pytest.raises(InputError, match="another version of optimize"):
        Queue(tmp_path)


@pytest.mark.parametrize("name", ["minilm", "a.b_c-1", "x" * 190])
def test_names_that_can_be_folders(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["../up", ".hidden", "a b", "a/b", "a'b", "", "a;rm -rf", "$(x)", "x" * 191, "a\nb"])
def test_names_that_cannot(name: str) -> None:
    assert not is_name(name)


@pytest.mark.parametrize(
    ("alias", "right"),
    [
        ("champion", True),
        ("a-b_1", True),
        ("v1", False),
        ("LATEST", False),
        ("a b", False),
        ("a.b", False),
        ("", False),
    ],
)
def test_aliases(alias: str, right: bool) -> None:
    assert is_alias(alias) is right
