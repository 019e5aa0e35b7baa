"""The plan of a language model that generates text: checkpoints in, checkpoints out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pipeline.plan import CALLS_FOR_P99, Choice, Step
from pipeline.recipe import DataRecipe, Recipe
from stages.artifact import Artifact
from stages.language.adopt import ADOPT, AdoptOptions
from stages.language.check import CHECK_LANGUAGE, CheckLanguageOptions
from stages.language.checkpoint import Checkpoint
from stages.language.decoder import PLAIN_GRAPH, STEPS, PlainGraphOptions, StepsOptions
from stages.language.prepare import PREPARE_TEXT, PrepareTextOptions
from stages.language.profile import PROFILE_LANGUAGE, ProfileLanguageOptions
from stages.language.quantise.original import Original
from stages.language.release import (
    PACKAGE_LANGUAGE,
    VERIFY_LANGUAGE,
    PackageLanguageOptions,
    VerifyLanguageOptions,
)
from stages.language.sensitivity import LAYER_SENSITIVITY, LayerSensitivityOptions
from stages.language.suite import SUITE, SuiteOptions
from stages.language.variant import LanguageVariant
from stages.language.variants import QUANTISE_CHECKPOINT
from stages.package import PACKAGE, PackageOptions
from stages.variants import ORIGINAL, parse_variant
from stages.verify import VERIFY, VerifyOptions

__all__ = [
    "check_step", "groundwork", "judging_plan", "make_step", "profile_step", "rank_step", "release_plan",
    "suite_steps", "variants_of", "with_defaults",
]  # fmt: skip

_USUAL_VARIANTS = ("gptq", "int4-onnx")
_ALL_THAT_MAKE_SENSE = ("gptq", "awq", "int8-w8a8", "int4-onnx")
_CALIBRATION_WINDOWS = 128
_RUNTIME_LIBRARIES = {
    "transformers": ("torch", "transformers", "gptqmodel", "compressed-tensors"),
    "onnxruntime-genai": ("onnxruntime", "onnxruntime-genai"),
}


def with_defaults(recipe: Recipe) -> Recipe:
    """What a recipe means for a language model where it says nothing, or `auto`."""
    update: dict[str, object] = {}
    if recipe.variants == "auto" or "variants" not in recipe.model_fields_set:
        names = _ALL_THAT_MAKE_SENSE if recipe.variants == "auto" else _USUAL_VARIANTS
        update["variants"] = tuple(parse_variant(name) for name in names)
    if "objective" not in recipe.model_fields_set:
        update["objective"] = "size"  # speed here is not that of the server that the checkpoint is for
    if "batch_sizes" not in recipe.profile.model_fields_set:
        update["profile"] = recipe.profile.model_copy(update={"batch_sizes": (1, 4)})
    return recipe.model_copy(update=update)


def variants_of(recipe: Recipe) -> list[LanguageVariant]:
    """The baseline and the recipe's variants, baseline first."""
    chosen = [variant for variant in recipe.variants if isinstance(variant, LanguageVariant)]
    return [Original(), *(variant for variant in chosen if variant.name != ORIGINAL)]


def groundwork(recipe: Recipe) -> list[Step | Choice]:
    """The checkpoint as it came, and windows of text to judge it on and to learn from."""
    plan: list[Step | Choice] = [
        Step("adopt", ADOPT, AdoptOptions(trust_remote_code=recipe.trust_remote_code), {"source": "source"}),
        Choice(ORIGINAL, "adopt", None, None),
        _prepare("prepare", "evaluation", recipe.evaluation),
    ]
    if any(variant.needs_data for variant in variants_of(recipe)):
        plan.append(_prepare("prepare calibration", "calibration", recipe.calibration))
    return plan


def judging_plan(recipe: Recipe) -> list[Step | Choice]:
    """Every variant made, all of them measured together, each of them checked."""
    variants = variants_of(recipe)
    plan: list[Step | Choice] = []
    for variant in variants[1:]:
        made = make_step(variant)
        plan += [made, Choice(variant.name, made.name, None, None)]
    plan.append(profile_step(recipe, {variant.name: variant.name for variant in variants}))
    plan += [check_step(recipe, variant, variant.name) for variant in variants]
    return plan + [step for variant in variants for step in suite_steps(recipe, variant)]


def make_step(variant: LanguageVariant) -> Step:
    """The step that makes a variant."""
    inputs = {"model": ORIGINAL} | ({"data": "prepare calibration"} if variant.needs_data else {})
    return Step(f"make {variant.name}", QUANTISE_CHECKPOINT, variant, inputs, fails=False, libraries=variant.libraries)


