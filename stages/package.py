"""Put a model together with its configuration as a release: the tree that `model_repository.Repository` publishes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from model_repository import RepositoryError
from model_repository.config import MODEL_FILES, ConfigOptions, build, to_text
from model_repository.config_gpu import GpuOptions
from model_repository.layout import CONFIG, LABELS, NAME, PROVENANCE
from model_repository.signature import Signature, TensorSpec
from stages.artifact import MANIFEST, Artifact, link
from stages.compile.elsewhere import EngineFile, add_engines, plan_name
from stages.errors import InputError, StageError
from stages.model import ASSETS, Engine, Model
from stages.progress import SILENT, Progress
from stages.runtime import onnxruntime, openvino, tensorrt
from stages.runtime.provider import CudaOptions, accelerator_parameters
from stages.stage import Stage

__all__ = ["PACKAGE", "PackageOptions", "package"]


@dataclass(frozen=True)
class _Server:
    """How a runtime's models are served: Triton's backend, what the runtime finds in a file, and what it is called."""

    backend: str
    signature_of: Callable[[Path], Signature]
    name: str
    gpu: bool = False
    names_axes: bool = True


_SERVERS = {
    "onnxruntime": _Server("onnxruntime", onnxruntime.signature_of, "ONNX Runtime"),
    "openvino": _Server("openvino", openvino.signature_of, "OpenVINO", names_axes=False),
    "onnxruntime-cuda": _Server("onnxruntime", onnxruntime.signature_of, "ONNX Runtime", gpu=True),
    "tensorrt": _Server("tensorrt", tensorrt.signature_of, "TensorRT", gpu=True, names_axes=False),
}


class PackageOptions(BaseModel):
    """How the model is to be served.

    `name`: under which clients ask for it. `max_batch_size`: how many samples Triton may put together; 0 = no batching.
    OpenVINO's backend cannot do that (`model_repository.config.build`) and is only warmed up with a batch of this size.
    `max_queue_delay_us`: how long (µs) a request may wait for others. `threads`: within one operator; 0 = every core of
    the server. `typical_length`: of a dynamic axis in the warm-up, and `axis_lengths` the same for axes by name.
    `cuda`: of a graph for ONNX Runtime on a GPU. `engines`: for GPUs of other compute capabilities, beside an engine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    max_batch_size: NonNegativeInt = 8
    max_queue_delay_us: NonNegativeInt = 100
    threads: NonNegativeInt = 0
    typical_length: PositiveInt = 16
    axis_lengths: dict[str, PositiveInt] = Field(default_factory=dict)
    cuda: CudaOptions = CudaOptions()
    engines: dict[str, EngineFile] = Field(default_factory=dict)


def package(*, model: Artifact, options: PackageOptions, out: Path, progress: Progress = SILENT) -> Artifact:
    """Lay out a release of a model artifact in `out`: an artifact of kind `release`.

    The model's runtime is Triton's backend. The release holds `config.pbtxt` (without a version policy), the graph as
    `model.onnx` or `model.xml`, its weights under the names that the graph knows, `assets/`, and `labels.txt` where the
    classes have names. The metadata: `name`, `backend`, `batched` (whether a request may hold any number of samples),
    `max_batch_size` (0 where Triton puts none together, whatever was asked for), `threads`, `task`, `precision`,
    `signature`, the names `config`, `file`, `assets`, `labels` (the last two null where there are none), and of an
    engine `engine`: what it takes to run it, and `engines`, the same of those beside it by compute capability.

    Raises `InputError` if the artifact is no model, cannot be opened or cannot be served, `StageError` if its runtime
    describes its inputs and outputs otherwise than the signature: Triton would refuse to load it.
    """
    described = Model.of(model)
    progress.update("comparing the signature with the graph")
    _ensure_signature(described.path(model), described)

    server = _SERVERS[described.runtime]
    file = MODEL_FILES[server.backend]
    files = [name for name in model.files if name != described.file]
    if taken := sorted({CONFIG, PROVENANCE, MANIFEST, LABELS, file}.intersection(files)):
        raise InputError(f"{model.path} holds {taken[0]}, a name that a release needs for itself")
    for name in files:
        link(model.path / name, out / name)
    link(described.path(model), out / file)
    if described.labels:
        (out / LABELS).write_text(_lines(described.labels), encoding="utf-8")

    engines = add_engines(model, options.engines, out)

    try:
        config = build(
            options.name,
            described.signature,
            ConfigOptions(
                backend=server.backend,
                gpu=_gpu(model, described, options, engines) if server.gpu else None,
                max_batch_size=_most_in_batch(described, options),
                **options.model_dump(exclude={"name", "cuda", "engines", "max_batch_size"}),
                labels=LABELS if described.labels else "",
                label_count=len(described.labels),
            ),
        )
    except RepositoryError as error:
        raise InputError(f"{described.path(model)} cannot be served by Triton: {error}") from error
    (out / CONFIG).write_text(to_text(config), encoding="utf-8")

    metadata = {
        "name": options.name,
        "backend": server.backend,
        "batched": described.signature.batched,
        "max_batch_size": config.max_batch_size,
        "threads": options.threads,
        "task": described.task,
        "precision": described.precision,
        "signature": described.signature.model_dump(mode="json"),
        "config": CONFIG,
        "file": file,
        "assets": ASSETS if any(Path(name).parts[0] == ASSETS for name in files) else None,
        "labels": LABELS if described.labels else None,
    }
    if described.engine is not None:
        metadata["engine"] = described.engine.model_dump(mode="json")
        metadata["engines"] = {capability: one.model_dump(mode="json") for capability, one in engines.items()}
    return Artifact.write(out, "release", metadata, {"model": model})


