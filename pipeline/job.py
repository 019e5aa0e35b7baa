"""A job: one model through the whole flow. Everything that touches the world is called from here, in order."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from model_repository.errors import RepositoryError, ServerError
from pipeline.account import account
from pipeline.fallback import Search, fall_back, tell
from pipeline.flow import Flow, flow_of, resolve
from pipeline.front import front
from pipeline.outcome import Outcome, judge_variants
from pipeline.plan import Step
from pipeline.publish import make_images_of, publish
from pipeline.recipe import DataRecipe, Recipe
from pipeline.records import Recorder
from pipeline.report import write_report
from pipeline.result import RunResult, Status
from pipeline.runner import Failure, Runner
from pipeline.screen import QUIET, Screen
from pipeline.search import survey
from pipeline.searched import CandidateResult
from pipeline.store import Store, default_store
from stages.artifact import Artifact, link
from stages.errors import RequirementError, StageError
from stages.host import fingerprint_digest, host_fingerprint
from stages.language.suite import locate_suite
from stages.prepare import COLLECT, CollectOptions, locate_data
from stages.select import select
from stages.source import SOURCE, SourceOptions, locate, suggest_name
from stages.target import lacking
from stages.variant import Variant

__all__ = ["run"]

_RUN_FAILS = (StageError, RepositoryError, ServerError, RequirementError)


def run(
    recipe: Recipe,
    *,
    store: Path | None = None,
    screen: Screen = QUIET,
    record: bool = True,
    report: Path | None = None,
) -> RunResult:
    """Take the recipe's model through the whole flow and publish the best variant that passes its gates.

    Finished steps are taken from `store`. The result tells what happened, also when nothing was published
    (`status`, `exit_code`). Raises `InputError` and `DataError` if the model, the recipe or the data are wrong.
    """
    return _Job(recipe, Store(store or default_store()), screen, record, report).run()


class _Job:
    def __init__(self, recipe: Recipe, store: Store, screen: Screen, record: bool, report: Path | None) -> None:
        self.recipe = recipe
        self.flow: Flow = flow_of(recipe)
        self.store = store
        self.screen = screen
        self.report = report
        self.started = time.monotonic()
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.name = recipe.name or suggest_name(recipe.model)
        self.host = host_fingerprint()
        self.recorder = (
            Recorder(store.path / "records", recipe.tracking_uri, models=recipe.logged_models) if record else None
        )
        self.runner = Runner(store, screen, fingerprint_digest(self.host), recipe.step_timeout, self._first_work)
        self.outcome = Outcome([], [])
        self.searches: list[Search] = []
        self.candidates: list[CandidateResult] = []
        self.chosen: str | None = None
        self.warnings: list[str] = []

    def _first_work(self) -> None:
        """MLflow takes seconds to import: that begins beside the first step that has to be made."""
        if self.recorder is not None:
            self.recorder.start()

    def run(self) -> RunResult:
        try:
            return self._run()
        finally:
            if self.recorder is not None:
                self.recorder.close()

    def _run(self) -> RunResult:
        self._give_source()
        self._give_data()
        self._ensure_verifiable()
        lacks = self._leave_out()
        try:
            self.runner.run(self.flow.groundwork(self.recipe))
            if self.recipe.variants == "auto":
                self._search()
            self.runner.run(self.flow.judging(self.recipe))
        except _RUN_FAILS as error:
            self.outcome = judge_variants(self.recipe, self.runner)
            return self._failed(error)
        self.outcome = judge_variants(self.recipe, self.runner)
        if lacks is not None:
            return self._not_run(lacks)
        self._fall_back()
        winner = select(self.outcome.candidates, self.recipe.objective)
        if winner is None:
            return self._finish(self._result("none_passed", 3, "no variant passed its gates: nothing was published"))
        self.chosen = winner.name
        try:
            self.runner.run(self.flow.release(self.recipe, self.name, winner.name, self.runner.artifacts))
            return self._publish(winner.name)
        except _RUN_FAILS as error:
            return self._failed(error)

    def _ensure_verifiable(self) -> None:
        if self.recipe.target != "cpu" and self.recipe.verify and lacking(self.recipe.target) is None:
            raise RequirementError(
                f"the Triton that this machine can make runs nothing for the target {self.recipe.target}, so a release "
                "cannot be verified before it is published: say --no-verify, and try it with the server that it is for"
            )

    def _leave_out(self) -> str | None:
        """Say of each step that this machine cannot take that it was not run, and why. Returns the first reason."""
        reason = None
        for step in self.flow.measuring(self.recipe):
            if isinstance(step, Step) and step.lacks is not None:
                reason = reason or step.lacks
                self.runner.failures[step.name] = Failure(step.name, step.lacks, expected=True)
                self.screen.say(f"  - {step.name}: not run: {step.lacks}")
        return reason

    def _not_run(self, lacks: str) -> RunResult:
        """The end where the target is not on this machine. What it takes to go on elsewhere is kept with the job."""
        result = self._result("failed", 5, "")
        kits = self.store.job(result.job_id).resolve() / "kit"
        names = []
        for name, artifact in self.runner.artifacts.items():
            if artifact.kind == "build-kit":
                names.append(name.removeprefix("kit "))
                _put(artifact, kits / names[-1])
        result.message = (
            f"the target {self.recipe.target} {lacks}. The variants were made and evaluated on the CPU; none was "
            f"{'compiled or measured' if names else 'measured'}, and nothing was published"
        )
        if names:
            result.message += (
                f". What builds the engines on a machine with a GPU lies in {kits}: the graph and build.sh of "
                f"{', '.join(names)}"
            )
        return self._finish(result)

    def _search(self) -> None:
        asked, self.recipe = self.recipe, self.recipe.model_copy(update={"variants": ()})
        found = survey(asked, self.runner, self.screen, self.started + asked.search_budget)
        self.recipe, self.candidates = found.recipe, found.candidates

    def _fall_back(self) -> None:
        self.searches = fall_back(self.recipe, self.runner, self.outcome)
        if self.searches:
            self.outcome = judge_variants(self.recipe, self.runner, self._found())
            self.warnings += tell(self.searches, self.outcome.rows, self.recipe.objective)

    def _found(self) -> list[Variant]:
        return [search.found for search in self.searches if search.found is not None]

    def _give_source(self) -> None:
        """Find the model, and with it what is to be done."""
        recipe = self.recipe
        found = locate(recipe.model, task=recipe.task, allow_pickle=recipe.allow_pickle)
        if found is None:
            self.runner.expect(self.flow.measuring(recipe))
            found = self._fetched()
        self.recipe = resolve(recipe, found.metadata.get("task"))
        self.flow = flow_of(self.recipe)
        self.runner.expect(self.flow.measuring(self.recipe))
        self.runner.give("source", found)

    def _fetched(self) -> Artifact:
        recipe = self.recipe
        options = SourceOptions(
            reference=recipe.model,
            task=recipe.task,
            allow_pickle=recipe.allow_pickle,
            trust_remote_code=recipe.trust_remote_code,
            tracking_uri=self._tracking_uri(),
        )
        self.runner.run([Step("source", SOURCE, options, {})])
        return self.runner.artifacts["source"]

    def _tracking_uri(self) -> str | None:
        return self.recorder.tracking_uri if self.recorder else self.recipe.tracking_uri

    def _give_data(self) -> None:
        if self.recipe.evaluation is not None:
            self.runner.give("evaluation-data", self._data("evaluation-data", self.recipe.evaluation))
        if self.recipe.calibration is not None:
            if any(variant.needs_data for variant in self.flow.variants(self.recipe)):
                self.runner.give("calibration-data", self._data("calibration-data", self.recipe.calibration))
            else:
                self.warnings.append("no variant of this run learns from calibration data; they were not read")
        if self.recipe.suite is not None:
            self.runner.give("suite-data", locate_suite(self.recipe.suite.path))

    def _data(self, name: str, data: DataRecipe) -> Artifact:
        found = locate_data(data.path)
        if found is not None:
            return found
        options = CollectOptions(reference=data.path, tracking_uri=self._tracking_uri())
        self.runner.run([Step(name, COLLECT, options, {})])
        return self.runner.artifacts[name]

    def _publish(self, winner: str) -> RunResult:
        result = self._result("published", 0, "")

        def record() -> None:
            if self.recorder is not None:
                result.mlflow = self.recorder.deliver(result, running=True)

        variants = [*self.flow.variants(self.recipe), *self._found()]
        variant = next(variant for variant in variants if variant.name == winner)
        publish(self.recipe, self.runner, self.name, variant, result, record)
        if self.recipe.image is not None:
            make_images_of(self.recipe.image, result, lambda text: self.screen.say(f"  {text}"))
        return self._finish(result)

    def _failed(self, error: Exception) -> RunResult:
        return self._finish(self._result("failed", 5 if isinstance(error, RequirementError) else 4, str(error)))

    def _finish(self, result: RunResult) -> RunResult:
        """Write the report, record the run and keep the result."""
        result.seconds = time.monotonic() - self.started
        profile = self.runner.artifacts.get("profile")
        path = self._report_path(result)
        result.report = str(path)
        known = self.recorder.known(result) if self.recorder is not None else None
        if known is not None:
            result.mlflow = known
        write_report(result, path, None if profile is None else profile.path / "latencies.npz")
        if self.report is not None:
            shutil.copyfile(path, self.report)
            result.report = str(self.report)
        if self.recorder is not None and known is None:
            result.mlflow = self.recorder.deliver(result, report=path)
        (path.parent / "result.json").write_text(result.model_dump_json(indent=1))
        return result

    def _report_path(self, result: RunResult) -> Path:
        return self.store.job(result.job_id) / "report.html"

    def _result(self, status: Status, exit_code: int, message: str) -> RunResult:
        result = account(self.recipe, self.runner, self.outcome, self.host)
        result.status, result.exit_code, result.message = status, exit_code, message
        result.model, result.chosen, result.started_at = self.name, self.chosen, self.started_at
        result.front = front(self.recipe, self.runner, result.variants)
        result.candidates = self.candidates
        result.fallbacks = [search.told for search in self.searches]
        result.warnings[:0] = self.warnings
        return result


def _put(artifact: Artifact, folder: Path) -> None:
    """The files of an artifact in `folder`, in place of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in artifact.files:
        link(artifact.path / name, folder / name)
