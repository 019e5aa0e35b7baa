"""Driving a rollout: from a deployment that runs to a decision, acted upon and told."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from pipeline.rollout.canary import CanaryOptions, take_steps
from pipeline.rollout.document import Mode, RolloutResult, Status, StepEvidence
from pipeline.rollout.runtime_socket import FrontDoorSocket
from pipeline.rollout.shadow import ShadowOptions, compare_answers, live_questions, stored_questions
from stages.deploy.deployment import Deployment
from stages.deploy.front_door import CANDIDATE
from stages.errors import InputError, RequirementError, StageError
from stages.progress import SILENT, Progress

__all__ = ["mode_of", "rollout"]

_LOCK = "rollout.lock"
_MODES: dict[str, Mode] = {"canary": "canary", "shadow": "shadow", "blue-green": "promote"}


def mode_of(deployment: Deployment) -> Mode:
    """What a deployment was rendered for."""
    return _MODES[deployment.strategy]


def rollout(
    folder: Path,
    *,
    mode: Mode | None = None,
    canary: CanaryOptions | None = None,
    shadow: ShadowOptions | None = None,
    progress: Progress = SILENT,
) -> RolloutResult:
    """Drive the rollout of the deployment in `folder`, which must be running, and act on what is found.

    `mode`: `canary` raises the candidate's share step by step and ends with all or nothing; `shadow` compares answers
    and leaves the traffic alone; `promote` and `roll-back` shift it at once, which is blue-green. By default what the
    deployment was rendered for.

    Ctrl-C gives the stable version all of the traffic back, and the result says so; so does every error, before it is
    raised. Raises `InputError` if the deployment has no candidate or no front door, or another rollout drives it,
    `RequirementError` if no front door answers, `StageError` if it does not do what it is told.
    """
    deployment = Deployment.read(folder)
    if deployment.run is None:
        raise InputError(f"{folder} is a deployment to {deployment.target}: what drives it there is in its README.md")
    if deployment.candidate is None:
        raise InputError(f"{folder} has no candidate: render it again with --candidate VERSION")
    run = folder / deployment.run
    front = FrontDoorSocket(run)
    front.servers()
    mode = mode or mode_of(deployment)
    with _alone(run) if mode != "roll-back" else contextlib.nullcontext():  # which may be needed in a hurry
        return _rollout(deployment, front, run, mode, canary, shadow, progress)


def _rollout(
    deployment: Deployment,
    front: FrontDoorSocket,
    run: Path,
    mode: Mode,
    canary: CanaryOptions | None,
    shadow: ShadowOptions | None,
    progress: Progress,
) -> RolloutResult:
    assert deployment.candidate is not None
    canary, shadow = canary or CanaryOptions(), shadow or ShadowOptions()
    result = RolloutResult(
        status="rolled_back",
        exit_code=3,
        reason="",
        mode=mode,
        model=deployment.model,
        stable_version=deployment.stable.version,
        candidate_version=deployment.candidate.version,
        candidate_percent=0,
        options=_options(canary if mode == "canary" else shadow if mode == "shadow" else None),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0.0,
    )
    started = time.monotonic()
    try:
        _drive(front, run, result, canary, shadow, progress)
    except KeyboardInterrupt:
        result.interrupted = True
        if mode == "shadow":
            _end(result, "refused", "interrupted before enough answers were compared; no traffic was shifted")
        else:
            front.shift(0)
            _end(result, "rolled_back", "interrupted: the stable version has all of the traffic again")
    result.candidate_percent = _percent(front)
    result.seconds = round(time.monotonic() - started, 3)
    return result


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Two rollouts of one deployment would shift the traffic to and fro."""
    with (run / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another rollout drives {run.parent}: wait for it, end it with Ctrl-C, or take the traffic back at "
                "once with --mode roll-back"
            ) from error
        yield


def _drive(
    front: FrontDoorSocket,
    run: Path,
    result: RolloutResult,
    canary: CanaryOptions,
    shadow: ShadowOptions,
    progress: Progress,
) -> None:
    if result.mode == "shadow":
        _compare(front, run, result, shadow, progress)
    elif result.mode == "roll-back":
        front.shift(0)
        _end(result, "rolled_back", "asked to: the stable version has all of the traffic", exit_code=0)
    elif result.mode == "promote":
        state = front.servers()[CANDIDATE]
        if not state.up:
            raise StageError(f"the candidate is not healthy ({state.status}); it gets no traffic")
        front.shift(100)
        _end(result, "promoted", "asked to: the candidate has all of the traffic")
    else:
        _canary(front, result, canary, progress)


def _canary(front: FrontDoorSocket, result: RolloutResult, options: CanaryOptions, progress: Progress) -> None:
    def note(step: StepEvidence) -> None:
        result.steps.append(step)

    try:
        held, reason = take_steps(front, options, note, progress)
    except BaseException as error:
        _go_back(front, error)
        raise
    front.shift(100 if held else 0)
    _end(result, "promoted" if held else "rolled_back", reason)


def _go_back(front: FrontDoorSocket, why: BaseException) -> None:
    try:
        front.shift(0)
    except (RequirementError, StageError) as gone:
        raise StageError(
            f"the rollout broke off, and the traffic could not be given back to the stable version: {gone}. When the "
            "front door runs again, it has the weights of before: run `optimize rollout` with --mode roll-back at once"
        ) from why


def _compare(
    front: FrontDoorSocket, run: Path, result: RolloutResult, options: ShadowOptions, progress: Progress
) -> None:
    if options.data is not None:
        questions = stored_questions(result.model, options.data)
    else:
        questions = live_questions(front, options.seconds)
    agreement = compare_answers(run, questions, options, progress)
    result.agreement = agreement
    told = f"{agreement.differing} of {agreement.samples} answers differ by more than {agreement.tolerance:g}"
    if agreement.verdict == "not_worse":
        _end(result, "agreed", told)
    elif agreement.verdict == "worse":
        _end(result, "refused", f"{told}; first: {agreement.examples[0]}")
    else:
        most = agreement.differing_rate.high
        _end(
            result,
            "refused",
            f"{told}: too few to know that at most {agreement.max_differing:.2%} do (up to {most:.2%})",
        )


def _end(result: RolloutResult, status: Status, reason: str, exit_code: int | None = None) -> None:
    result.status, result.reason = status, reason
    result.exit_code = (0 if status in ("promoted", "agreed") else 3) if exit_code is None else exit_code


def _percent(front: FrontDoorSocket) -> int:
    servers = front.servers()
    total = sum(server.weight for server in servers.values())
    return round(100 * servers[CANDIDATE].weight / total) if total else 0


def _options(options: BaseModel | None) -> dict[str, str | int | float | bool | list[int] | list[float] | None]:
    return {} if options is None else options.model_dump(mode="json")
