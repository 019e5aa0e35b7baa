"""Releases are published whole, switched atomically, gone back to exactly; crashes, races and full disks do no harm."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_repository import Repository, RepositoryError, Signature, TensorSpec
from model_repository.config import ConfigOptions, build, read, to_text
from model_repository.durable import file_digest

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
)


def make_tree(path: Path, weights: str = "one", labels: tuple[str, ...] = (), name: str = "m") -> Path:
    """A tree as `stages.package` makes it. The repository does not look into the graph."""
    (path / "assets").mkdir(parents=True)
    options = ConfigOptions(labels="labels.txt" if labels else "", label_count=len(labels))
    (path / "config.pbtxt").write_text(to_text(build(name, SIGNATURE, options)))
    (path / "model.onnx").write_bytes(b"graph")
    (path / "model.onnx.data").write_text(weights * 50_000)
    (path / "assets" / "tokenizer.json").write_text("{}")
    if labels:
        (path / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def three(repository: Repository, tmp_path: Path) -> Repository:
    """A model with the versions 1, 2 and 3."""
    for weights in ("one", "two", "three"):
        repository.publish("m", make_tree(tmp_path / weights, weights), {"weights": weights})
    return repository


def live(repository: Repository) -> bytes:
    return (repository.path / "m" / "config.pbtxt").read_bytes()


def hidden(repository: Repository) -> set[str]:
    return {entry.name for entry in (repository.path / "m").iterdir() if entry.name.startswith(".")}


# Publishing


def test_a_release_is_complete_and_served(repository: Repository, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", labels=("cat", "dog"))
    (tree / "artifact.json").write_text("{}")
    published = repository.publish("m", tree, {"source": {"digest": "abc"}})

    assert (published.model, published.version, published.new) == ("m", 1, True)
    own = repository.path / "m" / "1"
    assert {file.relative_to(own).as_posix() for file in own.rglob("*") if file.is_file()} == {
        "config.pbtxt", "model.onnx", "model.onnx.data", "assets/tokenizer.json", "labels.txt", "provenance.json",
    }  # fmt: skip
    config = read(repository.path / "m" / "config.pbtxt")
    assert list(config.version_policy.specific.versions) == [1]
    assert (repository.path / "m" / config.output[0].label_filename).read_text() == "cat\ndog\n"
    assert live(repository) == (own / "config.pbtxt").read_bytes()
    assert hidden(repository) == {".lock", ".history.json"}

    provenance = json.loads((own / "provenance.json").read_text())
    assert provenance["source"] == {"digest": "abc"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", provenance["published_at"])
    assert provenance["release"]["version"] == 1
    assert provenance["release"]["digest"] == published.digest
    for name, digest in provenance["release"]["files"].items():
        assert file_digest(own / name) == digest


def test_files_are_shared_where_the_file_system_can_and_copied_elsewhere(
    repository: Repository, tmp_path: Path, elsewhere: Path
) -> None:
    tree = make_tree(tmp_path / "tree")
    repository.publish("m", tree, {})
    assert (repository.path / "m/1/model.onnx").samefile(tree / "model.onnx")
    other = Repository(elsewhere)
    other.publish("m", tree, {})
    assert not (elsewhere / "m/1/model.onnx").samefile(tree / "model.onnx")
    assert other.verify("m").digest == repository.verify("m").digest


def test_each_release_gets_the_next_number_and_the_same_release_none(repository: Repository, tmp_path: Path) -> None:
    first = repository.publish("m", make_tree(tmp_path / "a", "one"), {})
    second = repository.publish("m", make_tree(tmp_path / "b", "two"), {})
    before = {file: file.stat().st_mtime_ns for file in repository.path.rglob("*")}
    again = repository.publish("m", make_tree(tmp_path / "c", "two"), {"run": 2})
    assert {file: file.stat().st_mtime_ns for file in repository.path.rglob("*")} == before

    assert (first.version, second.version) == (1, 2)
    assert (again.version, again.new, again.digest) == (2, False, second.digest)
    back = repository.publish("m", make_tree(tmp_path / "d", "one"), {})
    assert (back.version, back.new, back.digest) == (3, True, first.digest)


def test_the_configuration_is_a_part_of_the_release(repository: Repository, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "a")
    repository.publish("m", tree, {})
    (tree / "config.pbtxt").unlink()
    (tree / "config.pbtxt").write_text(to_text(build("m", SIGNATURE, ConfigOptions(max_batch_size=2))))
    assert repository.publish("m", tree, {}).version == 2


def test_a_removed_number_is_not_given_again(three: Repository, tmp_path: Path) -> None:
    three.rollback("m")
    (three.path / "m/3").rename(tmp_path / "gone")
    assert three.publish("m", make_tree(tmp_path / "four", "four"), {}).version == 4


def test_models_are_apart(repository: Repository, tmp_path: Path) -> None:
    repository.publish("m", make_tree(tmp_path / "a"), {})
    assert repository.publish("n", make_tree(tmp_path / "b", name="n"), {}).version == 1
    (repository.path / "stray").mkdir()
    assert repository.models() == ["m", "n"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: (tree / "config.pbtxt").unlink(), r"config\.pbtxt is missing"),
        (lambda tree: (tree / "model.onnx").unlink(), r"has no model\.onnx"),
        (lambda tree: (tree / "labels.txt").unlink(), r"has no labels\.txt"),
        (lambda tree: (tree / "assets/link").symlink_to("/etc/passwd"), "assets/link is a link"),
        (lambda tree: (tree / "outside").symlink_to("/etc"), "outside is a link"),
        (lambda tree: os.mkfifo(tree / "pipe"), "pipe is a link or a device"),
        (lambda tree: _append(tree, "bogus: 1"), "bogus"),
        (lambda tree: _replace(tree, "dynamic_batching {", "dynamic_batching { preferred_batch_size: 99"), "size: 99"),
        (lambda tree: _replace(tree, 'name: "m"', 'name: "other"'), "for the model 'other'"),
        (
            lambda tree: _append(
                tree,
                'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 '
                'input_data_file: "x.bin" } } }',
            ),
            "reads a file outside the version's directory",
        ),
    ],
)
def test_a_tree_that_cannot_be_served_is_refused(
    repository: Repository, tmp_path: Path, change: Any, message: str
) -> None:
    tree = make_tree(tmp_path / "tree", labels=("a", "b"))
    change(tree)
    with pytest.raises(RepositoryError, match=message):
        repository.publish("m", tree, {})
    assert not (repository.path / "m").exists()


def _append(tree: Path, text: str) -> None:
    with (tree / "config.pbtxt").open("a") as stream:
        stream.write(text)


def _replace(tree: Path, old: str, new: str) -> None:
    file = tree / "config.pbtxt"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize("provenance", [{"x": float("nan")}, {"x": Path("a")}, {"release": {}}, {"published_at": ""}])
def test_provenance_must_be_json_and_its_own(repository: Repository, tmp_path: Path, provenance: Any) -> None:
    with pytest.raises(RepositoryError, match="provenance"):
        repository.publish("m", make_tree(tmp_path / "tree"), provenance)
    assert not repository.path.exists()


@pytest.mark.parametrize("name", ["..", "a/b", "", ".git", "a\\b"])
def test_a_model_cannot_lie_outside_the_repository(three: Repository, tmp_path: Path, name: str) -> None:
    for call in (
        lambda: three.publish(name, tmp_path / "one", {}),
        lambda: three.versions(name),
        lambda: three.rollback(name),
    ):
        with pytest.raises(RepositoryError, match="cannot be the name of a model"):
            call()


def test_a_model_made_by_hand_is_not_taken_over(repository: Repository, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    by_hand = repository.path / "m"
    (by_hand / "2").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="made by hand"):
        repository.publish("m", tree, {})
    (by_hand / "config.pbtxt").write_text('backend: "onnxruntime"')
    with pytest.raises(RepositoryError, match="made by hand"):
        repository.publish("m", tree, {})
    assert [(info.version, info.current, info.digest) for info in repository.versions("m")] == [(2, True, None)]
    with pytest.raises(RepositoryError, match="not published by this program"):
        repository.verify("m")


# Reading


def test_versions_tell_what_they_are(three: Repository) -> None:
    infos = three.versions("m")
    assert [info.version for info in infos] == [1, 2, 3]
    assert [info.current for info in infos] == [False, False, True]
    assert [info.provenance["weights"] for info in infos] == ["one", "two", "three"]
    assert len({info.digest for info in infos}) == 3
    assert all(info.published_at for info in infos)
    assert three.current("m") == 3
    assert three.directory("m") == three.path / "m" / "3"
    assert three.directory("m", 1) == three.path / "m" / "1"


def test_what_is_not_there_is_said_with_what_is(three: Repository, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no model repository at"):
        Repository(tmp_path / "nowhere").models()
    with pytest.raises(RepositoryError, match=r"no model 'k' in .*; there are: m"):
        three.versions("k")
    with pytest.raises(RepositoryError, match=r"no version 7 of 'm' in .*; there are: 1, 2, 3"):
        three.promote("m", 7)
    with pytest.raises(RepositoryError, match="cannot be a version"):
        three.promote("m", 0)
    (three.path / "m/config.pbtxt").write_text("nonsense")
    with pytest.raises(RepositoryError, match=r"m/config\.pbtxt: not a model configuration"):
        three.versions("m")


@pytest.mark.parametrize("name", ["model.onnx.data", "assets/tokenizer.json", "config.pbtxt"])
def test_verify_names_the_file_that_is_not_what_was_published(three: Repository, name: str) -> None:
    assert three.verify("m", 2).version == 2
    file = three.path / "m/2" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(RepositoryError, match=rf"2/{re.escape(name)} has changed"):
        three.verify("m", 2)
    file.unlink()
    with pytest.raises(RepositoryError, match=rf"2/{re.escape(name)} is missing"):
        three.verify("m", 2)
    assert three.verify("m").version == 3


def test_verify_sees_a_configuration_changed_by_hand(three: Repository) -> None:
    original = live(three)
    (three.path / "m/config.pbtxt").write_bytes(original + b"\n# faster\n")
    with pytest.raises(RepositoryError, match=r"m/config\.pbtxt is not the configuration of version 3"):
        three.verify("m")
    assert three.versions("m")[2].current
    three.promote("m", 3)
    assert live(three) == original
    assert three.rollback("m").version == 2


def test_damaged_descriptions_are_named(three: Repository) -> None:
    (three.path / "m/2/provenance.json").write_text("{}")
    with pytest.raises(RepositoryError, match=r"2/provenance\.json is damaged"):
        three.versions("m")
    (three.path / "m/.history.json").write_text('{"format": 1, "events": 3}')
    with pytest.raises(RepositoryError, match=r"\.history\.json cannot be read .*remove it"):
        three.rollback("m")
    (three.path / "m/.history.json").unlink()
    with pytest.raises(RepositoryError, match="none before it"):
        three.rollback("m")
    assert three.promote("m", 1).current


# Switching


def test_a_rollback_restores_exactly_what_was_there(repository: Repository, tmp_path: Path) -> None:
    repository.publish("m", make_tree(tmp_path / "a", "one", labels=("cat", "dog")), {})
    configuration, files = live(repository), {f: f.read_bytes() for f in (repository.path / "m/1").rglob("*.*")}
    repository.publish("m", make_tree(tmp_path / "b", "two", labels=("dog", "cat")), {})
    assert live(repository) != configuration

    back = repository.rollback("m")
    assert (back.version, back.current) == (1, True)
    assert live(repository) == configuration
    assert {f: f.read_bytes() for f in (repository.path / "m/1").rglob("*.*")} == files
    labels = read(repository.path / "m/config.pbtxt").output[0].label_filename
    assert (repository.path / "m" / labels).read_text() == "cat\ndog\n"
    assert [info.version for info in repository.versions("m")] == [1, 2], "what was rolled back is still there"


def test_rolling_back_again_goes_further_back(three: Repository) -> None:
    assert three.rollback("m").version == 2
    assert three.rollback("m").version == 1
    with pytest.raises(RepositoryError, match="version 1 of 'm' has none before it"):
        three.rollback("m")


def test_a_rollback_undoes_a_promotion(three: Repository) -> None:
    assert three.promote("m", 1).current
    assert three.current("m") == 1
    assert three.promote("m", 1).version == 1, "to promote what is current changes nothing"
    assert three.rollback("m").version == 3
    assert three.rollback("m").version == 2


def test_a_rollback_can_name_its_version(three: Repository) -> None:
    assert three.rollback("m", 1).version == 1
    with pytest.raises(RepositoryError, match="version 3 of 'm' was not current before version 1; none was"):
        three.rollback("m", 3)
    three.promote("m", 3)
    assert three.rollback("m").version == 1


def test_a_release_after_a_rollback_is_followed_back_to_what_was_current_then(
    three: Repository, tmp_path: Path
) -> None:
    three.rollback("m", 1)
    assert three.publish("m", make_tree(tmp_path / "four", "four"), {}).version == 4
    assert three.rollback("m").version == 1


def test_removed_versions_are_passed_over(three: Repository, tmp_path: Path) -> None:
    (three.path / "m/2").rename(tmp_path / "gone")
    assert three.rollback("m").version == 1


def test_an_incomplete_version_does_not_become_current(three: Repository) -> None:
    (three.path / "m/2/model.onnx").unlink()
    before = live(three)
    with pytest.raises(RepositoryError, match=r"2/model\.onnx is missing"):
        three.rollback("m")
    assert live(three) == before


# Crashes


CHANGES = {"os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir"}  # and opening a file to write


def _dying_after(steps: int, repository: Path, action: str, tree: Path) -> bool:
    """Do `action` in a child that is killed by SIGKILL after `steps` changes of the file system.

    Returns whether it was killed; it is not when it needs no more.
    """
    target = Repository(repository)
    child = os.fork()
    if child == 0:
        left = steps

        def kill(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                left -= 1
                if left == -1:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(kill)
            if action == "publish":
                target.publish("m", tree, {})
            else:
                target.rollback("m")
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_writer_killed_at_any_step_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    old, new = make_tree(tmp_path / "old", "old"), make_tree(tmp_path / "new", "new")
    outcomes = []
    for steps in range(1000):
        repository = Repository(tmp_path / f"repository-{steps}")
        first = repository.publish("m", old, {})
        before = live(repository)
        if not _dying_after(steps, repository.path, "publish", new):
            break
        current = repository.current("m")
        outcomes.append(current)
        assert [info.version for info in repository.versions("m")] == list(range(1, (current or 0) + 1))
        if current == 1:
            assert live(repository) == before
        assert repository.verify("m").digest == (first.digest if current == 1 else repository.versions("m")[1].digest)

        again = repository.publish("m", new, {})
        assert (again.version, again.new) == (2, current == 1)
        assert hidden(repository) == {".lock", ".history.json"}
        assert sorted(e.name for e in (repository.path / "m").iterdir() if e.name.isdecimal()) == ["1", "2"]
        assert repository.rollback("m").version == 1
        assert live(repository) == before
    assert set(outcomes) == {1, 2}, "it was killed both before and after the switch"
    assert outcomes == sorted(outcomes), "once switched, it stays switched"


def test_a_first_publish_killed_at_any_step_leaves_no_model_or_a_whole_one(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    outcomes = []
    for steps in range(1000):
        repository = Repository(tmp_path / f"repository-{steps}")
        if not _dying_after(steps, repository.path, "publish", tree):
            break
        there = repository.path.exists() and "m" in repository.models()
        outcomes.append(there)
        if there:
            repository.verify("m", 1)
        again = repository.publish("m", tree, {})
        assert (again.version, again.new) == (1, not there)
        assert hidden(repository) == {".lock", ".history.json"}
    assert set(outcomes) == {False, True}


def test_a_rollback_killed_at_any_step_is_done_or_not(tmp_path: Path) -> None:
    trees = [make_tree(tmp_path / weights, weights) for weights in ("one", "two", "three")]
    outcomes = []
    for steps in range(1000):
        repository = Repository(tmp_path / f"repository-{steps}")
        for tree in trees:
            repository.publish("m", tree, {})
        if not _dying_after(steps, repository.path, "rollback", trees[0]):
            break
        current = repository.current("m")
        assert current is not None
        outcomes.append(current)
        repository.verify("m")
        assert [info.version for info in repository.versions("m")] == [1, 2, 3]
        assert repository.rollback("m").version == current - 1, "the line of rollbacks is not lost"
        assert hidden(repository) == {".lock", ".history.json"}
    assert set(outcomes) == {3, 2}


# Others at the same time


def _publish(repository: Path, tree: Path, begin: Any, results: Any) -> None:
    begin.wait()
    published = Repository(repository).publish("m", tree, {"tree": tree.name})
    results.put((published.version, tree.name, published.new))


def test_writers_at_once_get_numbers_without_gap_and_leave_a_valid_configuration(
    repository: Repository, tmp_path: Path
) -> None:
    trees = [make_tree(tmp_path / f"tree-{index}", f"weights {index}") for index in range(8)]
    context = multiprocessing.get_context("fork")
    begin, results = context.Event(), context.Queue()
    writers = [context.Process(target=_publish, args=(repository.path, tree, begin, results)) for tree in trees]
    for writer in writers:
        writer.start()
    begin.set()
    got = [results.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join()

    assert sorted(version for version, _, _ in got) == list(range(1, 9))
    infos = repository.versions("m")
    assert {info.version: info.provenance["tree"] for info in infos} == {version: name for version, name, _ in got}
    assert [info.version for info in infos if info.current] == [8]
    for info in infos:
        repository.verify("m", info.version)
    assert hidden(repository) == {".lock", ".history.json"}
    assert [repository.rollback("m").version for _ in range(7)] == [7, 6, 5, 4, 3, 2, 1]


def test_the_same_release_from_several_writers_is_published_once(repository: Repository, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    context = multiprocessing.get_context("fork")
    begin, results = context.Event(), context.Queue()
    writers = [context.Process(target=_publish, args=(repository.path, tree, begin, results)) for _ in range(4)]
    for writer in writers:
        writer.start()
    begin.set()
    got = [results.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join()
    assert [version for version, _, _ in got] == [1, 1, 1, 1]
    assert sum(new for _, _, new in got) == 1


def test_what_a_living_writer_gathers_is_left_alone(repository: Repository, tmp_path: Path) -> None:
    trees = [make_tree(tmp_path / name, name) for name in ("slow", "quick")]
    begun, begin = os.pipe()
    done, finish = os.pipe()
    writer = os.fork()
    if writer == 0:

        def stop(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "os.link" and str(arguments[0]).endswith("model.onnx"):
                os.write(begin, b".")
                os.read(done, 1)

        try:
            sys.addaudithook(stop)
            os._exit(0 if repository.publish("m", trees[0], {}).version == 2 else 1)
        finally:
            os._exit(2)
    os.close(begin)
    assert os.read(begun, 1), "the writer came as far as its first file"
    assert repository.publish("m", trees[1], {}).version == 1
    os.write(finish, b".")
    _, status = os.waitpid(writer, 0)
    assert os.WEXITSTATUS(status) == 0
    repository.verify("m", 2)


# A full disk


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 1 MB."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip(f"a small file system cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield place
    finally:
        libc.umount2(bytes(place), 2)


def _fill(place: Path, leave: int) -> Path:
    """Leave `leave` bytes of the file system."""
    ballast = place / "ballast"
    usage = os.statvfs(place)
    ballast.write_bytes(b"\0" * (usage.f_bavail * usage.f_frsize - leave))
    return ballast


@pytest.mark.parametrize("room_kb", [0, 4, 8, 64, 156, 160, 164, 168])
def test_a_full_disk_publishes_nothing(elsewhere: Path, tmp_path: Path, room_kb: int) -> None:
    repository = Repository(elsewhere)
    repository.publish("m", make_tree(tmp_path / "one", "one"), {})
    before, state = live(repository), repository.versions("m")
    ballast = _fill(elsewhere, room_kb * 1024)

    with pytest.raises(RepositoryError, match=r"'m' was not published: no space is left for .*elsewhere/m"):
        repository.publish("m", make_tree(tmp_path / "two", "two"), {})
    assert live(repository) == before
    assert repository.versions("m") == state
    repository.verify("m")
    assert {entry.name for entry in (elsewhere / "m").iterdir()} == {"1", "config.pbtxt", ".lock", ".history.json"}

    ballast.unlink()
    assert repository.publish("m", tmp_path / "two", {}).version == 2


def test_a_first_release_on_a_full_disk_leaves_no_model(elsewhere: Path, tmp_path: Path) -> None:
    repository = Repository(elsewhere)
    _fill(elsewhere, 16 * 1024)
    with pytest.raises(RepositoryError, match="no space is left"):
        repository.publish("m", make_tree(tmp_path / "one"), {})
    assert not (elsewhere / "m").exists()


def test_a_rollback_on_a_full_disk_changes_nothing(elsewhere: Path, tmp_path: Path) -> None:
    repository = Repository(elsewhere)
    for weights in ("one", "two"):
        repository.publish("m", make_tree(tmp_path / weights, weights), {})
    before = live(repository)
    _fill(elsewhere, 4096)
    with pytest.raises(RepositoryError, match="'m' was not rolled back: no space is left"):
        repository.rollback("m")
    assert live(repository) == before
    assert repository.current("m") == 2


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match=r"'m' was not published: .*file"):
        Repository(tmp_path / "file").publish("m", make_tree(tmp_path / "tree"), {})
