"""Run a model on the evaluation data; keep what it did on each sample, beside the truth and beside the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.check.fidelity import nearness
from stages.check.metrics import metric_for, unit_of
from stages.check.outputs import OutputSplitter, ReferenceReader, ReferenceWriter
from stages.check.per_sample import FILE
from stages.check.predictions import PredictionReader, head_of
from stages.errors import InputError
from stages.model import Model
from stages.progress import SILENT, Progress
from stages.runtime import RuntimeName, RuntimeOptions, open_session
from stages.runtime.batch import batches
from stages.runtime.provider import CudaOptions
from stages.stage import Stage

__all__ = ["CHECK", "CheckOptions", "check"]

_PREDICTIONS = "predictions.npz"
_WORST = 10


class CheckOptions(BaseModel):
    """How a model is evaluated.

    `metric`: None takes the usual one for the truth that the data hold. `threads`: 0 is every usable core. `runtime`:
    by default the one that the model was made for; `cuda`: of ONNX Runtime on a GPU. `most_values` bounds what is kept
    of the baseline's outputs, over all samples and outputs together (the default is 256 MB of float32): where they hold
    more (the logits of a masked language model), the cosine and the relative error are taken over evenly spaced
    positions, at least one a sample. The metric, the agreement and the search for NaN always see everything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str | None = None
    batch_size: int = Field(default=8, ge=1)
    threads: int = Field(default=0, ge=0)
    runtime: RuntimeName | None = None
    cuda: CudaOptions = CudaOptions()
    most_values: int = Field(default=64 * 1024 * 1024, ge=1)


