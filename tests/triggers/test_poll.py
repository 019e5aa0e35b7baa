"""Looking at a real registry: what asks for work, what does not, and how far the cursor goes."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from registries import register

from pipeline.triggers.cursor import read_cursor
from pipeline.triggers.poll import Watched, look
from pipeline.triggers.queue import Queue
from pipeline.triggers.registry import Registry, RegistryAwayError
from pipeline.triggers.rules import Rules
from stages.errors import InputError


class Watch:
    """A registry in a database, a queue of its own, and looks at one model."""

    def __init__(self, uri: str, folder: Path, model: str, rules: Rules, **watched: Any) -> None:
        self.registry, self.queue, self.folder, self.rules = Registry(uri), Queue(folder / "queue"), folder, rules
        self.client, self.model = self.registry.client(), model
        self.watched = Watched(models=(model,), **watched)

    def register(self, times: int = 1) -> None:
        for _ in range(times):
            register(self.client, self.model, self.folder)

    def point(self, alias: str, version: int) -> None:
        self.client.set_registered_model_alias(self.model, alias, str(version))

    def look(self) -> list[tuple[int, str]]:
        """What is new: version and reason."""
        found = look(self.registry, self.queue, self.rules, self.watched)
        assert found.problems == {}
        rows = [self.queue.find(key) for key in found.new]
        return [(row.work.version, row.work.why) for row in rows if row is not None]

    def finish(self, version: int) -> int:
        """As if the work had been done: its result is registered."""
        [row] = [row for row in self.queue.rows() if row.work.version == version]
        self.queue.finish(row.work.key, "done", "", registered="x/1")
        target = row.work.target_model
        if self.registry.model(target) is None:
            self.client.create_registered_model(target)
        made = self.client.create_model_version(
            target, str(self.folder / "files"), tags={"optimize.key": row.work.key}
        ).version  # fmt: skip
        self.client.set_registered_model_alias(target, "champion", str(made))
        return int(made)


@pytest.fixture
def watch(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Watch:
    options = getattr(request, "param", {})
    model = re.sub(r"\W+", "-", request.node.name)[:80]
    return Watch(database, tmp_path, model, Rules(), **options)


def test_a_new_version_is_work_once(watch: Watch) -> None:
    watch.register()
    assert watch.look() == [(1, "new version")]
    assert watch.look() == []
    watch.register(2)
    assert watch.look() == [(2, "new version"), (3, "new version")]
    assert watch.look() == []


def test_of_what_was_there_before_the_last_version_and_the_aliases_count(watch: Watch) -> None:
    watch.register(3)
    watch.point("production", 1)
    assert watch.look() == [(1, "alias production"), (3, "new version")]


@pytest.mark.parametrize("watch", [{"backfill": True}], indirect=True)
def test_or_every_version_if_that_is_asked_for(watch: Watch) -> None:
    watch.register(3)
    assert [version for version, _ in watch.look()] == [1, 2, 3]


@pytest.mark.parametrize("watch", [{"versions": False}], indirect=True)
def test_a_moved_alias_asks_for_work_and_the_same_alias_again_does_not(watch: Watch) -> None:
    watch.register(2)
    assert watch.look() == []
    watch.point("staging", 2)
    assert watch.look() == [(2, "alias staging")]
    watch.point("staging", 2)
    assert watch.look() == []
    watch.point("staging", 1)
    assert watch.look() == [(1, "alias staging")]
    watch.point("staging", 2)
    assert watch.look() == [], "that work is there already"


@pytest.mark.parametrize("watch", [{"versions": False, "aliases": ("champion",)}], indirect=True)
def test_only_the_aliases_that_are_named(watch: Watch) -> None:
    watch.register(2)
    watch.point("baseline", 1)
    assert watch.look() == []
    watch.point("champion", 2)
    assert watch.look() == [(2, "alias champion")]


def test_the_champion_follows_the_alias_back(watch: Watch) -> None:
    watch.register()
    watch.look()
    watch.finish(1)
    watch.register()
    watch.look()
    watch.finish(2)
    watch.point("staging", 1)
    assert watch.look() == [], "it is done, and staging is not the champion"
    watch.point("champion", 2)
    assert watch.look() == [], "its result is the champion"
    watch.point("champion", 1)
    assert watch.look() == [(1, "alias champion")]
    assert len(watch.queue.rows()) == 2


def test_a_lost_queue_does_nothing_twice(watch: Watch, tmp_path: Path) -> None:
    watch.register()
    watch.look()
    made = watch.finish(1)
    watch.queue = Queue(tmp_path / "another")
    assert watch.look() == []
    [row] = watch.queue.rows()
    assert (row.state, row.registered) == ("done", f"{watch.model}-optimized/{made}")


def test_our_own_results_are_no_work(watch: Watch, database: str, tmp_path: Path) -> None:
    watch.register()
    watch.look()
    watch.finish(1)
    ours = Watch(database, tmp_path / "ours", f"{watch.model}-optimized", Rules(), backfill=True)
    assert ours.look() == []
    assert f"{watch.model}-optimized" not in set(watch.registry.models())
    assert watch.model in set(watch.registry.models())


def test_a_model_that_was_deleted_and_made_anew_begins_anew(watch: Watch) -> None:
    watch.register(2)
    assert watch.look() == [(2, "new version")]
    watch.client.delete_registered_model(watch.model)
    watch.register()
    assert watch.look() == [(1, "new version")]


def test_what_is_wrong_with_a_model_is_told_and_read_again(watch: Watch, recipes: Path) -> None:
    watch.rules = Rules(recipes)
    watch.register()
    watch.client.set_registered_model_tag(watch.model, "optimize.recipe", "../../secrets")
    found = look(watch.registry, watch.queue, watch.rules, watch.watched)
    assert "which is not in" in found.problems[watch.model]
    assert read_cursor(watch.queue.connection, watch.registry.name, watch.model) is None
    watch.client.set_registered_model_tag(watch.model, "optimize.recipe", "cheap")
    assert watch.look() == [(1, "new version")]
    assert watch.queue.rows()[0].work.recipe_name == "cheap"


def test_all_models_but_those_that_no_recipe_is_meant_for(watch: Watch, recipes: Path) -> None:
    watch.register()
    register(watch.client, f"{watch.model}-other", watch.folder)
    watch.client.set_registered_model_tag(watch.model, "optimize.recipe", "cheap")
    watch.client.create_registered_model(f"{watch.model}; $(reboot) '")
    watch.watched, watch.rules = Watched(), Rules(recipes, plain=False)
    found = look(watch.registry, watch.queue, watch.rules, watch.watched)
    queued = {row.work.model for row in watch.queue.rows()}
    assert watch.model in queued
    assert f"{watch.model}-other" not in queued
    assert "is passed over" in found.problems[f"{watch.model}; $(reboot) '"]
    watch.client.delete_registered_model(f"{watch.model}; $(reboot) '")
    watch.client.delete_registered_model_tag(watch.model, "optimize.recipe")


def test_a_model_that_is_not_there(database: str, tmp_path: Path) -> None:
    with Queue(tmp_path) as queue:
        found = look(Registry(database), queue, Rules(), Watched(models=("nobody",)))
        assert "there is no registered model nobody" in found.problems["nobody"]


def test_names_are_checked_before_anything_is_asked() -> None:
    for wrong in ({"models": ("a'b",)}, {"models": ("../x",)}, {"champion": "v1"}, {"aliases": ("a b",)}):
        with pytest.raises(ValueError, match=r"cannot be watched|is no alias"):
            Watched.model_validate(wrong)


def test_a_registry_that_is_away_and_one_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryAwayError, match=r"MLflow at http://127.0.0.1:9 does not answer: \[Errno 111\]"):
        Registry("http://me:password@127.0.0.1:9").model("minilm")
    with pytest.raises(InputError, match="there is no MLflow database"):
        Registry(f"sqlite:///{tmp_path}/nobody.db").model("minilm")
    assert not (tmp_path / "nobody.db").exists()


def test_a_database_of_another_version_is_not_touched(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("create table registered_models (name text)")
        connection.commit()
    before = database.read_bytes()
    with pytest.raises(InputError, match="another version of MLflow"):
        Registry(f"sqlite:///{database}").model("minilm")
    assert database.read_bytes() == before


def test_the_size_of_a_version_is_that_of_its_files(watch: Watch) -> None:
    watch.register()
    [folder] = [path for path in watch.folder.iterdir() if path.name.startswith(watch.model)]
    whole = sum(file.stat().st_size for file in folder.iterdir())
    assert watch.registry.size_bytes(watch.model, 1, 10**9) == whole
    assert watch.registry.size_bytes(watch.model, 1, 10) > 10
