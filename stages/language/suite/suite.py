"""The stage `suite`: what a language model can do, task by task, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from calibration.language import load_language_tokenizer
from stages.artifact import Artifact
from stages.check.per_sample import PerSample
from stages.errors import InputError
from stages.language.checkpoint import Checkpoint
from stages.language.session import open_language
from stages.language.suite.harness import ask
from stages.progress import SILENT, Progress
from stages.stage import Stage

__all__ = ["SUITE", "SUITE_KIND", "SuiteOptions", "locate_suite", "suite", "task_results"]

SUITE_KIND = "suite"
_FILE = "tasks.npz"


class SuiteOptions(BaseModel):
    """`tasks` by name, none: all that there are. `samples`: the first so many of each, None: all. `few_shot`: examples
    before a question, None: as a task says. `seed` draws them. `threads`: 0 = every core of the process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = ()
    samples: PositiveInt | None = None
    few_shot: NonNegativeInt | None = None
    seed: int = 0
    threads: NonNegativeInt = 0


def locate_suite(reference: str) -> Artifact:
    """A folder of tasks where it lies, with the files of data that they name, as an artifact of kind `suite`.

    Raises `InputError` if there is no such folder, or no YAML file in it.
    """
    folder = Path(reference)
    if not folder.is_dir():
        raise InputError(f"{reference} is no folder; a suite is a folder of tasks for lm-evaluation-harness (YAML)")
    if not any(folder.rglob("*.yaml")):
        raise InputError(f"there is no task in {reference}: a task is a YAML file with the key `task`")
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts  # tasks may bring functions
    ]
    return Artifact.of_files(folder.absolute(), SUITE_KIND, {"name": folder.resolve().name}, names=names)


def suite(model: Artifact, tasks: Artifact, options: SuiteOptions, out: Path, progress: Progress = SILENT) -> Artifact:
    """Have a checkpoint, loaded from where it lies, do tasks. Returns an artifact of kind `suite-results`.

    `tasks.npz` has an array for each task: [samples] float64, what each sample scored, 0 to 1. The metadata: `tasks`, a
    list of `name`, `metric`, `value` (the mean) and `samples`.

    Raises `InputError` as `stages.language.suite.harness.ask` does, `RequirementError` if lm-eval is not installed.
    """
    if tasks.kind != SUITE_KIND:
        raise InputError(f"{tasks.path} is a {tasks.kind}, not a suite of tasks")
    checkpoint = Checkpoint.of(model)
    tokenizer = load_language_tokenizer(model.path, trust_remote_code=checkpoint.trust_remote_code)
    with open_language(model, options.threads) as session:
        answers = ask(
            session,
            tokenizer,
            checkpoint.positions,
            tasks.path,
            options.tasks,
            samples=options.samples,
            few_shot=options.few_shot,
            seed=options.seed,
            told=lambda count: progress.update("answering", count),
        )
    np.savez_compressed(out / _FILE, **{name: scores for name, (_, scores) in answers.items()})  # type: ignore[arg-type]
    metadata = {
        "tasks": [
            {"name": name, "metric": metric, "value": float(scores.mean()), "samples": len(scores)}
            for name, (metric, scores) in answers.items()
        ],
    }
    return Artifact.write(out, "suite-results", metadata, {"model": model, "tasks": tasks})


def task_results(results: Artifact) -> Mapping[str, PerSample]:
    """What the gate reads of each task, by its name. Raises `InputError` for an artifact of another kind."""
    if results.kind != "suite-results":
        raise InputError(f"{results.path} is a {results.kind}, not the results of a suite")
    told: list[dict[str, Any]] = results.metadata["tasks"]
    with np.load(results.path / _FILE, allow_pickle=False) as arrays:
        return {
            task["name"]: PerSample(
                samples=task["samples"],
                data=f"{results.made_from['tasks']}/{task['name']}",
                metric=task["metric"],
                form="ratio",
                statistics=np.column_stack([arrays[task["name"]], np.ones(task["samples"])]),
            )
            for task in told
        }


SUITE = Stage(
    name="suite",
    revision=1,
    function=suite,
    libraries=("datasets", "lm-eval"),  # the runtime's come with the step
    preload=("stages.language.runtime.preload",),
    host_bound=True,
)
