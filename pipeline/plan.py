"""The plan: which steps a recipe asks for, in order, each naming the steps whose artifacts it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import BaseModel

from pipeline.recipe import DataRecipe, Recipe
from stages.check import CHECK, CheckOptions
from stages.convert import CONVERT, ConvertOptions
from stages.fuse import FUSE, FuseOptions
from stages.package import PACKAGE, PackageOptions
from stages.prepare import PREPARE, PrepareOptions
from stages.profile import PROFILE, ProfileOptions
from stages.stage import Stage
from stages.variants import BASELINE, QUANTISE, VariantConfig, parse_variant
from stages.verify import VERIFY, VerifyOptions

__all__ = ["Choice", "Step", "measuring_plan", "release_plan", "variants_of"]

RACE = replace(PROFILE, name="race")
"""A short profile of two graphs of one variant."""

RACE_BUDGET_S = 3.0
"""Most time for deciding between two graphs of one variant; a clear winner ends it earlier."""


@dataclass(frozen=True)
class Step:
    """One call of a stage. `inputs` maps the stage's parameters to the names of steps.

    `optional` inputs are left out if the steps that make them have failed; any other failed input fails the step.
    `variant` is the variant that fails with the step; None: the run fails with it.
    """

    name: str
    stage: Stage
    options: BaseModel
    inputs: Mapping[str, str]
    variant: str | None = None
    libraries: tuple[str, ...] = ()
    optional: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Choice:
    """Takes the unfused or the fused graph of a variant under the name `name`.

    `race` measures both; None takes `fused` without measuring. Where fusion changed nothing, nothing is raced.
    """

    name: str
    variant: str
    unfused: str
    fused: str
    race: Step | None


def variants_of(recipe: Recipe) -> list[VariantConfig]:
    """The baseline and the recipe's variants, baseline first."""
    others = [variant for variant in recipe.variants if variant.name != BASELINE]
    return [parse_variant(BASELINE), *others]


def measuring_plan(recipe: Recipe, *, evaluation_data: bool) -> list[Step | Choice]:
    """From the artifact `source` (and `evaluation-data`, if there is one) to checks and a profile of every variant."""
    convert = ConvertOptions(allow_pickle=recipe.allow_pickle, trust_remote_code=recipe.trust_remote_code)
    plan: list[Step | Choice] = [
        Step("convert", CONVERT, convert, {"source": "source"}),
        _prepare(recipe.evaluation, evaluation_data),
    ]
    if recipe.fuse != "never":
        # Not being able to fuse costs speed, not the run: the unfused graphs remain.
        plan.append(Step("fuse", FUSE, FuseOptions(), {"model": "convert"}, variant="(fused graphs)"))
    names = [variant.name for variant in variants_of(recipe)]
    for variant in variants_of(recipe):
        plan += _forms(recipe, variant)
    for variant in variants_of(recipe):
        inputs = {"model": variant.name, "data": "prepare"}
        if variant.name != BASELINE:
            inputs["reference"] = f"check {BASELINE}"
        options = CheckOptions(
            metric=recipe.evaluation.metric if recipe.evaluation else None,
            runtime=variant.runtime,
            threads=recipe.profile.threads,
        )
        # Without the baseline there is nothing to compare with: its failure is the run's.
        fails = None if variant.name == BASELINE else variant.name
        plan.append(Step(f"check {variant.name}", CHECK, options, inputs, fails))
    profile = ProfileOptions(
        baseline=BASELINE,
        batch_sizes=recipe.profile.batch_sizes,
        budget_s=recipe.profile.budget,
        threads=recipe.profile.threads,
    )
    plan.append(
        Step(
            "profile", PROFILE, profile, {"data": "prepare", **{name: name for name in names}},
            optional=frozenset(names) - {BASELINE},
        )
    )  # fmt: skip
    return plan


def _prepare(data: DataRecipe | None, given: bool) -> Step:
    inputs = {"model": "convert"}
    if given:
        inputs["data"] = "evaluation-data"
    if data is None:
        options = PrepareOptions(role="evaluation")
    else:
        options = PrepareOptions(
            role="evaluation", columns=data.columns, samples=data.samples, max_length=data.max_length, seed=data.seed
        )
    return Step("prepare", PREPARE, options, inputs)


def _forms(recipe: Recipe, variant: VariantConfig) -> list[Step | Choice]:
    """The steps that make one variant: of the unfused graph, of the fused one, and the choice between them."""
    fails = None if variant.name == BASELINE else variant.name

    def made_from(model: str, suffix: str) -> Step:
        return Step(f"{variant.name}{suffix}", QUANTISE, variant, {"model": model}, fails, libraries=variant.libraries)

    if recipe.fuse == "never":
        return [made_from("convert", "")]
    unfused, fused = f"{variant.name} unfused", f"{variant.name} fused"
    race = Step(
        f"race {variant.name}",
        RACE,
        ProfileOptions(
            baseline="unfused",
            batch_sizes=recipe.profile.batch_sizes[:1],
            budget_s=RACE_BUDGET_S,
            threads=recipe.profile.threads,
            until="decided",
        ),
        {"data": "prepare", "unfused": unfused, "fused": fused},
        variant=variant.name,
    )
    return [
        made_from("convert", " unfused"),
        made_from("fuse", " fused"),
        Choice(variant.name, variant.name, unfused, fused, race if recipe.fuse == "measure" else None),
    ]


def release_plan(recipe: Recipe, name: str, winner: str, typical_length: int) -> list[Step]:
    """From the chosen variant to a release that a real server has answered from."""
    package = PackageOptions(
        name=name,
        max_batch_size=recipe.serving.max_batch_size,
        max_queue_delay_us=round(recipe.serving.max_queue_delay * 1e6),
        threads=recipe.serving.threads,
        typical_length=typical_length,
    )
    steps = [Step("package", PACKAGE, package, {"model": winner})]
    if recipe.verify:
        inputs = {"release": "package", "model": winner, "data": "prepare"}
        steps.append(Step("verify", VERIFY, VerifyOptions(), inputs))
    return steps


def stages_of(plan: Sequence[Step | Choice]) -> list[Stage]:
    """The stages that a plan may call, a stage once for every step."""
    steps = [step.race if isinstance(step, Choice) else step for step in plan]
    return [step.stage for step in steps if step is not None]
