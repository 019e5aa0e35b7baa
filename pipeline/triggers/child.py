"""The process that does one piece of work: runs the job, registers what it published, and notes how it ended.

    python -P -c "from pipeline.triggers.child import main; main()" PARENT_PID LOCK

The order comes as JSON on standard input. (Started with `-m`, the workers of the run would import this module too.)

LOCK is the descriptor of the lock that its parent took for it. It ends with its parent. Ctrl-C reaches the parent
alone, which then ends it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from pydantic import BaseModel, ConfigDict

from pipeline.cli.failure import explain
from pipeline.job import run
from pipeline.recipe import Recipe
from pipeline.records import sync
from pipeline.records.registration import Registration, move_alias, register
from pipeline.result import RunResult
from pipeline.screen import TerminalScreen
from pipeline.store import Store
from pipeline.triggers.queue import Queue
from pipeline.triggers.registry import Registry, RegistryAwayError
from pipeline.triggers.work import State, Work
from stages.errors import InputError

__all__ = ["Order", "main"]

_PR_SET_PDEATHSIG = 1
_STATES: dict[str, State] = {"published": "done", "none_passed": "refused", "failed": "failed"}


class Order(BaseModel):
    """What to do, and with what. `folder` is the queue's, `store` that of the finished steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    folder: Path
    store: Path
    tracking_uri: str
    champion: str
    max_download_bytes: int
    local_files: bool


def main() -> None:
    """Do one piece of work. What goes wrong with it is in the queue, not in the exit code."""
    parent, lock = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(lock, False)  # a process that outlives this one must not hold it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminated)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
    order = Order.model_validate_json(sys.stdin.read())
    with Queue(order.folder) as queue:
        row = queue.find(order.key)
        assert row is not None
        _work(order, queue, row.work)


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _work(order: Order, queue: Queue, work: Work) -> None:
    started = time.monotonic()
    registry = Registry(order.tracking_uri)
    try:
        if not _follow(order, queue, work, registry):
            _make(order, queue, work, registry)
    except RegistryAwayError as error:
        queue.give_back(work.key, str(error), counts=False)
    except Exception as error:  # noqa: BLE001 - the last stop: every error becomes a message and a code in the queue
        message, code = explain(error)
        if code == 1:
            import traceback

            traceback.print_exc()
        if code != 2 and not registry.reachable():
            queue.give_back(work.key, message, counts=False)
            return
        queue.finish(work.key, "failed", message, exit_code=code, seconds=time.monotonic() - started)


def _follow(order: Order, queue: Queue, work: Work, registry: Registry) -> bool:
    """Whether the result is registered already. Then only the alias moves, and with it the release that is served."""
    if registry.model(work.target_model) is None:
        return False
    version = registry.made_by(work.target_model, work.key)
    if version is None:
        return False
    with Store(order.store).lock(f"register-{work.target_model}"), registry.errors(f"the alias {order.champion}"):
        said = move_alias(registry.client(), _registration(order, work), version)
    served = _serve_again(work, registry.tags(work.target_model, version)) if "stays" not in said else ""
    queue.finish(
        work.key, "done", f"registered before; {said}{served}", registered=f"{work.target_model}/{version}"
    )  # fmt: skip
    return True


def _serve_again(work: Work, tags: dict[str, str]) -> str:
    """Make the release of a registered version the current one of its repository, if the repository has it."""
    from model_repository import Repository
    from model_repository.layout import check_name

    name = check_name(tags.get("optimize.release", "").partition("/")[0])
    repository = Repository(str(work.recipe["repository"]))
    if not repository.path.is_dir() or name not in repository.models():
        return f"; {repository.path} does not have its release"
    for info in reversed(repository.versions(name)):
        if info.digest is not None and info.digest == tags.get("optimize.release_digest"):
            if not info.current:
                repository.promote(name, info.version)
            return f"; {name} serves version {info.version}"
    return f"; {repository.path} does not have its release"


def _make(order: Order, queue: Queue, work: Work, registry: Registry) -> None:
    size = registry.size_bytes(work.model, work.version, order.max_download_bytes, order.local_files)
    if size > order.max_download_bytes:
        limit = order.max_download_bytes
        raise InputError(
            f"{work.reference} has more than {limit:,} bytes of files; --max-download says how many it may"
        )
    recipe = Recipe.parse(work.recipe | {"tracking_uri": order.tracking_uri}, work.recipe_name)
    result = run(recipe, store=order.store, screen=TerminalScreen())
    if result.status == "failed" and not registry.reachable():
        queue.give_back(work.key, result.message, counts=False)
        return
    release = None if result.release is None else f"{result.release.model}/{result.release.version}"
    registered, message = None, result.message
    if result.status == "published":
        _await_record(order, result)
        store = Store(order.store)
        with (
            store.lock(f"register-{work.target_model}"),
            registry.errors(work.target_model),
            store.scratch() as scratch,
        ):
            done = register(result, _registration(order, work), order.tracking_uri, scratch)
        registered = f"{done.name}/{done.version}"
        message = f"{message}; registered as {done.name} version {done.version}; {done.alias}"
    queue.finish(
        work.key, _STATES[result.status], message, exit_code=result.exit_code, seconds=result.seconds,
        variant=result.chosen, release=release, registered=registered,
    )  # fmt: skip


def _await_record(order: Order, result: RunResult) -> None:
    """A record that waits in the spool is delivered now: what is registered belongs to its run."""
    if result.mlflow is None or result.mlflow.run_id is not None:
        return
    for delivery in sync(order.store / "records"):
        if delivery.job_id == result.job_id and delivery.run_id is not None:
            result.mlflow = result.mlflow.model_copy(update={"run_id": delivery.run_id, "spooled": None})
            return
    raise RegistryAwayError(f"the run {result.job_id} could not be recorded: {result.mlflow.spooled}")


def _registration(order: Order, work: Work) -> Registration:
    return Registration(work.key, work.model, work.version, work.target_model, order.champion)
