"""The recipe: what to do with one model. YAML, the command line and Python are three spellings of it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from model_repository.layout import NAME
from pipeline.units import Bytes, Fraction, Milliseconds, Seconds
from stages.compile import TensorRtRecipe
from stages.errors import InputError
from stages.language.release import EngineOptions
from stages.model import Task
from stages.runtime.provider import CudaProvider
from stages.target import USUAL_VARIANTS, Target, for_target
from stages.variant import Variant
from stages.variants import parse_variant

__all__ = ["DataRecipe", "GateRecipe", "ImageRecipe", "ProfileRecipe", "Recipe", "ServingRecipe", "SuiteRecipe"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)


class DataRecipe(_Part):
    """Data for evaluation or calibration. Written as a plain path, it means `{path: …}`."""

    path: str = Field(description="file, folder or module:function")
    columns: dict[str, str] = Field({}, description="our name for a column: its name in the data")
    samples: int | None = Field(None, ge=1, description="use at most so many, drawn with the seed")
    max_length: int | None = Field(None, ge=1, description="cut texts to so many tokens")
    metric: str | None = Field(None, description="the metric to judge; default: the task's own")
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class SuiteRecipe(_Part):
    """Tasks for a language model. Written as a plain path, it means `{path: …}`."""

    path: str = Field(description="folder of tasks for lm-evaluation-harness (YAML), and their data")
    tasks: tuple[str, ...] = Field((), description="by name; default: all in the folder")
    samples: int | None = Field(None, ge=1, description="the first so many of each task")
    few_shot: int | None = Field(None, ge=0, description="examples before a question; default: as the task says")
    max_drop: Fraction | None = Field(None, ge=0, le=1, description="of each task's metric; default: that of `gates`")
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class GateRecipe(_Part):
    """Conditions that a variant must meet to be published."""

    max_drop: Fraction = Field(0.01, ge=0, le=1, description="largest relative drop of the metric")
    min_cosine: Fraction = Field(0.99, ge=-1, le=1, description="for embeddings without labels")
    min_agreement: Fraction = Field(0.99, ge=0, le=1, description="for classifiers without labels")
    max_p95: Milliseconds | None = Field(None, gt=0, description="95th percentile of latency")
    max_p99: Milliseconds | None = Field(None, gt=0, description="99th percentile of latency")
    max_size: Bytes | None = Field(None, gt=0, description="size of the model's files")
    min_speedup: float | None = Field(None, gt=0, description="times faster than the baseline")


class ProfileRecipe(_Part):
    """How speed is measured."""

    batch_sizes: tuple[int, ...] = Field((1, 8, 32), min_length=1, description="the first one decides latency")
    budget: Seconds = Field(60.0, gt=0, description="time for all variants together")
    threads: int = Field(0, ge=0, description="threads of a session; 0: every core the process may use")
    new_tokens: int = Field(32, ge=2, description="tokens that a language model generates in a request")

    @field_validator("batch_sizes")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in value):
            raise ValueError("batch sizes are 1 or more")
        return value


class ServingRecipe(_Part):
    """What the release asks of Triton."""

    max_batch_size: int = Field(32, ge=0, description="0: no batching")
    max_queue_delay: Seconds = Field(0.0005, ge=0, description="how long a request may wait for others")
    threads: int = Field(0, ge=0, description="intra-op threads of the instance; 0: every core")
    vllm: str | None = Field(
        None, description="environment (its folder) whose vLLM verifies language models; default: the one in PATH"
    )
    server: str | None = Field(
        None,
        description="what serves the repository: the tag of NVIDIA's tritonserver container, or its TensorRT version",
    )
    engine: EngineOptions = Field(EngineOptions(), description="language models: what vLLM's engine is told")


class ImageRecipe(_Part):
    """Container images of the release. Written as a plain place, it means `{to: …}`."""

    to: str = Field(description="oci:DIR[:name], or registry/name[:tag]")
    kind: Literal["model", "serving", "both"] = Field("model", description="the model alone, or with a Triton server")
    base: str | None = Field(None, description="of a serving image: local, or an image; default: NVIDIA's Triton")
    model_base: str = Field("busybox", description="of a model image: busybox, scratch, or an image")
    platform: str = "linux/amd64"
    modelpack: bool = Field(False, description="a CNCF ModelPack manifest too")
    mount_from: tuple[str, ...] = Field((), description="other repositories of the registry that may have the layers")
    sign_key: str | None = Field(None, description="private key (PEM) to sign with")
    evidence: bool = Field(True, description="attach a bill of materials and the provenance")
    plain_http: bool = Field(False, description="for a registry without TLS")

    @model_validator(mode="before")
    @classmethod
    def _from_place(cls, value: Any) -> Any:
        return {"to": value} if isinstance(value, str) else value


class Recipe(_Part):
    """Everything that `optimize run` needs to know. Only `model` must be given."""

    model: str = Field(description="Hugging Face directory or hub id, .onnx, .pt2, module:function, MLflow URI")
    name: str | None = Field(
        None, pattern=f"^{NAME}$", description="name in the model repository; default: from `model`"
    )
    task: Task | None = Field(None, description="default: inferred from the checkpoint")
    target: Target = "cpu"
    evaluation: DataRecipe | None = None
    calibration: DataRecipe | None = None
    suite: SuiteRecipe | None = Field(None, description="language models: tasks that must not be lost")
    variants: tuple[SerializeAsAny[Variant], ...] | Literal["auto"] = Field(
        default_factory=lambda data: _usual_variants(data.get("target", "cpu")),
        validate_default=False,
        description="what to make beside the baseline; auto: whatever the target, the data and the machine allow",
    )
    search_budget: Seconds = Field(600.0, gt=0, description="with `variants: auto`, time for all trying and measuring")
    fallback: bool = Field(
        True, description="where a quantised variant fails its gate, return operators to higher precision"
    )
    fallback_budget: Seconds = Field(120.0, gt=0, description="time for finding those operators, a variant")
    fuse: Literal["measure", "always", "never"] = "measure"
    gates: GateRecipe = GateRecipe()
    objective: Literal["latency", "throughput", "size"] = "latency"
    profile: ProfileRecipe = ProfileRecipe()
    serving: ServingRecipe = ServingRecipe()
    cuda: CudaProvider = Field(CudaProvider(), description="how ONNX Runtime uses a GPU, for the target cuda")
    tensorrt: TensorRtRecipe = Field(TensorRtRecipe(), description="how engines are built, for the target tensorrt")
    verify: bool = True
    image: ImageRecipe | None = Field(None, description="container images that are made of what is published")
    repository: str = "model_repository_out"
    tracking_uri: str | None = None
    logged_models: Literal["published", "all", "none"] = Field(
        "published", description="of which variants MLflow keeps the files too"
    )
    allow_pickle: bool = False
    trust_remote_code: bool = False
    step_timeout: Seconds = Field(1800.0, gt=0, description="a step that takes longer is stopped")

    @field_validator("variants", mode="before")
    @classmethod
    def _variants(cls, value: Any, info: ValidationInfo) -> Any:
        target: Target = info.data.get("target", "cpu")
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, (list, tuple)):
            raise ValueError("variants is a list, or auto")
        if "auto" in value:
            if len(value) > 1:
                raise ValueError("auto stands alone: it tries every variant that makes sense here")
            if target != "cpu":
                raise ValueError(f"auto searches for the target cpu; for {target} name the variants")
            return "auto"
        variants = []
        for entry in value:
            try:
                variant = entry if isinstance(entry, Variant) else parse_variant(entry)
                variants.append(for_target(variant, target))
            except InputError as error:
                raise ValueError(str(error)) from error
        names = [variant.name for variant in variants]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"there are two variants named {name!r}; give one another `name`")
        return tuple(variants)

    @field_validator("model", "repository")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """A recipe from plain values. Raises `InputError` with the place and the nearest right key."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            # What a default is made from was refused itself, which is told.
            told = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
            lines = [_explain(problem, where) for problem in told]
            raise InputError("\n".join(lines)) from error

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """A recipe from a YAML file; relative paths in it are relative to its folder. `overrides` win.

        Raises `InputError` for a file that is missing or is not YAML, and as `parse` does.
        """
        try:
            values = yaml.safe_load(path.read_text())
        except OSError as error:
            raise InputError(f"the recipe {path} cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise InputError(f"the recipe {path} holds no keys; it needs at least `model:`")
        folder = path.resolve().parent
        for keys in _PATHS:
            _resolve(values, keys, folder)
        _resolve_adapters(values, folder)
        _resolve_engines(values, folder)
        return cls.parse(merge(values, overrides or {}), str(path))


_PATHS = (
    *(("model",), ("repository",)),
    *((data, "path") for data in ("evaluation", "calibration", "suite")),
    ("serving", "vllm"),
    ("image", "sign_key"),
)
"""Where in a recipe paths stand."""


def _usual_variants(target: Target) -> tuple[Variant, ...]:
    return tuple(for_target(parse_variant(name), target) for name in USUAL_VARIANTS[target])


def merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `overrides` laid over them, mappings merged key by key."""
    merged = dict(values)
    for key, value in overrides.items():
        old = merged.get(key)
        if isinstance(value, Mapping):
            if isinstance(old, str):  # a path standing for {path: …}
                old = {"path": old}
            merged[key] = merge(old if isinstance(old, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _resolve(values: dict[str, Any], keys: tuple[str, ...], folder: Path) -> None:
    """Make a relative path in a recipe relative to the recipe's folder, if it is there or can only be a path."""
    owner: Any = values
    if len(keys) == 2 and isinstance(values.get(keys[0]), str):
        keys = keys[:1]
    for key in keys[:-1]:
        owner = owner.get(key)
        if not isinstance(owner, dict):
            return
    value = owner.get(keys[-1])
    if not isinstance(value, str) or Path(value).is_absolute():
        return
    path = folder / value
    if keys[-1] == "repository" or value.startswith(".") or path.exists():
        owner[keys[-1]] = str(path)


def _resolve_adapters(values: dict[str, Any], folder: Path) -> None:
    """The same for LoRA adapters, which are folders and nothing else."""
    engine: Any = values
    for key in ("serving", "engine"):
        engine = engine.get(key) if isinstance(engine, dict) else None
    adapters = engine.get("lora") if isinstance(engine, dict) else None
    for adapter in adapters if isinstance(adapters, list) else []:
        if isinstance(adapter, dict) and isinstance(adapter.get("path"), str):
            adapter["path"] = str(folder / adapter["path"])


def _resolve_engines(values: dict[str, Any], folder: Path) -> None:
    """The same for engines that were built elsewhere."""
    owner: Any = values.get("tensorrt")
    engines = owner.get("engines") if isinstance(owner, dict) else None
    if isinstance(engines, dict):
        owner["engines"] = {key: str(folder / file) if isinstance(file, str) else file for key, file in engines.items()}


def _explain(problem: Any, where: str) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _keys_at(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key {place!r}; {hint}"
    if problem["type"] == "missing":
        return f"{where}: {place!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {place}: {message}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that a recipe may have at a place, for the hint."""
    fields: dict[str, FieldInfo] = Recipe.model_fields
    for part in location:
        annotation = fields[str(part)].annotation if str(part) in fields else None
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                fields = candidate.model_fields
                break
    return list(fields)
