"""Data to judge a model by, or to calibrate it with: read, and turned into the inputs of this model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from calibration.dataset import data_files, dataset_type
from calibration.functions import read_function
from calibration.inputs import InputSpec
from calibration.keep import keep_rows
from calibration.samples import Samples
from calibration.tasks import (
    TEXT_TASKS,
    ModelInputs,
    builtin_samples,
    random_samples,
    reads_text,
    samples_from_rows,
    takes_arrays,
)
from stages.artifact import Artifact
from stages.check.metrics import metric_for
from stages.data_checks import few_samples, guessed_preprocessing, try_sample, with_choices
from stages.data_rows import data_rows
from stages.errors import InputError
from stages.mlflow_dataset import bring, is_mlflow_dataset
from stages.model import ASSETS, Model
from stages.progress import Progress
from stages.stage import Stage

__all__ = ["COLLECT", "PREPARE", "CollectOptions", "PrepareOptions", "collect", "locate_data", "prepare"]

BUILTIN_SAMPLES, RANDOM_SAMPLES = 256, 64


class CollectOptions(BaseModel):
    """What to bring: `reference` is `module:function`, of which `rows` bounds one that never ends, or a data set in
    MLflow (see `stages.mlflow_dataset`) at `tracking_uri` (default: MLflow's own)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    rows: int | None = Field(None, ge=1)
    tracking_uri: str | None = None


class PrepareOptions(BaseModel):
    """How data become samples.

    `columns` maps our name for a column to its name in the data. `samples` draws at most so many rows with `seed`,
    stratified by label. `max_length` cuts texts to so many tokens (default: what the checkpoint says). `use` says what
    to feed the model where no data are given: `auto` takes text that Python brings along where the model reads text,
    and random inputs otherwise. `metric` must fit the truth in the data: here it is refused before any measuring.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["evaluation", "calibration"] = "evaluation"
    columns: dict[str, str] = {}
    samples: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    max_length: int | None = Field(None, ge=1)
    use: Literal["auto", "builtin", "synthetic"] = "auto"
    metric: str | None = None


def locate_data(reference: str) -> Artifact | None:
    """A data set where it lies, as an artifact of kind `data`; none for what must be brought (see `collect`).

    The digest is that of its files, wherever they are. Raises `DataError` if there is no such data set.
    """
    if is_mlflow_dataset(reference):
        return None
    kind = dataset_type(reference)
    if kind == "function":
        return None
    folder, names = data_files(reference)
    path = Path(reference)
    return Artifact.of_files(
        folder.absolute(), "data", {"type": kind, "name": path.name or path.resolve().name}, names=names
    )


def collect(options: CollectOptions, out: Path, progress: Progress) -> Artifact:
    """Keep what a function yields, or a data set of MLflow's, as an artifact of kind `data`.

    Raises `DataError` for a function that is not there, fails or yields nothing, and for rows that cannot be kept (see
    `calibration.keep.keep_rows`); for MLflow what `stages.mlflow_dataset.bring` raises.
    """
    progress.update(f"collecting from {options.reference}")
    if is_mlflow_dataset(options.reference):
        return Artifact.write(out, "data", bring(options.reference, options.tracking_uri, out))
    kind, count = keep_rows(islice(read_function(options.reference), options.rows), out, options.reference)
    return Artifact.write(out, "data", {"type": kind, "name": options.reference, "rows": count})


def prepare(
    model: Artifact, options: PrepareOptions, out: Path, progress: Progress, data: Artifact | None = None
) -> Artifact:
    """Samples for `model` from `data`, as an artifact of kind `dataset` that `Samples.load` reads.

    Its metadata say what it is: `evidence` in words, `evidence_kind` (`data`, `builtin`: text that Python brings
    along, `synthetic`: random inputs), the number of `samples`, the `truth`'s kind, the `columns` there were, the
    `classes` by how often they occur, the `tokens` of a text (longest and mean), how many texts were `cut` to what the
    model reads, and `warnings`: what a person should know of these data before trusting what is learnt from them.

    Raises `DataError` for data that are broken or do not fit the model, `InputError` for a metric that does not fit
    the data, `RequirementError` for a missing library.
    """
    description = Model.of(model)
    inputs = ModelInputs(
        task=description.task,
        inputs=tuple(InputSpec(spec.name, spec.dtype, spec.shape) for spec in description.signature.inputs),
        assets=model.path / ASSETS,
        labels=description.labels,
    )
    facts: dict[str, Any]
    if data is not None:
        samples, facts = _from_data(data, model, inputs, options, progress)
    else:
        samples, facts = _made_up(inputs, options, progress)
    if options.metric is not None:
        metric_for(samples.truth, options.metric)
    samples.save(out)
    progress.update(facts["evidence"])
    truth = samples.truth or {}
    few = few_samples(samples) if options.role == "calibration" else []
    metadata = {
        "role": options.role,
        **facts,
        "samples": len(samples),
        "truth": truth.get("kind"),
        "classes": _classes(truth, description.labels),
        "tokens": _tokens(samples),
        "cut": samples.cut,
        "warnings": [*facts.get("warnings", []), *few],
    }
    made_from = {"model": model} if data is None else {"model": model, "data": data}
    return Artifact.write(out, "dataset", metadata, made_from)


COLLECT = Stage(name="collect", revision=1, function=collect, libraries=("numpy",), volatile=True)
PREPARE = Stage(
    name="prepare",
    revision=2,
    function=prepare,
    libraries=("numpy", "pillow", "tokenizers", "transformers"),
    preload=("numpy", "calibration"),
)


def _from_data(
    data: Artifact, model: Artifact, inputs: ModelInputs, options: PrepareOptions, progress: Progress
) -> tuple[Samples, dict[str, Any]]:
    if options.use != "auto":
        raise InputError(f"use: {options.use} says what to take where no data are given, but there are data")
    name = data.metadata.get("name")
    if data.metadata.get("type") in ("txt", "texts"):
        raise InputError(
            f"{name} is plain text, which only language models that generate text take: give a row a sample (.jsonl, "
            ".csv, …)"
        )
    progress.update(f"reading {name}")
    rows = data_rows(data, columns=options.columns, limit=options.samples, seed=options.seed)
    progress.update(f"preparing {len(rows)} rows")
    arrays = takes_arrays(rows, inputs)
    if arrays:
        inputs = with_choices(inputs, model)
    samples = samples_from_rows(rows, inputs, seed=options.seed, max_length=options.max_length)
    if arrays or inputs.task not in TEXT_TASKS:
        try_sample(model, samples, rows)
    what = "query-document pairs" if (samples.truth or {}).get("kind") == "retrieval" else "samples"
    drawn = f"{len(rows)} of {rows.total}" if len(rows) < rows.total else f"{len(rows)}"
    return samples, {
        "evidence": f"{drawn} {what} of {name}",
        "evidence_kind": "data",
        "rows": rows.total,
        "columns": rows.names,
        "warnings": [*data.metadata.get("warnings", []), *([] if arrays else guessed_preprocessing(inputs, samples))],
    }


def _made_up(model: ModelInputs, options: PrepareOptions, progress: Progress) -> tuple[Samples, dict[str, Any]]:
    missing = f"(no --{options.role} was given)"
    if options.use == "builtin" or (options.use == "auto" and reads_text(model)):
        progress.update("reading docstrings of the Python standard library")
        samples = builtin_samples(
            model,
            options.samples or BUILTIN_SAMPLES,
            seed=options.seed,
            max_length=options.max_length,
            part=options.role,
        )
        evidence = f"{len(samples)} docstrings of the Python standard library {missing}"
        return samples, {"evidence": evidence, "evidence_kind": "builtin"}
    progress.update("making random inputs")
    # Evaluation and calibration get different numbers from one seed.
    seed = 2 * options.seed + (options.role == "calibration")
    samples = random_samples(model, options.samples or RANDOM_SAMPLES, seed=seed)
    return samples, {"evidence": f"{len(samples)} random inputs {missing}", "evidence_kind": "synthetic"}


def _classes(truth: Mapping[str, Any], labels: tuple[str, ...]) -> dict[str, int] | None:
    if truth.get("kind") == "label":
        counts = Counter(truth["label"])
    elif truth.get("kind") == "labels":
        counts = Counter(label for sample in truth["labels"] for label in sample if label >= 0)
    else:
        return None
    return {labels[index] if labels else str(index): count for index, count in sorted(counts.items())}


def _tokens(samples: Samples) -> dict[str, float] | None:
    if not samples.padding:
        return None
    lengths = samples.lengths()
    return {"longest": int(lengths.max()), "mean": round(float(lengths.mean()), 1)}
