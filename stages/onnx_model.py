"""ONNX graphs as model artifacts: read one, say what is in it, write one with its metadata and assets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repository.signature import DType, Signature, TensorSpec
from stages.artifact import Artifact, link
from stages.convert.graph import strip
from stages.convert.writer import write
from stages.errors import InputError, StageError
from stages.model import ASSETS, Model, ModelRuntime, Task

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "copy_model", "ensure_signature", "nodes", "operator_counts", "opset", "read_graph", "signature_of", "weight_bytes",
    "write_model",
]  # fmt: skip

_GRAPH = "model.onnx"

_DTYPES: dict[str, DType] = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "STRING": "string",
}


def read_graph(artifact: Artifact) -> ir.Model:
    """The graph of a model artifact; external weights stay on disk until they are used.

    Raises `InputError` if the file is missing or is not ONNX.
    """
    import onnx_ir
    from google.protobuf.message import DecodeError

    path = Model.of(artifact).path(artifact)
    try:
        return onnx_ir.load(path)
    except (OSError, DecodeError) as error:
        raise InputError(f"{path} cannot be read as an ONNX model: {error}") from error


def write_model(
    graph: ir.Model,
    out: Path,
    *,
    signature: Signature,
    task: Task = "generic",
    precision: str = "fp32",
    runtime: ModelRuntime = "onnxruntime",
    fused: bool = False,
    labels: tuple[str, ...] = (),
    assets: Path | None = None,
    made_from: Mapping[str, Artifact] | None = None,
) -> Artifact:
    """Write `graph` and the files of the folder `assets` into `out` as a model artifact, the same bytes each time.

    What an exporter notes at each node (stack traces, file names) is left out: it tells of the machine of the export,
    not of the model. Weights are streamed from where they lie, into a file beside the graph if they are very large.

    Raises `StageError` if the graph's inputs and outputs are not those of `signature`.
    """
    ensure_signature(graph, signature)
    strip(graph)
    write(graph, out / _GRAPH)
    if assets is not None and assets.is_dir():
        for file in sorted(assets.rglob("*")):
            if file.is_file():
                link(file, out / ASSETS / file.relative_to(assets))
    model = Model(
        file=_GRAPH,
        task=task,
        signature=signature,
        precision=precision,
        runtime=runtime,
        fused=fused,
        opset=opset(graph),
        labels=labels,
        operators=operator_counts(graph),
    )
    return Artifact.write(out, "model", model.model_dump(mode="json"), made_from)


def copy_model(model: Artifact, out: Path, runtime: ModelRuntime | None = None) -> Artifact:
    """The same model again in `out`, by links: the same files, metadata and digest. `runtime`: for another one."""
    for name in model.files:
        link(model.path / name, out / name)
    metadata = model.metadata if runtime is None else {**model.metadata, "runtime": runtime}
    return Artifact.write(out, model.kind, metadata, {"model": model})


def nodes(graph: ir.Model) -> Iterator[ir.Node]:
    """Every node of the graph and of the graphs inside its nodes; functions are not expanded."""
    import onnx_ir

    yield from onnx_ir.traversal.RecursiveGraphIterator(graph.graph)


def operator_counts(graph: ir.Model, domain: str | None = None) -> dict[str, int]:
    """How often each operator occurs, in alphabetical order; `domain` restricts it to one operator set."""
    found = Counter(node.op_type for node in nodes(graph) if domain is None or node.domain == domain)
    return dict(sorted(found.items()))


def weight_bytes(graph: ir.Model) -> int:
    """The bytes of all initialisers, without names and nodes."""
    return sum(
        value.const_value.nbytes
        for part in graph.graphs()
        for value in part.initializers.values()
        if value.const_value is not None
    )


def opset(graph: ir.Model) -> int:
    """The version of the standard ONNX operators that the graph uses."""
    return int(graph.opset_imports.get("", 1))


def signature_of(graph: ir.Model) -> Signature:
    """The inputs and outputs that the graph declares.

    A dynamic axis has its name in the graph; one without a name is called `batch` if it is the first and
    `<tensor>_<axis>` otherwise. Raises `InputError` for a tensor without a dtype or a rank, and for what is no tensor.
    """
    return Signature(
        inputs=tuple(_spec(value) for value in graph.graph.inputs if value.name not in graph.graph.initializers),
        outputs=tuple(_spec(value) for value in graph.graph.outputs),
    )


def ensure_signature(graph: ir.Model, signature: Signature) -> None:
    """Raise `StageError` unless the graph has the tensors of `signature`: names, order, dtypes and axes.

    Where the graph leaves an axis or a whole shape open, the signature may know more.
    """
    values = [value for value in graph.graph.inputs if value.name not in graph.graph.initializers]
    for side, found, wanted in (
        ("inputs", values, signature.inputs),
        ("outputs", list(graph.graph.outputs), signature.outputs),
    ):
        if [value.name for value in found] != [spec.name for spec in wanted]:
            raise StageError(
                f"the graph's {side} are {', '.join(str(value.name) for value in found)}; "
                f"its signature has {', '.join(spec.name for spec in wanted)}"
            )
        for value, spec in zip(found, wanted, strict=True):
            if _dtype(value) != spec.dtype or not _axes_agree(value, spec):
                raise StageError(
                    f"{value.name} is {_dtype(value)} {value.shape} in the graph, "
                    f"but {spec.dtype} {list(spec.shape)} in its signature"
                )


def _axes_agree(value: ir.Value, spec: TensorSpec) -> bool:
    if value.shape is None:
        return True
    if len(value.shape) != len(spec.shape):
        return False
    return all(_axis(axis) in (None, known) for axis, known in zip(value.shape, spec.shape, strict=True))


def _axis(axis: Any) -> int | str | None:
    return axis if isinstance(axis, int) else axis.value or None


def _dtype(value: ir.Value) -> DType | None:
    return _DTYPES.get(value.dtype.name) if value.dtype is not None else None


def _spec(value: ir.Value) -> TensorSpec:
    dtype = _dtype(value)
    if dtype is None or value.shape is None or value.name is None:
        raise InputError(f"{value.name} is declared as {value.type} {value.shape}: a dtype and a rank are needed")
    shape = tuple(
        _axis(axis) if _axis(axis) is not None else "batch" if position == 0 else f"{value.name}_{position}"
        for position, axis in enumerate(value.shape)
    )
    return TensorSpec.model_validate({"name": value.name, "dtype": dtype, "shape": shape})
