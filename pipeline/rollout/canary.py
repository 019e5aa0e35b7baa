"""A canary: the candidate's share is raised step by step, for as long as it is not worse."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from pipeline.rollout.document import Measure, StepEvidence, Verdict
from pipeline.rollout.evidence import Evidence, Margins, verdict_of
from pipeline.rollout.runtime_socket import FrontDoorSocket
from stages.deploy.front_door import CANDIDATE, STABLE
from stages.progress import Progress

__all__ = ["CanaryOptions", "take_steps"]

Percent = Annotated[int, Field(ge=1, le=99)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

_LOOK_EVERY_S = 0.5
_WARM_FROM_PERCENT = 40
_GROWTH = 1.05
"""How many times as many requests there are before one looks again: intervals hardly change before."""


class CanaryOptions(BaseModel):
    """When a candidate is let on, and when it is taken back.

    `steps`: its share of the requests (%), step by step; after the last it gets all. On each step the requests of both
    versions are compared until it is known, with `confidence` over all steps and however often one looks, that the
    candidate is worse by more than the margin, or that it is not. `max_slower`: a fraction of the stable version's
    latency, at each of `quantiles`, but never less than `slack_ms`. `max_errors`: added to the stable version's rate.

    A version that is asked seldom is colder than one that is asked all the time (caches, sleeping cores), and slower
    though it is the same: on steps with much less than half of the requests `cold_slack_ms` holds, and only a step near
    50 % compares like with like. Latencies of neighbouring requests are alike; of each version one in `spacing_ms`
    counts, and a step takes `step_at_least_s` seconds, unless there are too many errors.

    After `step_requests` of both versions or `step_s` seconds without an answer, `if_undecided` holds.
    `healthy_within_s`: for the candidate's health checks to pass at the beginning.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[tuple[Percent, ...], Field(min_length=1)] = (5, 25, 50)
    quantiles: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.5, 0.95)
    max_slower: Annotated[float, Field(ge=0)] = 0.25
    slack_ms: Annotated[float, Field(ge=0)] = 1.0
    cold_slack_ms: Annotated[float, Field(ge=0)] = 10.0
    max_errors: Fraction = 0.01
    confidence: Fraction = 0.95
    step_requests: PositiveInt = 200_000
    step_at_least_s: Annotated[float, Field(ge=0)] = 30.0
    spacing_ms: Annotated[float, Field(ge=0)] = 50.0
    step_s: Annotated[float, Field(gt=0)] = 3600.0
    if_undecided: Literal["roll-back", "promote"] = "roll-back"
    healthy_within_s: Annotated[float, Field(ge=0)] = 60.0

    def margins(self, percent: int) -> Margins:
        """What is allowed at a step."""
        return Margins(
            slower=self.max_slower,
            slack_ms=max(self.slack_ms, self.cold_slack_ms) if percent < _WARM_FROM_PERCENT else self.slack_ms,
            errors=self.max_errors,
            quantiles=self.quantiles,
            alpha=(1 - self.confidence) / len(self.steps),
        )


def take_steps(
    front: FrontDoorSocket, options: CanaryOptions, note: Callable[[StepEvidence], None], progress: Progress
) -> tuple[bool, str]:
    """Take the candidate through the steps. Returns whether it may have all of the traffic, and why.

    `note` is called with every step when it has ended. The weights are left as they are at the end of the last step
    that was taken. Raises `StageError` if the front door does not do what it is told.
    """
    if not _healthy(front, options.healthy_within_s):
        return False, f"the candidate was not healthy within {options.healthy_within_s:g} s; it got no request"
    for place, percent in enumerate(options.steps, 1):
        step = _step(front, percent, options, f"step {place} of {len(options.steps)}: {percent} %", progress)
        note(step)
        held = step.verdict == "not_worse" or (step.out_of_budget and options.if_undecided == "promote")
        if not held:
            return False, f"at {percent} % {step.reason}"
    return True, f"at {options.steps[-1]} % {step.reason}"


def _healthy(front: FrontDoorSocket, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not front.servers()[CANDIDATE].up:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True


def _step(front: FrontDoorSocket, percent: int, options: CanaryOptions, title: str, progress: Progress) -> StepEvidence:
    """Shift the traffic and watch until something is known, or the step's budget is spent.

    Every step is judged on its own requests: another share is another load.
    """
    started = time.monotonic()
    front.shift(percent)
    stream = front.stream()
    evidence, measures, looked_at = Evidence(options.spacing_ms), list[Measure](), 0
    verdict: Verdict = "undecided"
    try:
        while True:
            evidence.add(stream.take())
            seen = min(evidence.requests.values())
            spent = _spent(evidence, time.monotonic() - started, options)
            if spent or seen >= max(looked_at * _GROWTH, looked_at + 1):
                measures, looked_at = evidence.measures(options.margins(percent)), seen
                verdict = verdict_of(measures)
                if verdict != "undecided" and time.monotonic() - started < options.step_at_least_s:
                    # Failing clients are not made to wait until the others have been slow for long enough.
                    verdict = verdict_of(measures[:1]) if measures[0].verdict == "worse" else "undecided"
                    looked_at = 0
            progress.update(
                f"{title}, {evidence.requests[STABLE]} requests to stable, {evidence.requests[CANDIDATE]} to candidate"
            )
            if verdict != "undecided" or spent:
                reason = spent if verdict == "undecided" else _words(measures, verdict)
                break
            if trouble := _trouble(front, percent):
                verdict, reason = "undecided", trouble
                break
            time.sleep(_LOOK_EVERY_S)
    finally:
        stream.close()
    return StepEvidence(
        candidate_percent=percent,
        verdict=verdict,
        reason=reason,
        out_of_budget=verdict == "undecided" and bool(spent),
        seconds=round(time.monotonic() - started, 3),
        requests=evidence.requests,
        errors=evidence.errors,
        measures=measures or evidence.measures(options.margins(percent)),
    )


def _trouble(front: FrontDoorSocket, percent: int) -> str:
    """What ends a step at once, whatever the requests say; nothing if there is no such thing."""
    servers = front.servers()
    if not servers[CANDIDATE].up:
        return f"the candidate was not healthy any more ({servers[CANDIDATE].status})"
    if (servers[STABLE].weight, servers[CANDIDATE].weight) != (100 - percent, percent):
        return "somebody else has changed the weights"
    return ""


def _spent(evidence: Evidence, seconds: float, options: CanaryOptions) -> str:
    """Why the step ends without an answer; nothing if it goes on."""
    seen = sum(evidence.requests.values())
    if seen >= options.step_requests:
        return f"{seen} requests did not show whether the candidate is worse"
    if seconds >= options.step_s:
        return f"{seen} requests in {options.step_s:g} s did not show whether the candidate is worse"
    return ""


def _words(measures: list[Measure], verdict: Verdict) -> str:
    worse = [measure for measure in measures if measure.verdict == "worse"]
    if verdict == "not_worse":
        return "the candidate is not worse than the margin allows in " + ", ".join(m.name for m in measures)
    return "the candidate is worse in " + " and ".join(
        f"{measure.name} ({_number(measure.candidate.value)}, at least {_number(measure.candidate.low)}; "
        f"stable {_number(measure.stable.value)})"
        for measure in worse
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
