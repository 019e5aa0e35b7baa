"""Put a model together with its configuration as a release: the tree that `model_repository.Repository` publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from model_repository import RepositoryError
from model_repository.config import MODEL_FILES, ConfigOptions, build, to_text
from model_repository.layout import CONFIG, LABELS, NAME, PROVENANCE
from model_repository.signature import Signature, TensorSpec
from stages.artifact import MANIFEST, Artifact, link
from stages.errors import InputError, StageError
from stages.model import ASSETS, Model
from stages.progress import SILENT, Progress
from stages.runtime.onnxruntime import signature_of
from stages.stage import Stage

__all__ = ["PACKAGE", "PackageOptions", "package"]


class PackageOptions(BaseModel):
    """How the model is to be served.

    `name`: under which clients ask for it. `max_batch_size`: 0 = no batching. `max_queue_delay_us`: how long (µs) a
    request may wait for others. `threads`: within one operator; 0 = every core of the server. `typical_length`: of a
    dynamic axis in the warm-up, and `axis_lengths` the same for axes by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    backend: Literal["onnxruntime"] = "onnxruntime"
    max_batch_size: NonNegativeInt = 8
    max_queue_delay_us: NonNegativeInt = 100
    threads: NonNegativeInt = 0
    typical_length: PositiveInt = 16
    axis_lengths: dict[str, PositiveInt] = Field(default_factory=dict)


def package(*, model: Artifact, options: PackageOptions, out: Path, progress: Progress = SILENT) -> Artifact:
    """Lay out a release of a model artifact in `out`: an artifact of kind `release`.

    It holds `config.pbtxt` (without a version policy), the graph as `model.onnx`, its external data under the names
    that the graph knows, `assets/`, and `labels.txt` where the classes have names. The metadata: `name`, `backend`,
    `batched`, `max_batch_size` (0 where the graph has no batch axis, whatever was asked for), `threads`, `task`,
    `precision`, `signature`, and the names `config`, `file`, `assets`, `labels` (the last two null where there are
    none).

    Raises `InputError` if the artifact is no model, cannot be opened or cannot be served, `StageError` if ONNX Runtime
    describes its inputs and outputs otherwise than the signature: Triton would refuse to load it.
    """
    described = Model.of(model)
    progress.update("comparing the signature with the graph")
    _ensure_signature(described.path(model), described.signature)

    files = {name: name for name in model.files if name != described.file}
    if taken := sorted({CONFIG, PROVENANCE, MANIFEST, LABELS, MODEL_FILES[options.backend]} & files.keys()):
        raise InputError(f"{model.path} holds {taken[0]}, a name that a release needs for itself")
    for name in files:
        link(model.path / name, out / name)
    link(described.path(model), out / MODEL_FILES[options.backend])
    if described.labels:
        (out / LABELS).write_text(_lines(described.labels), encoding="utf-8")

    try:
        config = build(
            options.name,
            described.signature,
            ConfigOptions(
                **options.model_dump(exclude={"name"}),
                labels=LABELS if described.labels else "",
                label_count=len(described.labels),
            ),
        )
    except RepositoryError as error:
        raise InputError(f"{described.path(model)} cannot be served by Triton: {error}") from error
    (out / CONFIG).write_text(to_text(config), encoding="utf-8")

    metadata = {
        "name": options.name,
        "backend": options.backend,
        "batched": described.signature.batched,
        "max_batch_size": config.max_batch_size,
        "threads": options.threads,
        "task": described.task,
        "precision": described.precision,
        "signature": described.signature.model_dump(mode="json"),
        "config": CONFIG,
        "file": MODEL_FILES[options.backend],
        "assets": ASSETS if any(Path(name).parts[0] == ASSETS for name in files) else None,
        "labels": LABELS if described.labels else None,
    }
    return Artifact.write(out, "release", metadata, {"model": model})


def _ensure_signature(graph: Path, signature: Signature) -> None:
    """Compare with what ONNX Runtime says of the graph after its own shape inference.

    Triton's backend compares each output axis with that, not with what is written in the file, and refuses one that is
    fixed here and dynamic there or the other way round. Names of dynamic axes mean nothing to it.
    """
    found = signature_of(graph)
    for kind, declared, reported in (
        ("input", signature.inputs, found.inputs),
        ("output", signature.outputs, found.outputs),
    ):
        ours, theirs = [_shown(tensor) for tensor in declared], [_shown(tensor) for tensor in reported]
        if ours != theirs:
            raise StageError(
                f"{graph}: the signature has the {kind}s {', '.join(ours)}, but ONNX Runtime finds {', '.join(theirs)} "
                "in the graph, and Triton would refuse to load it. Describe the model by what ONNX Runtime finds"
            )


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
