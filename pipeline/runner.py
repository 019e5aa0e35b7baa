"""The runner: takes the steps of a plan one after another, from the store or through a worker.

It knows keys, locks, workers and failures; it knows nothing of what a stage does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.plan import Choice, Step, stages_of
from pipeline.screen import Screen
from pipeline.store import Made, Store, StoredStep, step_description, step_key
from pipeline.worker import MEANT, WorkerError, preload, run_in_worker
from stages.artifact import Artifact
from stages.profile import Race, faster

__all__ = ["Failure", "Runner", "StepRecord"]

MEASURING = "measuring"
"""The lock that measurements of one store share: two at once would measure each other."""


@dataclass(frozen=True)
class Failure:
    """Why a step has no artifact."""

    step: str
    reason: str


@dataclass(frozen=True)
class StepRecord:
    """A step that was taken, for the result."""

    name: str
    stored: StoredStep


class Runner:
    """Runs plans on one store. `artifacts`, `failures` and `records` tell what came of it."""

    def __init__(
        self, store: Store, screen: Screen, host_digest: str, timeout_s: float, first_work: Callable[[], None]
    ) -> None:
        """`first_work` is called once, before the first step that is not in the store."""
        self._store = store
        self._screen = screen
        self._host_digest = host_digest
        self._timeout_s = timeout_s
        self._first_work: Callable[[], None] | None = first_work
        self.artifacts: dict[str, Artifact] = {}
        self.failures: dict[str, Failure] = {}
        self.records: list[StepRecord] = []
        self.races: dict[str, Race] = {}
        self.warnings: list[str] = []

    def give(self, name: str, artifact: Artifact) -> None:
        """Put in an artifact that no step makes."""
        self.artifacts[name] = artifact

    def run(self, plan: Sequence[Step | Choice]) -> None:
        """Take every step of the plan.

        A step whose failure is a variant's leaves a `Failure` and the run goes on; any other failure is raised.
        """
        # What two stages or more need is imported once, before workers are forked; the rest is their own affair.
        needs = Counter(module for stage in stages_of(plan) for module in set(stage.preload))
        preload([module for module, count in needs.items() if count > 1])
        for item in plan:
            if isinstance(item, Choice):
                self._choose(item)
            else:
                self._take(item)

    def _take(self, step: Step) -> Artifact | None:
        missing = [name for name in step.inputs.values() if name not in self.artifacts]
        needed = [name for name in missing if name not in step.optional]
        if needed:
            failure = self.failures[needed[0]]
            self.failures[step.name] = Failure(failure.step, failure.reason)
            return None
        inputs = {parameter: self.artifacts[name] for parameter, name in step.inputs.items() if name in self.artifacts}
        try:
            stored = self._stored(step, inputs)
        except (*MEANT, WorkerError) as error:
            reason = str(error) if isinstance(error, MEANT) else f"a bug: {error}"
            if step.variant is None:
                self._screen.failed(step.name, "")
                raise
            self._screen.failed(step.name, reason)
            self.failures[step.name] = Failure(step.name, reason)
            return None
        self.records.append(StepRecord(step.name, stored))
        self.artifacts[step.name] = stored.artifact
        return stored.artifact

    def _stored(self, step: Step, inputs: Mapping[str, Artifact]) -> StoredStep:
        description = step_description(step.stage, step.options, inputs, step.libraries, self._host_digest)
        key = step_key(description)
        found = None if step.stage.volatile else self._store.find(key)
        if found is None:
            if self._first_work is not None:
                self._first_work()
                self._first_work = None
            started = time.monotonic()
            with self._screen.step(step.name) as progress:

                def waiting() -> None:
                    self._screen.say(f"  … {step.name}: another run is doing this; waiting for it")

                def build(out: Path) -> Made:
                    def work() -> Made:
                        return run_in_worker(
                            step.stage.function, inputs, step.options, out, progress,
                            log=self._store.path / "logs" / f"{key[:16]}.log", timeout_s=self._timeout_s,
                        )  # fmt: skip

                    if not step.stage.host_bound:
                        return work()
                    with self._store.lock(MEASURING, waiting):
                        return work()

                found = self._store.make(key, description, build, again=step.stage.volatile, waiting=waiting)
            seconds = time.monotonic() - started
        else:
            seconds = found.made.seconds
        note = ""
        if found.cached and step.stage.host_bound:
            note = f"measured {found.made_at}"
        self._screen.done(step.name, seconds, found.cached, note)
        return found

    def _choose(self, choice: Choice) -> None:
        unfused, fused = self.artifacts.get(choice.unfused), self.artifacts.get(choice.fused)
        if unfused is None and fused is None:
            self.failures[choice.name] = self.failures[choice.unfused]
            return
        if fused is None or unfused is None or fused.digest == unfused.digest:
            chosen = unfused or fused
        elif choice.race is None:
            chosen = fused
        else:
            chosen = unfused
            measurement = self._take(choice.race)
            if measurement is None:
                self.warnings.append(f"{choice.variant}: fused and unfused could not be compared; unfused was taken")
            else:
                race = faster(measurement, "fused", over="unfused", batch=measurement.metadata["batch_sizes"][0])
                self.races[choice.name] = race
                # A tie goes to the unfused graph: standard operators, which every runtime can read.
                if race.decided and race.ratio > 1:
                    chosen = fused
        assert chosen is not None
        self.artifacts[choice.name] = chosen