def _gpu(model: Artifact, described: Model, options: PackageOptions, engines: Mapping[str, Engine]) -> GpuOptions:
    engine = described.engine
    if engine is None:
        provider = accelerator_parameters(options.cuda, model)
        return GpuOptions(tensorrt_provider=provider, tf32=options.cuda.tf32)
    if engine.stripped:
        raise InputError("an engine without its weights cannot be served: Triton's backend gives it none")
    # The engine is named for its GPU; one for several is what those take that have none of their own.
    own = {} if engine.hardware_compatible != "none" else {engine.compute_capability: MODEL_FILES["tensorrt"]}
    return GpuOptions(
        plans=own | {capability: plan_name(capability) for capability in engines},
        profiles=max(1, len(engine.profiles)),
    )


def _most_in_batch(described: Model, options: PackageOptions) -> int:
    """No more than an engine takes: Triton refuses a configuration that promises more."""
    if described.engine is None or not described.engine.profiles or not described.signature.batched:
        return options.max_batch_size
    sizes = [most[0] for profile in described.engine.profiles for _, _, most in profile.values()]
    return min(options.max_batch_size, *sizes)


def _ensure_signature(graph: Path, described: Model) -> None:
    """Compare with what the model's runtime says of the graph after its own shape inference, as Triton's backend does.

    Names of dynamic axes mean nothing to it. ONNX Runtime's compares each output axis and refuses one that is fixed
    here and dynamic there or the other way round; OpenVINO's (`CompareDimsSupported`) takes any size for an axis that
    it finds dynamic, and knows a tensor by one name only.
    """
    server = _SERVERS[described.runtime]
    found = server.signature_of(graph)
    signature, runtime = described.signature, server.name
    for kind, declared, reported in (
        ("input", signature.inputs, found.inputs),
        ("output", signature.outputs, found.outputs),
    ):
        if not server.names_axes:
            reported = tuple(_as_declared(tensor, declared) for tensor in reported)
        ours, theirs = [_shown(tensor) for tensor in declared], [_shown(tensor) for tensor in reported]
        if ours != theirs:
            raise StageError(
                f"{graph}: the signature has the {kind}s {', '.join(ours)}, but {runtime} finds {', '.join(theirs)} "
                f"in the graph, and Triton would refuse to load it. Describe the model by what {runtime} finds"
            )


def _as_declared(reported: TensorSpec, declared: tuple[TensorSpec, ...]) -> TensorSpec:
    """The tensor with the declared sizes for the axes that were found dynamic."""
    named = next((tensor for tensor in declared if tensor.name == reported.name), reported)
    if len(named.shape) != len(reported.shape):
        return reported
    shape = tuple(
        wanted if isinstance(size, str) else size for size, wanted in zip(reported.shape, named.shape, strict=True)
    )
    return reported.model_copy(update={"shape": shape})


def _shown(tensor: TensorSpec) -> str:
    sizes = ", ".join("?" if isinstance(size, str) else str(size) for size in tensor.shape)
    return f"{tensor.name} {tensor.dtype}[{sizes}]"


def _lines(labels: tuple[str, ...]) -> str:
    """One label a line, as Triton reads them. Raises `InputError` for a label of several lines."""
    for label in labels:
        if "\n" in label or "\r" in label:
            raise InputError(f"the label {label!r} goes over several lines; Triton reads one label a line")
    return "".join(f"{label}\n" for label in labels)


PACKAGE = Stage(
    name="package",
    revision=1,
    function=package,
    libraries=("onnxruntime", "protobuf", "tritonclient"),
    preload=("onnxruntime", "tritonclient.grpc.model_config_pb2"),
)