def profile_step(recipe: Recipe, forms: Mapping[str, str]) -> Step:
    """The measuring of all `forms`, each by its name and the step that makes it."""
    options = ProfileLanguageOptions(
        baseline=ORIGINAL,
        batch_sizes=recipe.profile.batch_sizes,
        new_tokens=recipe.profile.new_tokens,
        budget_s=recipe.profile.budget,
        threads=recipe.profile.threads,
        **({"min_calls": CALLS_FOR_P99} if recipe.gates.max_p99 is not None else {}),
    )
    libraries = {library for variant in variants_of(recipe) for library in _RUNTIME_LIBRARIES[variant.runtime]}
    optional = frozenset(forms.values()) - {forms[ORIGINAL]}
    inputs = {"data": "prepare", **forms}
    return Step("profile", PROFILE_LANGUAGE, options, inputs, libraries=tuple(sorted(libraries)), optional=optional)


def check_step(recipe: Recipe, variant: LanguageVariant, model: str) -> Step:
    """The evaluation of a variant that the step `model` made: always of the checkpoint as it was saved."""
    inputs = {"model": model, "data": "prepare"}
    if variant.name != ORIGINAL:
        inputs["reference"] = f"check {ORIGINAL}"
    # Without the baseline there is nothing to compare with: its failure is the run's.
    return Step(
        f"check {variant.name}",
        CHECK_LANGUAGE,
        CheckLanguageOptions(threads=recipe.profile.threads),
        inputs,
        fails=variant.name == ORIGINAL,
        libraries=_RUNTIME_LIBRARIES[variant.runtime],
    )


def suite_steps(recipe: Recipe, variant: LanguageVariant) -> list[Step]:
    """The tasks that a variant is judged by besides, if the recipe names any."""
    if recipe.suite is None:
        return []
    options = SuiteOptions(
        **recipe.suite.model_dump(include={"tasks", "samples", "few_shot", "seed"}), threads=recipe.profile.threads
    )
    inputs = {"model": variant.name, "tasks": "suite-data"}
    libraries = _RUNTIME_LIBRARIES[variant.runtime]
    return [Step(f"suite {variant.name}", SUITE, options, inputs, fails=variant.name == ORIGINAL, libraries=libraries)]


def rank_step(recipe: Recipe, variant: LanguageVariant, make: Step, data: str) -> Step:
    """What the quantised layers of a variant do to the answers of the original, each group of them alone."""
    options = LayerSensitivityOptions(threads=recipe.profile.threads)
    inputs = {"model": ORIGINAL, "quantised": variant.name, "data": data}
    name = f"sensitivity {variant.name}"
    return Step(name, LAYER_SENSITIVITY, options, inputs, fails=False, libraries=_RUNTIME_LIBRARIES[variant.runtime])


def release_plan(recipe: Recipe, name: str, winner: str, artifacts: Mapping[str, Artifact]) -> list[Step]:
    """From the chosen variant to a release that a real server has answered from: a checkpoint for vLLM, or a decoder in
    ONNX for Triton's ONNX Runtime backend."""
    if winner in artifacts and Checkpoint.of(artifacts[winner]).runtime == "onnxruntime-genai":
        return _decoder_release(recipe, name, winner)
    inputs = {"model": winner, "source": "source"}  # which LoRA adapters may lie beside
    package = PackageLanguageOptions(name=name, **recipe.serving.engine.model_dump())
    steps = [Step("package", PACKAGE_LANGUAGE, package, inputs)]
    if recipe.verify:
        options = VerifyLanguageOptions(vllm=None if recipe.serving.vllm is None else Path(recipe.serving.vllm))
        inputs = {"release": "package", "model": winner, "data": "prepare", "evaluation": f"check {winner}"}
        steps.append(Step("verify", VERIFY_LANGUAGE, options, inputs))
    return steps


def _decoder_release(recipe: Recipe, name: str, winner: str) -> list[Step]:
    """A plain graph, which Triton's own ONNX Runtime backend serves as it serves any other."""
    package = PackageOptions(
        name=name,
        # `GroupQueryAttention` on a CPU refuses several sequences with several new tokens and a cache.
        max_batch_size=0,
        threads=recipe.serving.threads,
        axis_lengths={"sequence": 1, "past": 16},
    )
    libraries = ("onnxruntime",)
    plan = [
        Step("plain graph", PLAIN_GRAPH, PlainGraphOptions(), {"model": winner}, libraries=libraries),
        Step("package", PACKAGE, package, {"model": "plain graph"}, libraries=libraries),
    ]
    if recipe.verify:
        inputs = {"release": "package", "model": "plain graph", "data": "steps"}
        plan += [
            Step("steps", STEPS, StepsOptions(), {"model": "plain graph", "data": "prepare"}),
            Step("verify", VERIFY, VerifyOptions(), inputs, libraries=libraries),
        ]
    return plan


def _prepare(name: str, role: Literal["evaluation", "calibration"], data: DataRecipe | None) -> Step:
    windows = _CALIBRATION_WINDOWS if role == "calibration" else None
    if data is None:
        return Step(name, PREPARE_TEXT, PrepareTextOptions(role=role, samples=windows), {"model": ORIGINAL})
    options = PrepareTextOptions(
        role=role,
        columns=data.columns,
        samples=data.samples or windows,
        seed=data.seed,
        length=data.max_length,
    )
    return Step(name, PREPARE_TEXT, options, {"model": ORIGINAL, "data": f"{role}-data"})
