"""The plan: which steps a recipe asks for, in order, each naming the steps whose artifacts it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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

__all__ = ["Choice", "Step", "form_name", "measuring_plan", "release_plan", "stages_of", "variants_of"]

CALLS_FOR_P99 = 400
"""So many calls bound the 99th percentile from above with 95 % confidence (it takes 368)."""


@dataclass(frozen=True)
class Step:
    """One call of a stage. `inputs` maps the stage's parameters to the names of steps.

    `optional` inputs are left out if the steps that make them gave nothing; any other such input fails the step.
    `fails`: whether the run fails with the step; else only what depends on it does.
    `unlike`: a step whose artifact this one's must differ from; if it does not, this step gave nothing.
    """

    name: str
    stage: Stage
    options: BaseModel
    inputs: Mapping[str, str]
    fails: bool = True
    libraries: tuple[str, ...] = ()
    optional: frozenset[str] = field(default_factory=frozenset)
    unlike: str | None = None


@dataclass(frozen=True)
class Choice:
    """Takes the unfused or the fused form of a variant under the variant's name.

    `measured` names the step that measured both; None takes the fused one, wherever fusion gave one.
    """

    name: str
    unfused: str
    fused: str | None
    measured: str | None


def variants_of(recipe: Recipe) -> list[VariantConfig]:
    """The baseline and the recipe's variants, baseline first."""
    others = [variant for variant in recipe.variants if variant.name != BASELINE]
    return [parse_variant(BASELINE), *others]


def measuring_plan(recipe: Recipe, *, evaluation_data: bool) -> list[Step | Choice]:
    """From the artifact `source` (and `evaluation-data`, if there is one) to a profile and checks of every variant.

    All forms of all variants are measured together, once; which graph a variant takes is read from that.
    """
    variants = variants_of(recipe)
    convert = ConvertOptions(allow_pickle=recipe.allow_pickle, trust_remote_code=recipe.trust_remote_code)
    plan: list[Step | Choice] = [
        Step("convert", CONVERT, convert, {"source": "source"}),
        _prepare(recipe.evaluation, evaluation_data),
    ]
    if recipe.fuse != "never":
        # Not being able to fuse costs speed, not the run: the unfused graphs remain.
        plan.append(Step("fuse", FUSE, FuseOptions(), {"model": "convert"}, fails=False, unlike="convert"))
    choices = []
    for variant in variants:
        made, choice = _forms(recipe, variant)
        plan += made
        choices.append(choice)
    if recipe.fuse == "measure":
        forms = {name: step for choice in choices for name, step in _measured_forms(choice)}
        plan += [_profile(recipe, forms), *choices]
    else:
        plan += [*choices, _profile(recipe, {choice.name: choice.name for choice in choices})]
    return plan + [_check(recipe, variant) for variant in variants]


def form_name(variant: str, fused: bool) -> str:
    """What a form of a variant is called in a measurement."""
    return f"{variant}+fused" if fused else variant


def _measured_forms(choice: Choice) -> list[tuple[str, str]]:
    forms = [(form_name(choice.name, fused=False), choice.unfused)]
    return forms if choice.fused is None else [*forms, (form_name(choice.name, fused=True), choice.fused)]


def _prepare(data: DataRecipe | None, given: bool) -> Step:
    inputs = {"model": "convert"}
    if given:
        inputs["data"] = "evaluation-data"
    if data is None:
        options = PrepareOptions(role="evaluation")
    else:
        options = PrepareOptions(
            role="evaluation",
            columns=data.columns,
            samples=data.samples,
            seed=data.seed,
            max_length=data.max_length,
            metric=data.metric,
        )
    return Step("prepare", PREPARE, options, inputs)


def _forms(recipe: Recipe, variant: VariantConfig) -> tuple[list[Step], Choice]:
    """The steps that make a variant from the unfused and from the fused graph, and the choice between the two."""
    measured = "profile" if recipe.fuse == "measure" else None
    fuse = recipe.fuse != "never"
    if variant.name == BASELINE:  # it is the graphs themselves
        return [], Choice(variant.name, "convert", "fuse" if fuse else None, measured)

    def step(name: str, model: str, unlike: str | None = None) -> Step:
        return Step(
            name, QUANTISE, variant, {"model": model}, fails=False, libraries=variant.libraries, unlike=unlike
        )  # fmt: skip

    unfused, fused = f"make {variant.name}", f"make {variant.name} fused"
    if not fuse:
        return [step(unfused, "convert")], Choice(variant.name, unfused, None, measured)
    steps = [step(unfused, "convert"), step(fused, "fuse", unlike=unfused)]
    return steps, Choice(variant.name, unfused, fused, measured)


def _profile(recipe: Recipe, forms: Mapping[str, str]) -> Step:
    needs_p99 = recipe.gates.max_p99 is not None
    options = ProfileOptions(
        baseline=BASELINE,
        batch_sizes=recipe.profile.batch_sizes,
        budget_s=recipe.profile.budget,
        threads=recipe.profile.threads,
        **({"min_calls": CALLS_FOR_P99} if needs_p99 else {}),
    )
    optional = frozenset(forms.values()) - {forms[BASELINE]}
    return Step("profile", PROFILE, options, {"data": "prepare", **forms}, optional=optional)


def _check(recipe: Recipe, variant: VariantConfig) -> Step:
    inputs = {"model": variant.name, "data": "prepare"}
    if variant.name != BASELINE:
        inputs["reference"] = f"check {BASELINE}"
    options = CheckOptions(
        metric=recipe.evaluation.metric if recipe.evaluation else None,
        runtime=variant.runtime,
        threads=recipe.profile.threads,
    )
    # Without the baseline there is nothing to compare with: its failure is the run's.
    return Step(f"check {variant.name}", CHECK, options, inputs, fails=variant.name == BASELINE)


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
    """The stages that a plan calls, a stage once for every step."""
    return [item.stage for item in plan if isinstance(item, Step)]
