"""Put a checkpoint together with what Triton's vLLM backend and other servers need: a release of a language model."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from model_repository.config import MODEL_FILES, to_text, validate
from model_repository.layout import CONFIG, NAME
from stages.artifact import Artifact, link
from stages.errors import InputError
from stages.language.checkpoint import Checkpoint
from stages.language.memory.gpus import find_gpu
from stages.language.memory.plan import (
    CACHE_DTYPES,
    TENSOR_PARALLEL_SIZES,
    CacheDtype,
    GpuPlan,
    longest_sequence,
    plan_on,
)
from stages.language.release.launch import LAUNCH, launch_files
from stages.language.release.lora import MULTI_LORA, LoraAdapter, adapter_names, gather_adapters
from stages.language.release.servers import TENSORRT_LLM, TGI, Launch
from stages.language.shape import read_shape
from stages.language.weights import read_tensors
from stages.progress import SILENT, Progress
from stages.stage import Stage

__all__ = ["PACKAGE_LANGUAGE", "EngineOptions", "PackageLanguageOptions", "package_language"]

_BACKEND = "vllm"
_CHECKPOINT = "checkpoint"
_USUAL_CONTEXT = 8192
_MOUNT = "MODEL_REPOSITORY"


class EngineOptions(BaseModel):
    """What is asked of the server's engine.

    `gpu`: for which the memory plan is made (`stages.language.memory.gpus`); it gives `tensor_parallel_size` (the
    fewest GPUs that hold the weights and one sequence) and `max_model_len` (tokens of a sequence: the most of which one
    fits) where they are None. Without a GPU these are one, and what the model was made for. `kv_dtype` is that of the
    key-value cache. `mount`: where servers see the model repository: Triton's vLLM backend takes relative paths as
    relative to the directory that the server was started in, so that a published release has absolute ones. `lora`:
    adapters to be served with it. `reference`: the object store's URL under which the checkpoint lies already; the
    release then names it, and holds no weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_model_len: PositiveInt | None = None
    gpu: str | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    tensor_parallel_size: PositiveInt | None = None
    kv_dtype: CacheDtype = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    mount: Annotated[str, Field(pattern=r"^/\S*$")] = "/models"
    lora: tuple[LoraAdapter, ...] = ()
    reference: Annotated[str, Field(pattern=r"^(s3|gs|az)://[^\s/]+/\S*$")] | None = None


