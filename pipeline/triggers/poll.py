"""One look at the registry: what is new goes into the queue, and the cursor moves on in the same transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator

from pipeline.triggers.cursor import Cursor, read_cursor, write_cursor
from pipeline.triggers.queue import Queue
from pipeline.triggers.registry import RegisteredModel, Registry
from pipeline.triggers.rules import Rules
from pipeline.triggers.work import NAME_RULE, SUFFIX, SourceVersion, Work, is_alias, is_name, make_work
from stages.errors import InputError

__all__ = ["Look", "Watched", "look"]


class Watched(BaseModel):
    """What is watched. `models`: these, or all (null). `versions`: new ones ask for work. `aliases`: those whose moves
    ask for work; null means every one. `champion`: the alias that the best result of a model gets. `backfill`: begin
    with every version that is there, not with the last one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] | None = None
    versions: bool = True
    aliases: tuple[str, ...] | None = None
    champion: str = "champion"
    backfill: bool = False

    @field_validator("models")
    @classmethod
    def _names(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            if not is_name(name):
                raise ValueError(f"{name[:80]!r} cannot be watched: {NAME_RULE}")
        return value

    @field_validator("champion", "aliases")
    @classmethod
    def _alias(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for alias in (value,) if isinstance(value, str) else value or ():
            if not is_alias(alias):
                raise ValueError(f"{alias[:80]!r} is no alias: letters, digits, '_' and '-', not `latest` nor `v1`")
        return value


@dataclass
class Look:
    """What came of a look: the keys of the work that is new, and by model what is wrong with it."""

    new: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def look(
    registry: Registry,
    queue: Queue,
    rules: Rules,
    watched: Watched,
    repository: Path | None = None,
    only: Iterable[str] | None = None,
) -> Look:
    """Read the models that are watched (`only` these of them) and queue what they ask for.

    `repository`: where the releases go, in place of what the recipes say. What is wrong with one model is told and
    stops no other; its cursor stays, so that it is read again. Raises `RegistryAwayError`.
    """
    found = Look()
    for name in _names(registry, watched, None if only is None else set(only)):
        try:
            _look_at(name, registry, queue, rules, watched, repository, found)
        except InputError as error:
            found.problems[name] = str(error)
    return found


def _names(registry: Registry, watched: Watched, only: set[str] | None) -> list[str]:
    if watched.models is not None:
        return [name for name in watched.models if only is None or name in only]
    if only is None:
        return sorted(set(registry.models()))
    return sorted(name for name in only if not name.endswith(SUFFIX))


def _look_at(
    name: str,
    registry: Registry,
    queue: Queue,
    rules: Rules,
    watched: Watched,
    repository: Path | None,
    found: Look,
) -> None:
    if not is_name(name) and watched.models is None:
        raise InputError(f"{name[:80]!r} is passed over: {NAME_RULE}")
    model = registry.model(name)
    if model is None:
        if watched.models is not None:
            raise InputError(f"there is no registered model {name} in MLflow at {registry.name}")
        return
    before = read_cursor(queue.connection, registry.name, name)
    if before is not None and before.created_ms != model.created_ms:
        before = None  # it was deleted, and another one has its name
    newer = _until_pending(registry.newer(name, 0 if before is None else before.version))
    reasons = _reasons(model, before, newer, watched)
    versions = {entry.version: entry for entry in newer}
    wanted: list[tuple[Work, bool, int | None]] = []
    for number, (why, by_champion) in sorted(reasons.items()):
        version = versions.get(number) or registry.version(name, number)
        if version is None or version.key is not None:
            continue  # it went in the meantime, or it is a result of ours
        overrides = {} if repository is None else {"repository": str(repository)}
        chosen = rules.recipe(name, number, model.tags, overrides)
        if chosen is None:
            continue
        work = make_work(version, chosen[1], chosen[0], registry.name, why)
        wanted.append((work, *_already(registry, work, watched.champion, by_champion)))
    after = Cursor(model.created_ms, max([0 if before is None else before.version, *versions]), model.aliases)
    with queue.transaction():
        for work, again, made in wanted:
            if made is not None and not again:
                queue.put(work, state="done", registered=f"{work.target_model}/{made}")
            elif queue.put(work, again=again):
                found.new.append(work.key)
        if after != before:
            write_cursor(queue.connection, registry.name, name, after)


def _until_pending(versions: list[SourceVersion]) -> list[SourceVersion]:
    """The versions up to the first that is still being made: the cursor must not go past it."""
    ready = []
    for version in versions:
        if not version.ready:
            break
        ready.append(version)
    return ready


def _reasons(
    model: RegisteredModel, before: Cursor | None, newer: list[SourceVersion], watched: Watched
) -> dict[int, tuple[str, bool]]:
    """By version: why it asks for work, and whether it has become the champion."""
    ours = {entry.version for entry in newer if entry.key is not None}
    numbers = [entry.version for entry in newer if entry.version not in ours]
    if before is None and not watched.backfill:
        numbers = numbers[-1:]
    reasons = dict.fromkeys(numbers, ("new version", False)) if watched.versions else {}
    for alias, number in sorted(model.aliases.items()):
        if watched.aliases is not None and alias not in watched.aliases:
            continue
        if before is not None and before.aliases.get(alias) == number:
            continue
        champion = alias == watched.champion
        why, earlier = reasons.get(number, ("", False))
        reasons[number] = (f"{why}, " * bool(why) + f"alias {alias}", earlier or champion)
    return reasons


def _already(registry: Registry, work: Work, champion: str, by_champion: bool) -> tuple[bool, int | None]:
    """Whether work that is done has to be taken up again, since its result is not the champion as it should be; and the
    version that its result is registered as. Asking the registry makes a lost queue harmless."""
    target = registry.model(work.target_model)
    if target is None:
        return False, None
    made = registry.made_by(work.target_model, work.key)
    if made is None:
        return False, None
    return by_champion and target.aliases.get(champion) != made, made
