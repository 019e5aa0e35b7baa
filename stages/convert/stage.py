"""The stage that turns a source into an ONNX model artifact."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from stages.artifact import Artifact, link
from stages.convert.agreement import answers, require_agreement
from stages.convert.graph import operators, to_onnx
from stages.convert.program import Program, load
from stages.convert.writer import write
from stages.errors import InputError
from stages.model import ASSETS, Model, Task
from stages.progress import SILENT, Progress
from stages.runtime.onnxruntime import OnnxRuntimeSession
from stages.runtime.pytorch import TorchSession
from stages.source import huggingface, onnx_file
from stages.stage import Stage

__all__ = ["CONVERT", "ConvertOptions", "convert"]

_FILE = "model.onnx"

_THREADS = 1
"""For the comparison: its batches are small, and threads that wait for each other would cost more than they save."""


class ConvertOptions(BaseModel):
    """How a model is converted. ONNX Runtime's answers must be within `atol + rtol · |value|` of PyTorch's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opset: int = 20
    atol: float = 1e-4
    rtol: float = 1e-3
    allow_pickle: bool = False
    trust_remote_code: bool = False


def convert(
    *, source: Artifact, options: ConvertOptions | None = None, out: Path, progress: Progress = SILENT
) -> Artifact:
    """Write `out`/model.onnx and `out`/assets, and return the artifact of kind `model`.

    A PyTorch model is exported with its batch and sequence axes dynamic and then has to agree with ONNX Runtime on
    batches of other shapes than the one it was traced with. An ONNX file is checked, and its external data taken in.
    The same source gives the same bytes.
    Raises `InputError` if the source is damaged, unsafe or lacks weights; `StageError` if it cannot be exported or
    the two do not agree.
    """
    options = options or ConvertOptions()
    # Whatever a library prints is for people; standard output belongs to the program's own document.
    with contextlib.redirect_stdout(sys.stderr), _without_collection():
        if source.metadata["type"] == "onnx":
            model = _from_onnx(source, out, progress)
        else:
            model = _from_torch(source, options, out, progress)
    return Artifact.write(out, "model", model.model_dump(mode="json"), {"source": source})


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage collection meanwhile.

    Importing and tracing make millions of small objects that live to the end; walking them over and over costs a tenth
    of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _from_torch(source: Artifact, options: ConvertOptions, out: Path, progress: Progress) -> Model:
    progress.update("loading the model")
    program = load(source, allow_pickle=options.allow_pickle, trust_remote_code=options.trust_remote_code)
    progress.update("exporting to ONNX")
    graph = to_onnx(program, options.opset)
    write(graph, out / _FILE)
    counts, opset = operators(graph), graph.opset_imports[""]
    del graph

    progress.update("comparing ONNX Runtime with PyTorch")
    trials, labels = program.trials, program.labels
    expected = _torch_answers(program)
    # PyTorch's weights are let go before ONNX Runtime brings its own.
    del program
    with OnnxRuntimeSession(out / _FILE, _THREADS) as session:
        require_agreement(session, trials, expected, atol=options.atol, rtol=options.rtol)
        signature = session.signature
    _copy_assets(source, out / ASSETS, labels)
    task: Task = source.metadata["task"]
    return Model(task=task, signature=signature, opset=opset, labels=labels, operators=counts)


def _from_onnx(source: Artifact, out: Path, progress: Progress) -> Model:
    import onnx
    import onnx_ir as ir

    path = source.path / source.metadata["file"]
    progress.update("checking the ONNX file")
    document = onnx_file.read(path)
    external = onnx_file.external_files(document, path.parent)
    del document
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"{path} is not a valid ONNX model: {error}") from error
    graph = ir.load(path)
    if external:
        write(graph, out / _FILE)
    else:
        link(path, out / _FILE)
    with OnnxRuntimeSession(out / _FILE, _THREADS) as session:
        signature = session.signature
    return Model(
        task=source.metadata["task"],
        signature=signature,
        opset=graph.opset_imports.get("", 0),
        operators=operators(graph),
    )


def _torch_answers(program: Program) -> list[dict[str, Any]]:
    with TorchSession(program, _THREADS) as session:
        return answers(session, program.trials)


def _copy_assets(source: Artifact, folder: Path, labels: tuple[str, ...]) -> None:
    """The files that a server or a notebook needs beside the graph to make its inputs and read its outputs."""
    for name in source.files:
        if Path(name).name in huggingface.ASSET_NAMES:
            link(source.path / name, folder / name)
    if labels:
        folder.mkdir(exist_ok=True)
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


CONVERT = Stage(
    name="convert",
    revision=1,
    function=convert,
    libraries=("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy"),
    preload=("stages.convert.preload",),
)
