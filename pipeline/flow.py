"""What a model goes through, by what it is: a graph, or a language model that generates text.

Runner, gate, select, records and report are the same for both. A flow says which steps there are, and which variant is
the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import language_plan, plan
from pipeline.plan import Choice, Step
from pipeline.recipe import Recipe
from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.variant import LanguageVariant
from stages.model import Model, Task
from stages.variant import Variant
from stages.variants import BASELINE, GRAPH_VARIANTS, LANGUAGE_VARIANTS, ORIGINAL, VariantConfig

__all__ = ["Flow", "flow_of", "resolve"]


@dataclass(frozen=True)
class Flow:
    """The steps of one kind of model.

    `groundwork`: what all variants are made from and judged on. `judging`: from there to a profile and checks of every
    variant. `release`: from the chosen variant, by its name in the artifacts of the run, to what is published.
    `make`: the steps that may have made a variant. `rank`: the one that finds what in a variant loses the most, from
    the step that made it and the name of the data to try it on. `check` evaluates a variant that the named step made.
    `suites`: what a variant is judged by besides, under its own name. `profile` measures what the named steps made, by
    their names in the measurement.
    """

    baseline: str
    variants: Callable[[Recipe], Sequence[Variant]]
    groundwork: Callable[[Recipe], list[Step | Choice]]
    judging: Callable[[Recipe], list[Step | Choice]]
    release: Callable[[Recipe, str, str, Mapping[str, Artifact]], list[Step]]
    make: Callable[[Recipe, Any], list[Step]]
    rank: Callable[[Recipe, Any, Step, str], Step]
    check: Callable[[Recipe, Any, str], Step]
    suites: Callable[[Recipe, Any], list[Step]]
    profile: Callable[[Recipe, Mapping[str, str]], Step]

    def measuring(self, recipe: Recipe) -> list[Step | Choice]:
        """From the artifact `source` (and the data that the recipe names, `evaluation-data` and `calibration-data`) to
        a profile and checks of every variant."""
        return self.groundwork(recipe) + self.judging(recipe)


def _release_of_graph(recipe: Recipe, name: str, winner: str, artifacts: Mapping[str, Artifact]) -> list[Step]:
    """Before there are artifacts, what is said of the steps is that of a graph for ONNX Runtime."""
    if winner not in artifacts:
        return plan.release_plan(recipe, name, winner, 1)
    tokens = artifacts["prepare"].metadata.get("tokens")
    typical_length = max(1, round(tokens["mean"])) if tokens else 16
    return plan.release_plan(recipe, name, winner, typical_length, Model.of(artifacts[winner]).runtime)


_GRAPHS = Flow(
    baseline=BASELINE,
    variants=plan.variants_of,
    groundwork=plan.groundwork,
    judging=plan.judging_plan,
    release=_release_of_graph,
    make=lambda recipe, variant: plan.forms_of(recipe, variant)[0],
    rank=plan.rank_step,
    check=lambda recipe, variant, model: plan.check_step(recipe, variant, model=model),
    suites=lambda recipe, variant: [],
    profile=plan.profile_step,
)
_LANGUAGE = Flow(
    baseline=ORIGINAL,
    variants=language_plan.variants_of,
    groundwork=language_plan.groundwork,
    judging=language_plan.judging_plan,
    release=language_plan.release_plan,
    make=lambda recipe, variant: [language_plan.make_step(variant)],
    rank=language_plan.rank_step,
    check=language_plan.check_step,
    suites=language_plan.suite_steps,
    profile=language_plan.profile_step,
)


def flow_of(recipe: Recipe) -> Flow:
    """The flow of a recipe whose task is known (`resolve`)."""
    return _LANGUAGE if recipe.task == "text-generation" else _GRAPHS


def resolve(recipe: Recipe, task: Task | None) -> Recipe:
    """The recipe for a model whose task has been found: with that task, and with what a language model takes where the
    recipe says nothing.

    Raises `InputError` if it names variants that cannot be made of such a model.
    """
    if task != "text-generation":
        _refuse(recipe, LanguageVariant, f"the task {task}" if task else "a graph", list(GRAPH_VARIANTS))
        if recipe.suite is not None:
            raise InputError("a suite of tasks is for language models that generate text, and this is none")
        return recipe
    if recipe.target != "cpu":
        raise InputError(
            f"a language model that generates text is not made for the target {recipe.target}: its variants are "
            "quantised and judged with `target: cpu`, and served by vLLM or Triton on what you have"
        )
    resolved = language_plan.with_defaults(recipe.model_copy(update={"task": task}))
    _refuse(resolved, VariantConfig, "a language model that generates text", list(LANGUAGE_VARIANTS))
    return resolved


def _refuse(recipe: Recipe, kind: type[Variant], what: str, there_are: list[str]) -> None:
    if recipe.variants == "auto":
        return
    for variant in recipe.variants:
        if isinstance(variant, kind):
            raise InputError(f"the variant {variant.name} is not for {what}; for that there are {', '.join(there_are)}")
