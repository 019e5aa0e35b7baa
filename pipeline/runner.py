"""The runner: takes the steps of a plan one after another, from the store or through a worker.

It knows keys, locks, workers and failures; it knows nothing of what a stage does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.plan import Choice, Step, form_name, stages_of
from pipeline.screen import Screen
from pipeline.store import Made, Store, StoredStep, step_description, step_key
from pipeline.worker import MEANT, WorkerError, preload, run_in_worker
from stages.artifact import Artifact
from stages.errors import StageError
from stages.profile import Race, faster

__all__ = ["Chosen", "Failure", "Runner", "StepRecord"]

MEASURING = "measuring"
"""The lock that measurements of one store share: two at once would measure each other."""


@dataclass(frozen=True)
class Failure:
    """Why a step has no artifact. `expected`: nothing went wrong, there was nothing to do."""

    step: str
    reason: str
    expected: bool = False


@dataclass(frozen=True)
class Chosen:
    """The form that a variant took, by its name in the `measurement` (a step) that its figures are from, and the race
    of fused over unfused, if any. Only forms of one measurement can race each other: in a later one `beside` is the
    variant, the baseline aside, that was measured again for that."""

    form: str
    race: Race | None
    measurement: str = "profile"
    beside: str | None = None


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
        self.choices: dict[str, Chosen] = {}

    def give(self, name: str, artifact: Artifact) -> None:
        """Put in an artifact that no step makes."""
        self.artifacts[name] = artifact

    def expect(self, plan: Sequence[Step | Choice]) -> None:
        """Say, before the first step of all, what is to come: what two steps or more need is then imported once, before
        workers are forked from it. The rest is their own affair."""
        needs = Counter(module for stage in stages_of(plan) for module in set(stage.preload))
        preload([module for module, count in needs.items() if count > 1])

    def run(self, plan: Sequence[Step | Choice]) -> None:
        """Take every step of the plan.

        A step that the run can do without leaves a `Failure` if it fails, and what depends on it is left out; the
        failure of any other step is raised.
        """
        for item in plan:
            if isinstance(item, Choice):
                self._choose(item)
            else:
                self._take(item)

    def _take(self, step: Step) -> None:
        if step.name in self.artifacts or step.name in self.failures:
            return  # an earlier plan of this run had it, too
        missing = [name for name in step.inputs.values() if name not in self.artifacts]
        needed = [name for name in missing if name not in step.optional]
        if needed:
            self.failures[step.name] = self.failures[needed[0]]
            return
        inputs = {parameter: self.artifacts[name] for parameter, name in step.inputs.items() if name in self.artifacts}
        try:
            stored = self._stored(step, inputs)
        except (*MEANT, WorkerError) as error:
            reason = str(error) if isinstance(error, MEANT) else f"a bug: {error}"
            if step.fails:
                self._screen.failed(step.name, "")
                if isinstance(error, StageError):
                    raise StageError(f"{step.name}: {error}") from error
                raise
            self._screen.failed(step.name, reason)
            self.failures[step.name] = Failure(step.name, reason)
            return
        self.records.append(StepRecord(step.name, stored))
        if step.unlike in self.artifacts and self.artifacts[step.unlike].digest == stored.artifact.digest:
            self.failures[step.name] = Failure(step.name, f"it changed nothing in {step.unlike}", expected=True)
            return
        self.artifacts[step.name] = stored.artifact

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
        """Decide between the two forms of a variant. What is not there, or could not be measured, is not taken."""
        measurement = self.artifacts[choice.measured] if choice.measured else None
        forms: dict[bool, Artifact] = {}
        for fused, step in ((False, choice.unfused), (True, choice.fused)):
            if step is None or step not in self.artifacts:
                continue
            if measurement is not None:
                error = measurement.metadata["variants"][form_name(choice.name, fused)]["error"]
                if error is not None:
                    self.failures[step] = Failure("profile", error)
                    continue
            forms[fused] = self.artifacts[step]
        if not forms:
            self.failures[choice.name] = self.failures[choice.unfused]
            return
        race = None
        if len(forms) == 2 and measurement is not None:
            candidate, over = form_name(choice.name, fused=True), form_name(choice.name, fused=False)
            race = faster(measurement, candidate, over, measurement.metadata["batch_sizes"][0])
        # A tie goes to the unfused graph: standard operators, which every runtime can read.
        fused = True in forms and (False not in forms or race is None or (race.decided and race.ratio > 1))
        self.artifacts[choice.name] = forms[fused]
        self.choices[choice.name] = Chosen(form_name(choice.name, fused and choice.measured is not None), race)
