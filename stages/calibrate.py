"""Calibrate: run the model on calibration data, and keep what its activations are like.

One pass serves every variant that learns from data. What is kept is small, and does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from calibration.errors import DataError
from calibration.samples import Samples
from calibration.statistics import Collector
from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.onnx_model import read_graph
from stages.progress import SILENT, Progress
from stages.quantise.operators import Operator, operators, output_of
from stages.stage import Stage
from stages.taps import tapped_session

__all__ = ["CALIBRATE", "CalibrateOptions", "calibrate"]


class CalibrateOptions(BaseModel):
    """`rows`: how many vectors of each activation are kept, drawn evenly. `gram`: keep second moments too (for GPTQ).
    `threads`: 0 is every usable core."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(default=512, ge=16)
    gram: bool = False
    batch_size: int = Field(default=8, ge=1)
    threads: int = Field(default=0, ge=0)
    seed: int = 0


def calibrate(
    model: Artifact, data: Artifact, options: CalibrateOptions, out: Path, progress: Progress = SILENT
) -> Artifact:
    """Statistics of the activations of `model` on `data`: an artifact of kind `statistics`, which
    `calibration.statistics.Statistics` reads.

    The tensors are those that products and convolutions with constant weights take, and what convolutions give (behind
    an activation function, if one follows). Padded positions are left out. Metadata: `samples`, `tensors`, `evidence`,
    `evidence_kind`, `data_digest`.

    Raises `StageError` if the model has nothing to be calibrated or the data are random numbers, `DataError` naming the
    samples on which an activation is not finite, `InputError` if the data are no samples.
    """
    if data.kind != "dataset":
        raise InputError(f"{data.path} is a {data.kind}, not a dataset")
    if data.metadata.get("evidence_kind") == "synthetic":
        raise StageError("random inputs say nothing of a model's real activations: give calibration data")
    samples = Samples.load(data.path)
    graph = read_graph(model)
    tensors = _tensors(operators(graph))
    if not tensors:
        raise StageError("the model has no product or convolution with constant 32-bit weights: nothing to calibrate")
    collector = Collector(rows=options.rows, gram=options.gram, seed=options.seed)
    lengths = samples.lengths()
    fixed = _fixed_batch(graph)
    done = 0
    with tapped_session(graph, [value for value, _ in tensors], options.threads) as session:
        for indices, _ in samples.batches(fixed or options.batch_size):
            filled = [*indices, *indices[-1:] * ((fixed or 0) - len(indices))]
            batch = samples.batch(filled)
            values = session.run(batch)
            valid = _valid(samples, batch, lengths[filled], len(indices))
            part = float(lengths[indices].sum() / lengths.sum())
            for value, axis in tensors:
                name = str(value.name)
                try:
                    collector.add(name, _vectors(values[name], axis, len(filled), len(indices), valid), part)
                except DataError as error:
                    raise DataError(f"{error} on one of the calibration samples {_listed(indices)}") from error
            done += len(indices)
            progress.update("calibrating", done, len(samples))
    collector.save(out)
    metadata = {
        "samples": len(samples),
        "tensors": len(tensors),
        "evidence": data.metadata.get("evidence", data.path.name),
        "evidence_kind": data.metadata.get("evidence_kind", "data"),
        "data_digest": data.digest,
    }
    return Artifact.write(out, "statistics", metadata, {"model": model, "data": data})


CALIBRATE = Stage(
    name="calibrate",
    revision=2,
    function=calibrate,
    libraries=("onnxruntime", "numpy"),
    preload=("onnx_ir", "onnxruntime"),
)


def _tensors(found: list[Operator]) -> list[tuple[Any, int]]:
    """Each tensor once, with the axis of its channels."""
    tensors: dict[Any, int] = {}
    for operator in found:
        if operator.activation is not None:
            tensors.setdefault(operator.activation, 1 if operator.kind == "convolution" else -1)
        if operator.kind == "convolution":
            tensors.setdefault(output_of(operator), 1)
    return list(tensors.items())


def _fixed_batch(graph: Any) -> int | None:
    shape = graph.graph.inputs[0].shape
    return shape[0] if shape is not None and len(shape) and isinstance(shape[0], int) else None


def _valid(
    samples: Samples, batch: Mapping[str, NDArray[Any]], lengths: NDArray[Any], count: int
) -> NDArray[np.bool_] | None:
    """[batch, longest]: which positions belong to one of the first `count` samples, and not to padding; None where
    nothing is padded. Samples of a fixed length were padded before they came here: only their mask tells."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        valid: NDArray[np.bool_] = mask != 0
    elif samples.padding:
        valid = np.arange(lengths.max())[None, :] < lengths[:, None]
    else:
        return None
    valid[count:] = False
    return valid


def _vectors(
    values: NDArray[Any], axis: int, batch: int, count: int, valid: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """[vectors, channels] of a tensor of one batch, of whose samples the first `count` are counted."""
    kept = np.moveaxis(values, axis, -1)
    if len(kept) != batch and len(kept) % batch == 0:  # the positions of all samples one after the other
        kept = kept.reshape(batch, -1, *kept.shape[1:])
    if valid is not None and kept.ndim >= 3 and kept.shape[:2] == valid.shape:
        kept = kept[valid]
    elif len(kept) == batch:
        kept = kept[:count]
    return np.ascontiguousarray(kept.reshape(-1, kept.shape[-1]), dtype=np.float32)


def _listed(indices: list[int]) -> str:
    return ", ".join(str(index) for index in sorted(indices))
