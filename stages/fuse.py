"""Fuse: attention, layer normalisation, GELU and rotary embeddings become one operator each.

ONNX Runtime's own optimiser fuses no attention in graphs from `torch.onnx.export(dynamo=True)`; the rules of
`onnxscript.rewriter.ort_fusions` are written for them. Whether the fused graph is the faster one is not known here:
that is measured, for every variant.

What ONNX Runtime does by itself whenever it opens a graph (convolution with batch normalisation and activation,
constant folding, layouts) is not repeated, so a convolutional network comes back as it was, with `fused=False` and its
digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from stages.artifact import Artifact
from stages.errors import StageError
from stages.model import ASSETS, Model
from stages.onnx_model import copy_model, operator_counts, read_graph, write_model
from stages.progress import SILENT, Progress
from stages.stage import Stage
from stages.trial import Answer, trial_answers, trial_batches

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["FUSE", "FUSED_DOMAIN", "FuseOptions", "fuse"]

FUSED_DOMAIN = "com.microsoft"
"""The operator set that holds ONNX Runtime's fused operators."""


class FuseOptions(BaseModel):
    """`tolerance`: the largest difference to the unfused graph's outputs, relative to their largest magnitude."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance: float = Field(default=1e-3, gt=0)


def fuse(model: Artifact, options: FuseOptions, out: Path, progress: Progress = SILENT) -> Artifact:
    """Write the fused form of `model`, with `fused=True`, or the model as it is, with `fused=False`.

    The fused graph has answered random batches of several sizes, with padding, as the unfused one does. A model comes
    back as it is where no rule applies, and where it takes none of the random batches, so that a fused graph could not
    be compared.

    Raises `StageError` if onnxscript cannot digest the graph, or if the fused graph disagrees with the unfused one, and
    `InputError` if it does not open.
    """
    about = Model.of(model)
    progress.update("fusing operators")
    graph = read_graph(model)
    before = sum(operator_counts(graph, FUSED_DOMAIN).values())
    graph = _apply_rules(graph)
    if sum(operator_counts(graph, FUSED_DOMAIN).values()) <= before:
        progress.update("nothing to fuse")
        return copy_model(model, out)
    progress.update("comparing with the unfused graph")
    batches = trial_batches(graph, about.signature)
    wanted = trial_answers(model, batches)
    if all(isinstance(answer, StageError) for answer in wanted):
        progress.update("left unfused: the model takes none of the random batches that a fused graph is compared on")
        return copy_model(model, out)
    fused = write_model(
        graph,
        out,
        signature=about.signature,
        task=about.task,
        precision=about.precision,
        fused=True,
        labels=about.labels,
        assets=model.path / ASSETS,
        made_from={"model": model},
    )
    del graph  # its weights are not needed beside those of a session
    _ensure_agreement(batches, wanted, trial_answers(fused, batches), options.tolerance)
    return fused


def _apply_rules(graph: ir.Model) -> ir.Model:
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    try:
        fused, _ = optimize_for_ort(graph)
    except Exception as error:  # whatever its rules run into
        raise StageError(
            f"onnxscript could not fuse this graph ({type(error).__name__}: {error}); run without fusion"
        ) from error
    return fused


def _ensure_agreement(
    batches: list[dict[str, NDArray[Any]]], wanted: list[Answer], found: list[Answer], tolerance: float
) -> None:
    for batch, reference, answer in zip(batches, wanted, found, strict=True):
        if isinstance(reference, StageError):
            continue  # a size that the model does not take
        if isinstance(answer, StageError):
            raise StageError(f"the fused graph fails where the unfused one does not: {answer}") from answer
        for name, values in reference.items():
            difference = _difference(values, answer[name])
            if difference > tolerance:
                shapes = {key: array.shape for key, array in batch.items()}
                raise StageError(
                    f"the fused graph computes another {name}: its largest relative difference is {difference:.2g} "
                    f"on a batch of {shapes}, the limit is {tolerance:.2g}; run without fusion"
                )


def _difference(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """The largest difference relative to the largest magnitude; infinite where finite and non-finite values meet."""
    if reference.shape != found.shape:
        return float("inf")
    if not np.issubdtype(reference.dtype, np.floating):
        return 0.0 if np.array_equal(reference, found) else float("inf")
    if not reference.size:
        return 0.0
    finite = np.isfinite(reference)
    if not np.array_equal(reference[~finite], found[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return float("inf")
    largest = float(np.abs(reference[finite]).max(initial=0.0))
    return float(np.abs(reference[finite] - found[finite]).max(initial=0.0)) / (largest or 1.0)


FUSE = Stage(
    name="fuse",
    revision=1,
    function=fuse,
    libraries=("onnxscript", "onnx-ir", "onnxruntime"),
    preload=("onnxscript.rewriter.ort_fusions", "onnx_ir", "onnxruntime"),
)
