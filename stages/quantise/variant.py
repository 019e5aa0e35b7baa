"""What every variant of a graph has in common: its config, the function that its handler extends, and what it must
hold to.

Every variant is made as an ONNX graph. For OpenVINO that graph is then turned into its IR; for TensorRT it is compiled
by a stage of its own (`stages.compile`), and is for ONNX Runtime until then.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from calibration.statistics import Statistics
from stages.artifact import Artifact, link
from stages.errors import StageError
from stages.model import ASSETS, Model
from stages.onnx_model import nodes, weight_bytes, write_model
from stages.progress import Progress
from stages.trial import Answer, trial_answers, trial_batches
from stages.variant import Variant

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["NonFiniteError", "Runtime", "VariantConfig", "build", "write_variant"]

Runtime = Literal["onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt"]


class VariantConfig(Variant):
    """The parameters of one variant of a graph.

    `exclude` names operators that stay as they are, by the name of their node or of their first output. `smaller` says
    whether its weights must take less room than the baseline's. A subclass overrides `needs_gram` if it wants second
    moments of the activations.
    """

    smaller: ClassVar[bool] = True

    runtime: Runtime = "onnxruntime"

    @property
    def can_fall_back(self) -> bool:
        """Whether it has integer operators that could return to higher precision."""
        return self.precision.startswith("int")

    @property
    def needs_gram(self) -> bool:
        """Whether the statistics must hold second moments of the activations, which takes room and time."""
        return False

    @property
    def arithmetic(self) -> Literal["fp32", "bf16"]:
        """What is computed in where nothing is quantised (`Model.arithmetic`)."""
        return "fp32"

    @property
    def takes_fused_graph(self) -> bool:
        """Whether it can be made from a graph with ONNX Runtime's fused operators."""
        return self.runtime in ("onnxruntime", "onnxruntime-cuda") and not self.needs_data


class NonFiniteError(StageError):
    """A variant answers NaN or infinity where the model that it was made from does not."""


@singledispatch
def build(
    config: VariantConfig, model: Artifact, out: Path, progress: Progress, statistics: Statistics | None
) -> Artifact:
    """Write the form of `model` that `config` describes into `out`. Each variant's file registers its own.

    `statistics` are there if the config needs data: those of the activations of this very graph.
    """
    raise TypeError(f"no handler is registered for {type(config).__name__}")


def write_variant(graph: ir.Model, model: Artifact, out: Path, config: VariantConfig, bytes_before: int) -> Artifact:
    """Write `graph` as a variant of `model`, with the model's signature, labels and assets.

    `bytes_before` are the bytes of the model's weights (`weight_bytes`).

    Raises `StageError` if the weights are not smaller than that, if the signature has changed, or if the graph does not
    open in its runtime or fails on a random batch that the model takes, and `NonFiniteError` if its answers are not
    finite there.
    """
    about = Model.of(model)
    bytes_after = weight_bytes(graph)
    if config.smaller and bytes_after >= bytes_before:
        raise StageError(
            f"{config.name} made the weights no smaller: {bytes_after:,} bytes, and {bytes_before:,} before it"
        )
    on_gpu = config.runtime == "onnxruntime-cuda"
    batches = trial_batches(graph, about.signature)
    _forget(graph)
    if config.runtime == "openvino":
        variant = _write_ir(graph, model, out, config)
    else:
        variant = write_model(
            graph,
            out,
            runtime="onnxruntime-cuda" if on_gpu else "onnxruntime",
            signature=about.signature,
            task=about.task,
            precision=config.precision,
            fused=about.fused,
            labels=about.labels,
            assets=model.path / ASSETS,
            made_from={"model": model},
        )
    # A graph for a GPU may be made on a machine without one; ONNX Runtime's CPU provider reads it as well.
    tried = replace(variant, metadata={**variant.metadata, "runtime": "onnxruntime"}) if on_gpu else variant
    answers = trial_answers(tried, batches)
    if any(_troubled(answer) for answer in answers):
        # Trouble is the variant's own only where the model itself has none: only then is the model opened as well.
        for answer, expected in zip(answers, trial_answers(model, batches), strict=True):
            if _troubled(answer) and not _troubled(expected):
                _raise(config, answer)
    return variant


def _write_ir(graph: ir.Model, model: Artifact, out: Path, config: VariantConfig) -> Artifact:
    """Write the graph as OpenVINO's IR. `Model.operators` counts those of the ONNX graph that it was made from."""
    from stages.runtime.openvino import write_ir

    with tempfile.TemporaryDirectory() as folder:
        about = Model.of(model)
        written = write_model(graph, Path(folder), signature=about.signature, task=about.task, labels=about.labels)
        described = Model.of(written)
        half = config.precision == "bf16"
        file = write_ir(described.path(written), out, half=half)
        _ensure_small(file.with_suffix(".bin"), weight_bytes(graph) // (2 if half else 1), config)
    for name in model.files:
        if name.startswith(f"{ASSETS}/"):
            link(model.path / name, out / name)
    described = described.model_copy(
        update={
            "file": file.name,
            "runtime": config.runtime,
            "precision": config.precision,
            "arithmetic": config.arithmetic,
        }
    )
    return Artifact.write(out, "model", described.model_dump(mode="json"), {"model": model})


def _forget(graph: ir.Model) -> None:
    """Drop the names of nodes and what was declared of inner values. Engines infer the types, and would stop at a stale
    one; in a small model names and types take as much room as quantised weights."""
    for node in nodes(graph):
        node.name = ""
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = None
                value.shape = None


def _ensure_small(weights: Path, expected: int, config: VariantConfig) -> None:
    """OpenVINO may turn what it does not know as compressed back into floats while it reads the graph."""
    if weights.stat().st_size > 1.1 * expected + 2**16:
        raise StageError(
            f"{config.name}: OpenVINO wrote {weights.stat().st_size:,} bytes of weights, {expected:,} were quantised"
        )


def _troubled(answer: Answer) -> bool:
    return isinstance(answer, StageError) or bool(_not_finite(answer))


def _not_finite(answer: Answer) -> list[str]:
    if isinstance(answer, StageError):
        return []
    return [
        name
        for name, values in answer.items()
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all()
    ]


def _raise(config: VariantConfig, answer: Answer) -> None:
    if isinstance(answer, StageError):
        raise StageError(f"{config.name} fails on a batch that the model takes: {answer}") from answer
    raise NonFiniteError(
        f"{config.name} answers NaN or infinity in {', '.join(_not_finite(answer))} to a random batch; "
        "the model that it was made from does not"
    )