def check(
    model: Artifact,
    data: Artifact,
    options: CheckOptions,
    out: Path,
    progress: Progress = SILENT,
    reference: Artifact | None = None,
) -> Artifact:
    """Evaluate `model` on `data`. Returns an artifact of kind `evaluation`.

    `reference` is the baseline's evaluation; without one, `model` is the baseline, and its outputs are kept. Memory
    holds one batch and the predictions, however many samples there are.

    Files: `per_sample.npz` with `cosine`, `relative_error`, `agreement` ([samples] float64, where they exist) and the
    metric's `statistics` ([units, k] float64); for the baseline `outputs/` and `predictions.npz` too. Metadata:
    `metric` (name, value, form, units) or null, `fidelity` (the columns' means), `decisive` (those that the gate judges
    where there is no metric), `samples`, `evidence`, `evidence_kind`, and for a variant `worst`: the ten samples that
    are farthest from the baseline, worst first.

    Raises `InputError` if the data do not fit the model or the metric does not fit the data, `StageError` if an output
    holds NaN or Inf or is not shaped like the baseline's.
    """
    described = Model.of(model)
    if data.kind != "dataset":
        raise InputError(f"{data.path} is a {data.kind}, not a dataset")
    samples = Samples.load(data.path)
    if not len(samples):
        raise InputError(f"there are no samples in {data.path}")
    truth = samples.truth
    metric = metric_for(truth, options.metric)
    head = head_of(described.task, truth)

    splitter = OutputSplitter(described.signature, samples)
    reader = PredictionReader(head, splitter, len(samples), truth) if head else None
    columns = {name: np.full(len(samples), np.nan) for name in ("cosine", "relative_error", "equal")}
    baseline = ReferenceReader(reference) if reference else None
    share = max(1, options.most_values // (len(samples) * len(described.signature.outputs)))
    runtime = RuntimeOptions(name=options.runtime, threads=options.threads, spinning=False, cuda=options.cuda)
    metadata: dict[str, Any] = {}
    done = 0
    with open_session(model, runtime) as session, ReferenceWriter(out, len(samples), share) as writer:
        for indices, batch in batches(samples, described.signature, options.batch_size):
            for sample, answer in splitter.split(indices, session(batch)):
                per_position = {name: splitter.has_positions(name) for name in answer}
                if reader:
                    reader.read(sample, answer)
                if baseline:
                    near = nearness(sample, answer, baseline, per_position)
                    for name, column in columns.items():
                        column[sample] = getattr(near, name)
                else:
                    writer.add(sample, answer, per_position)
            done += len(indices)
            progress.update("checking", done, len(samples))
        if baseline is None:
            metadata["outputs"] = writer.finish()

    predictions = reader.predictions() if reader else None
    kept: dict[str, NDArray[Any]] = {}
    if reference:
        classes = predictions.classes if predictions else ()
        kept = _fidelity(columns, classes, reference, whole=head == "span")
        metadata["decisive"] = _decisive(kept, reads_classes=bool(classes) and head != "embedding")
        metadata["worst"] = _worst(kept)
        metadata["fidelity"] = {name: float(column.mean()) for name, column in kept.items()}
    elif predictions:
        _save_classes(out / _PREDICTIONS, predictions.classes)
    if metric and reader and predictions:
        adjusted = reader.truth()
        assert adjusted is not None
        statistics = metric.statistics(predictions, adjusted)
        kept["statistics"] = statistics
        value = metric.value(statistics)
        if not np.isfinite(value):
            raise InputError(f"the metric {metric.name} cannot be computed on {_evidence(data)}: nothing in it counts")
        metadata["metric"] = {"name": metric.name, "value": value, "form": metric.form, "units": unit_of(adjusted)}
    np.savez_compressed(out / FILE, **kept)  # type: ignore[arg-type]

    about = {
        "metric": None,
        "fidelity": {},
        "decisive": [],
        "samples": len(samples),
        "evidence": _evidence(data),
        "evidence_kind": data.metadata.get("evidence_kind", "data"),
        **metadata,
    }
    made_from = {"model": model, "data": data} | ({"reference": reference} if reference else {})
    return Artifact.write(out, "evaluation", about, made_from)


CHECK = Stage(
    name="check",
    revision=1,
    function=check,
    libraries=("onnxruntime", "numpy"),
    preload=("numpy", "onnxruntime"),
    host_bound=True,  # 8-bit products saturate on CPUs without VNNI: accuracy is a measurement, too
)


def _evidence(data: Artifact) -> str:
    return str(data.metadata.get("evidence", data.path.name))


def _fidelity(
    columns: Mapping[str, NDArray[np.float64]],
    classes: Sequence[NDArray[np.int32]],
    reference: Artifact,
    whole: bool,
) -> dict[str, NDArray[np.float64]]:
    """The columns that exist. Agreement is that of the predictions, or of outputs that are no floats.

    `whole`: a prediction is the same or it is not (a span); otherwise the part of equal classes counts.
    """
    kept = {name: columns[name] for name in ("cosine", "relative_error") if not np.isnan(columns[name]).any()}
    if (reference.path / _PREDICTIONS).is_file() and any(len(one) for one in classes):
        before = _load_classes(reference.path / _PREDICTIONS)
        kept["agreement"] = np.array([_agreement(a, b, whole) for a, b in zip(classes, before, strict=True)])
    elif not np.isnan(columns["equal"]).any():
        kept["agreement"] = columns["equal"]
    return kept


def _decisive(kept: Mapping[str, NDArray[np.float64]], reads_classes: bool) -> list[str]:
    """A classifier must choose the same; anything else must answer the same, be it in floats or in other values."""
    if reads_classes:
        return ["agreement"]
    floats = "cosine" if "cosine" in kept else "relative_error"
    return [name for name in (floats, "agreement") if name in kept]


def _agreement(given: NDArray[np.int32], before: NDArray[np.int32], whole: bool) -> float:
    equal = given == before
    return float(equal.all() if whole or not len(equal) else equal.mean())


def _worst(kept: Mapping[str, NDArray[np.float64]]) -> list[int]:
    """The samples that are farthest from the baseline: by agreement, then cosine, then relative error."""
    by_importance = [
        -kept[name] if name == "relative_error" else kept[name]
        for name in ("relative_error", "cosine", "agreement")
        if name in kept
    ]
    if not by_importance:
        return []
    return [int(sample) for sample in np.lexsort(by_importance)[:_WORST]]


def _save_classes(path: Path, classes: Sequence[NDArray[np.int32]]) -> None:
    counts = np.array([len(one) for one in classes], dtype=np.int64)
    np.savez_compressed(path, counts=counts, classes=np.concatenate(classes))


def _load_classes(path: Path) -> list[NDArray[np.int32]]:
    with np.load(path) as arrays:
        return np.split(arrays["classes"], np.cumsum(arrays["counts"])[:-1])