class PackageLanguageOptions(EngineOptions):
    """How a language model is to be served: its engine, and the `name` under which clients ask for it."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]


def package_language(
    *,
    model: Artifact,
    options: PackageLanguageOptions,
    out: Path,
    progress: Progress = SILENT,
    source: Artifact | None = None,
) -> Artifact:
    """Lay out a release of a checkpoint in `out`: an artifact of kind `release`.

    It holds `config.pbtxt` (without a version policy), `model.json` with vLLM's engine arguments, in which `model` is
    relative to the release, `checkpoint/` with the files of the checkpoint, `multi_lora.json` and adapters where
    `model`, or the `source` that it was made from, has them, and `launch/` for servers without Triton. How the weights
    are quantised is left to vLLM, which reads it from their `config.json`.

    The metadata: `name`, `backend`, `task`, `precision`, `batched` and `max_batch_size` (vLLM puts requests together
    itself), the names `config`, `file`, `checkpoint` (None for a reference, then in `reference`), `arguments` (those of
    `model.json`), `adapters` (folders by name), `launch` (names), `left_out` (why there are no launch files for a
    server, by its key), `memory` (`GpuPlan`, None without a GPU).

    Raises `InputError` if the artifact is no checkpoint that vLLM loads, if it does not fit on the GPU as asked, or if
    its adapters are no adapters.
    """
    described = Checkpoint.of(model)
    if described.runtime != "transformers":
        raise InputError(
            f"{model.path} is a decoder in ONNX for {described.runtime}, which vLLM does not load: "
            "package it as a graph, for Triton's onnxruntime backend"
        )
    progress.update("planning the memory")
    adapters = gather_adapters(_with_adapters(model, source), options.lora)
    arguments, plan = _arguments(model, described, options)
    arguments |= adapters.arguments()

    if options.reference is None:
        for name in model.files.keys() - adapter_names(model):
            _link_readable(model.path / name, out / _CHECKPOINT / name)
    for name, file in adapters.files.items():
        _ensure_free(name, out)
        link(file, out / name)
    if adapters.table is not None:
        (out / MULTI_LORA).write_text(adapters.table, encoding="utf-8")
    (out / MODEL_FILES[_BACKEND]).write_text(json.dumps(arguments, indent=1) + "\n", encoding="utf-8")
    (out / CONFIG).write_text(_config(options), encoding="utf-8")
    left_out = _left_out(model.path, described, options)
    launch = launch_files(Launch(options.name, arguments, adapters.folders, left_out))
    for name, text in launch.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")

    metadata = {
        "name": options.name,
        "backend": _BACKEND,
        "task": "text-generation",
        "precision": described.precision,
        "batched": False,
        "max_batch_size": 0,
        "config": CONFIG,
        "file": MODEL_FILES[_BACKEND],
        "checkpoint": None if options.reference else _CHECKPOINT,
        "reference": options.reference,
        "arguments": arguments,
        "adapters": dict(adapters.folders),
        "launch": sorted(launch),
        "left_out": left_out,
        "memory": plan.model_dump(mode="json") if plan else None,
    }
    return Artifact.write(out, "release", metadata, {"model": model} | ({"source": source} if source else {}))


def _link_readable(source: Path, target: Path) -> None:
    """A link, or a copy of a file that only its owner may read, as `save_pretrained` leaves weights: a server is often
    another user."""
    if source.stat().st_mode & stat.S_IROTH:
        link(source, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)


def _with_adapters(model: Artifact, source: Artifact | None) -> Artifact:
    """Quantising a checkpoint leaves its adapters behind: then they are the source's."""
    return source if source is not None and MULTI_LORA not in model.files else model


def _arguments(
    model: Artifact, described: Checkpoint, options: PackageLanguageOptions
) -> tuple[dict[str, Any], GpuPlan | None]:
    """vLLM's engine arguments (`AsyncEngineArgs` of vLLM 0.32), and the plan that some of them come from."""
    length, gpus, plan = options.max_model_len, options.tensor_parallel_size, None
    if length is not None and length > described.positions:
        raise InputError(f"max_model_len is {length}, but the model was made for {described.positions} tokens at most")
    if options.gpu is not None:
        plan = _plan(model, described, options)
        gpus = plan.tensor_parallel_size
        if length is None:
            length = longest_sequence(find_gpu(options.gpu), read_shape(model.path), plan, options.kv_dtype)
    arguments: dict[str, Any] = {
        "model": options.reference or _CHECKPOINT,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": gpus or 1,
    }
    if length is not None:
        arguments["max_model_len"] = length
    if options.dtype != "auto":
        arguments["dtype"] = options.dtype
    if options.kv_dtype != "auto":
        arguments["kv_cache_dtype"] = CACHE_DTYPES[options.kv_dtype][0]
    if described.trust_remote_code:
        arguments["trust_remote_code"] = True
    return arguments, plan


def _plan(model: Artifact, described: Checkpoint, options: PackageLanguageOptions) -> GpuPlan:
    """The memory plan for the GPU that was asked for.

    Where no length is given, as many GPUs are taken as a usual one needs; they may then hold a longer sequence.
    """
    assert options.gpu is not None
    shape, given = read_shape(model.path), options.tensor_parallel_size
    plan = plan_on(
        find_gpu(options.gpu),
        shape,
        read_tensors(model.path),
        context=options.max_model_len or min(described.positions, _USUAL_CONTEXT),
        cache=options.kv_dtype,
        utilization=options.gpu_memory_utilization,
        group_size=shape.group_size,
        sizes=(given,) if given else TENSOR_PARALLEL_SIZES,
    )
    if plan.reason is not None:
        raise InputError(
            f"{options.name} cannot be served so by {plan.gpu}: {plan.reason}. Ask for another GPU, more of them, or a "
            "shorter max_model_len (`optimize plan-memory` shows what fits)"
        )
    return plan


