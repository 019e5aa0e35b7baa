"""The plan of a graph: which steps a recipe asks for, in order, each naming the steps whose artifacts it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

from pipeline.candidates import candidates
from pipeline.recipe import DataRecipe, Recipe
from stages.calibrate import CALIBRATE, CalibrateOptions
from stages.check import CHECK, CheckOptions
from stages.compile import AxisRange, CompileOptions
from stages.compile.elsewhere import engine_files
from stages.compile.stage import BUILD_KIT, COMPILE
from stages.convert import CONVERT, ConvertOptions
from stages.fuse import FUSE, FuseOptions
from stages.host import host_fingerprint
from stages.package import PACKAGE, PackageOptions
from stages.prepare import PREPARE, PrepareOptions
from stages.profile import PROFILE, ProfileOptions
from stages.quantise.fp32 import Fp32
from stages.quantise.variant import Runtime
from stages.runtime.provider import CudaOptions
from stages.sensitivity import SENSITIVITY, SensitivityOptions
from stages.stage import Stage
from stages.target import RUNTIME_LIBRARIES, TARGET_RUNTIMES, lacking
from stages.variants import BASELINE, QUANTISE, VariantConfig
from stages.verify import VERIFY, VerifyOptions

__all__ = [
    "Choice", "Step", "check_step", "form_name", "forms_of", "groundwork", "judging_plan", "measured_forms",
    "prepare_step", "profile_step", "rank_step", "release_plan", "stages_of", "variants_of",
]  # fmt: skip

CALLS_FOR_P99 = 400
"""So many calls bound the 99th percentile from above with 95 % confidence (it takes 368)."""

CALIBRATION_SAMPLES = 256
"""So many are drawn from calibration data unless the recipe says how many."""

_TENSORRT_OPSET = 21
"""In which DequantizeLinear knows blocks, and QuantizeLinear FP8."""


@dataclass(frozen=True)
class Step:
    """One call of a stage. `inputs` maps the stage's parameters to the names of steps.

    `optional` inputs are left out if the steps that make them gave nothing; any other such input fails the step.
    `fails`: whether the run fails with the step; else only what depends on it does.
    `lacks`: why this machine cannot take it; it is not run then, and what depends on it is left out.
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
    lacks: str | None = None


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
    """The baseline and the recipe's variants, baseline first; with `variants: auto` all that the search may try."""
    baseline = Fp32(runtime=TARGET_RUNTIMES[recipe.target][0], name=BASELINE)
    if recipe.variants == "auto":
        return [baseline, *candidates(recipe.target, host_fingerprint()["instruction_sets"])]
    chosen = [variant for variant in recipe.variants if isinstance(variant, VariantConfig)]
    return [baseline, *(variant for variant in chosen if variant.name != BASELINE)]


def groundwork(recipe: Recipe) -> list[Step | Choice]:
    """What all variants are made from and judged on."""
    convert = ConvertOptions(
        allow_pickle=recipe.allow_pickle,
        trust_remote_code=recipe.trust_remote_code,
        **({"opset": _TENSORRT_OPSET} if recipe.target == "tensorrt" else {}),
    )
    plan: list[Step | Choice] = [
        Step("convert", CONVERT, convert, {"source": "source"}),
        prepare_step("prepare", "evaluation", recipe.evaluation),
    ]
    if learning := [variant for variant in variants_of(recipe) if variant.needs_data]:
        plan += _calibration(recipe, gram=any(variant.needs_gram for variant in learning))
    if _fuses(recipe):
        # Not being able to fuse costs speed, not the run: the unfused graphs remain.
        plan.append(Step("fuse", FUSE, FuseOptions(), {"model": "convert"}, fails=False, unlike="convert"))
    return plan


def judging_plan(recipe: Recipe) -> list[Step | Choice]:
    """From the groundwork to a profile and checks of every variant.

    All forms of all variants are measured together, once; which graph a variant takes is read from that. Raises
    `InputError` if an engine that is to be published with the result is missing.
    """
    engine_files(recipe.tensorrt.engines)  # told now rather than when everything else is built
    variants = variants_of(recipe)
    plan: list[Step | Choice] = []
    choices = []
    for variant in variants:
        made, choice = forms_of(recipe, variant)
        plan += made
        choices.append(choice)
    if _measured_in(recipe) is not None:
        forms = {name: step for choice in choices for name, step in measured_forms(choice)}
        plan += [profile_step(recipe, forms), *choices]
    else:
        plan += [*choices, profile_step(recipe, {choice.name: choice.name for choice in choices})]
    return plan + [check_step(recipe, variant) for variant in variants]