def _config(options: PackageLanguageOptions) -> str:
    """`config.pbtxt`: the rest (inputs, outputs, answers in parts, no batching) the backend adds itself.

    The instance takes what GPUs it wants (`KIND_MODEL`). `MODEL_REPOSITORY` is no parameter of the backend's: by it
    paths become absolute when the release is published.
    """
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    config = ModelConfig(name=options.name, backend=_BACKEND)
    config.instance_group.add(count=1, kind="KIND_MODEL")
    config.parameters[_MOUNT].string_value = options.mount
    validate(config)
    return to_text(config)


def _ensure_free(name: str, out: Path) -> None:
    """Adapters lie where they lay in their checkpoint, and may not take a name that the release needs."""
    top = Path(name).parts[0]
    if top in (_CHECKPOINT, LAUNCH, CONFIG, MODEL_FILES[_BACKEND]) or (out / name).exists():
        raise InputError(f"the adapters hold {name}, a name that a release needs for itself; rename that folder")


def _left_out(directory: Path, described: Checkpoint, options: PackageLanguageOptions) -> dict[str, str]:
    """Why servers other than vLLM do not load the checkpoint, by their keys."""
    if options.reference is not None:
        return dict.fromkeys((TGI.key, TENSORRT_LLM.key), "it does not read checkpoints from an object store")
    reasons: dict[str, str] = {}
    if reason := _unreadable_before_transformers_5(directory):
        reasons[TGI.key] = f"its transformers (4.51) cannot read it: {reason}"
    quantised = described.quantisation
    # load_hf_quant_config, tensorrt_llm/_torch/model_config.py, and quant_config_utils.py beside it (August 2026)
    if quantised is not None and quantised.format in ("gptq", "awq"):
        reasons[TENSORRT_LLM.key] = (
            f"trtllm-serve does not read {quantised.format} as Hugging Face has it, and the engines once built from it "
            "are no longer part of TensorRT-LLM"
        )
    elif quantised is not None and not (described.precision == "fp8" and _a_scale_a_token(directory)):
        reasons[TENSORRT_LLM.key] = (
            "of compressed-tensors trtllm-serve reads FP8 with a scale a channel and a token; it takes INT8 for it too"
        )
    return reasons


def _a_scale_a_token(directory: Path) -> bool:
    groups = (_json(directory / "config.json").get("quantization_config") or {}).get("config_groups") or {}
    strategies = [(group.get("weights") or {}, group.get("input_activations") or {}) for group in groups.values()]
    return all((weights.get("strategy"), of.get("strategy")) == ("channel", "token") for weights, of in strategies)


def _unreadable_before_transformers_5(directory: Path) -> str | None:
    """What transformers 4 would get wrong: it knows neither `rope_parameters` nor the tokenizer class of version 5."""
    config = _json(directory / "config.json")
    text = config.get("text_config") or config
    rope = text.get("rope_parameters")
    if isinstance(rope, Mapping):
        if "rope_theta" not in text and rope.get("rope_theta", 10000.0) != 10000.0:
            return "it would silently take the base of its rotary positions for 10000"
        if "rope_scaling" not in text and rope.get("rope_type", "default") != "default":
            return "it would silently leave out the scaling of its rotary positions"
        if "rope_theta" not in text and any(isinstance(value, Mapping) for value in rope.values()):
            return "it would silently take one base of its rotary positions for all kinds of layers"
    tokenizer = _json(directory / "tokenizer_config.json").get("tokenizer_class", "")
    if re.fullmatch(r"(Tokenizers|SentencePiece|Python)Backend", tokenizer):
        return f"it has no tokenizer class {tokenizer}"
    return None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


PACKAGE_LANGUAGE = Stage(
    name="package language",
    revision=1,
    function=package_language,
    libraries=("protobuf", "pyyaml", "transformers", "tritonclient"),
    preload=("transformers", "tritonclient.grpc.model_config_pb2"),
)