def form_name(variant: str, fused: bool) -> str:
    """What a form of a variant is called in a measurement."""
    return f"{variant}+fused" if fused else variant


def measured_forms(choice: Choice) -> list[tuple[str, str]]:
    """What is measured of a variant: the name of each form, and the step that makes it."""
    forms = [(form_name(choice.name, fused=False), choice.unfused)]
    return forms if choice.fused is None else [*forms, (form_name(choice.name, fused=True), choice.fused)]


def prepare_step(
    name: str, role: Literal["evaluation", "calibration"], data: DataRecipe | None, most: int | None = None
) -> Step:
    """Samples of `data`, or of what takes their place where none are given; at most so many."""
    if data is None:
        return Step(name, PREPARE, PrepareOptions(role=role, samples=most), {"model": "convert"})
    samples = data.samples or (CALIBRATION_SAMPLES if role == "calibration" else None)
    options = PrepareOptions(
        role=role,
        columns=data.columns,
        samples=min(filter(None, (samples, most)), default=None),
        seed=data.seed,
        max_length=data.max_length,
        metric=data.metric,
    )
    return Step(name, PREPARE, options, {"model": "convert", "data": f"{role}-data"})


def _calibration(recipe: Recipe, *, gram: bool) -> list[Step | Choice]:
    """What the activations are like, once for all variants that want to know it."""
    options = CalibrateOptions(gram=gram, threads=recipe.profile.threads)
    inputs = {"model": "convert", "data": "prepare calibration"}
    return [
        prepare_step("prepare calibration", "calibration", recipe.calibration),
        Step("calibrate", CALIBRATE, options, inputs, fails=False),
    ]


def forms_of(recipe: Recipe, variant: VariantConfig) -> tuple[list[Step], Choice]:
    """The steps that make a variant from the unfused and from the fused graph, and the choice between the two."""
    measured = _measured_in(recipe)
    fuse = _fuses(recipe)
    if variant.name == BASELINE and variant.runtime == "onnxruntime":  # it is the graphs themselves
        return [], Choice(variant.name, "convert", "fuse" if fuse else None, measured)

    def step(name: str, model: str, unlike: str | None = None) -> Step:
        inputs = {"model": model} | ({"statistics": "calibrate"} if variant.needs_data else {})
        libraries = (*variant.libraries, *RUNTIME_LIBRARIES[variant.runtime])
        return Step(name, QUANTISE, variant, inputs, fails=False, libraries=libraries, unlike=unlike)

    unfused, fused = f"make {variant.name}", f"make {variant.name} fused"
    if recipe.target == "tensorrt":
        compiled = [_compile_step(recipe, variant), *([_kit_step(recipe, variant)] if lacking(recipe.target) else [])]
        return [step(unfused, "convert"), *compiled], Choice(variant.name, compiled[0].name, None, measured)
    if not (fuse and variant.takes_fused_graph):
        return [step(unfused, "convert")], Choice(variant.name, unfused, None, measured)
    steps = [step(unfused, "convert"), step(fused, "fuse", unlike=unfused)]
    return steps, Choice(variant.name, unfused, fused, measured)


def _compile_step(recipe: Recipe, variant: VariantConfig) -> Step:
    """The engine of a variant, from the graph that was made for it."""
    return Step(
        f"compile {variant.name}",
        COMPILE,
        _compile_options(recipe),
        {"model": f"make {variant.name}", "data": _shapes_from(recipe)},
        fails=False,
        libraries=RUNTIME_LIBRARIES["tensorrt"],
        lacks=lacking(recipe.target),
    )


def _kit_step(recipe: Recipe, variant: VariantConfig) -> Step:
    """What builds the engine elsewhere, where this machine cannot."""
    inputs = {"model": f"make {variant.name}", "data": _shapes_from(recipe)}
    return Step(f"kit {variant.name}", BUILD_KIT, _compile_options(recipe), inputs, fails=False)


def _compile_options(recipe: Recipe) -> CompileOptions:
    return CompileOptions(**recipe.tensorrt.model_dump(exclude={"engines"}), batch=_batch(recipe))


def _cuda_options(recipe: Recipe) -> CudaOptions:
    """The recipe's, with the batch sizes that will occur; nothing of it is said where the target has no such provider,
    so that the keys of steps for other targets do not depend on it."""
    if recipe.target != "cuda":
        return CudaOptions()
    batch = {"batch": _batch(recipe)} if recipe.cuda.profile else {}
    return CudaOptions(**recipe.cuda.model_dump(exclude_unset=True), **batch)


def _batch(recipe: Recipe) -> AxisRange:
    most = max(recipe.serving.max_batch_size, *recipe.profile.batch_sizes)
    usual = recipe.profile.batch_sizes[0] if recipe.objective == "latency" else max(recipe.profile.batch_sizes)
    return AxisRange(min=1, opt=usual, max=most)


def _shapes_from(recipe: Recipe) -> str:
    """The data whose lengths engines are built for."""
    return "prepare calibration" if any(variant.needs_data for variant in variants_of(recipe)) else "prepare"


def _fuses(recipe: Recipe) -> bool:
    """TensorRT knows none of ONNX Runtime's fused operators, and fuses by itself."""
    return recipe.fuse != "never" and recipe.target != "tensorrt"


def _measured_in(recipe: Recipe) -> str | None:
    """The step that decides between the forms of a variant, if one is to."""
    return "profile" if recipe.fuse == "measure" and not lacking(recipe.target) else None


def profile_step(recipe: Recipe, forms: Mapping[str, str]) -> Step:
    """The measuring of all `forms`, each by its name and the step that makes it."""
    needs_p99 = recipe.gates.max_p99 is not None
    options = ProfileOptions(
        baseline=BASELINE,
        batch_sizes=recipe.profile.batch_sizes,
        budget_s=recipe.profile.budget,
        threads=recipe.profile.threads,
        cuda=_cuda_options(recipe),
        **({"min_calls": CALLS_FOR_P99} if needs_p99 else {}),
    )
    optional = frozenset(forms.values()) - {forms[BASELINE]}
    libraries = {library for variant in variants_of(recipe) for library in RUNTIME_LIBRARIES[variant.runtime]}
    inputs = {"data": "prepare", **forms}
    return Step(
        "profile",
        PROFILE,
        options,
        inputs,
        libraries=tuple(sorted(libraries)),
        optional=optional,
        lacks=lacking(recipe.target),
    )


def check_step(
    recipe: Recipe, variant: VariantConfig, word: str = "check", model: str | None = None, data: str = "prepare"
) -> Step:
    """The evaluation of a variant: in its chosen form and on all samples, unless `model` and `data` name others.

    `word` tells the evaluations of one purpose, which are compared with each other, from those of another.
    """
    lacks = lacking(recipe.target)
    if lacks and model is None and recipe.target == "tensorrt":
        model = f"make {variant.name}"  # the graph that its engine would be built from
    inputs = {"model": model or variant.name, "data": data}
    if variant.name != BASELINE:
        inputs["reference"] = f"{word} {BASELINE}"
    options = CheckOptions(
        metric=recipe.evaluation.metric if recipe.evaluation else None,
        threads=recipe.profile.threads,
        runtime="onnxruntime" if lacks else None,
        cuda=_cuda_options(recipe),
    )
    # Without the baseline there is nothing to compare with: its failure is the run's.
    return Step(
        f"{word} {variant.name}",
        CHECK,
        options,
        inputs,
        fails=variant.name == BASELINE,
        libraries=RUNTIME_LIBRARIES["onnxruntime" if lacks else variant.runtime],
    )


def rank_step(recipe: Recipe, variant: VariantConfig, make: Step, data: str) -> Step:
    """What quantising each group of operators alone does to the answers of the graph that `make` takes."""
    options = SensitivityOptions(variant=variant, threads=recipe.profile.threads)
    name, inputs = f"sensitivity {variant.name}", {**make.inputs, "data": data}
    return Step(name, SENSITIVITY, options, inputs, fails=False, libraries=make.libraries)


def release_plan(
    recipe: Recipe, name: str, winner: str, typical_length: int, runtime: Runtime = "onnxruntime"
) -> list[Step]:
    """From the chosen variant, made for `runtime`, to a release that a real server has answered from."""
    libraries = RUNTIME_LIBRARIES[runtime]
    package = PackageOptions(
        name=name,
        max_batch_size=recipe.serving.max_batch_size,
        max_queue_delay_us=round(recipe.serving.max_queue_delay * 1e6),
        threads=recipe.serving.threads,
        typical_length=typical_length,
        cuda=_cuda_options(recipe),
        engines=engine_files(recipe.tensorrt.engines) if runtime == "tensorrt" else {},
    )
    steps = [Step("package", PACKAGE, package, {"model": winner}, libraries=libraries)]
    if recipe.verify:
        inputs = {"release": "package", "model": winner, "data": "prepare"}
        steps.append(Step("verify", VERIFY, VerifyOptions(), inputs, libraries=libraries))
    return steps


def stages_of(plan: Sequence[Step | Choice]) -> list[Stage]:
    """The stages that a plan calls, a stage once for every step."""
    return [item.stage for item in plan if isinstance(item, Step)]
