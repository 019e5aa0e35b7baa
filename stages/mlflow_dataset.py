"""Data sets that MLflow knows: inputs of a run (`mlflow:<run id>/<name>`) and its own (`mlflow:<dataset id>`).

Of a run's data sets MLflow keeps a name, a digest and where the rows came from, not the rows: those are brought from
there, and held against the digest where it is one that MLflow computes from rows. An evaluation dataset, whose id
begins with `d-`, is kept with its rows.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray

from calibration.dataset import data_files, dataset_type
from calibration.errors import DataError
from calibration.keep import keep_rows
from stages.errors import InputError, RequirementError
from stages.mlflow_access import asking

if TYPE_CHECKING:
    from mlflow.entities import Dataset

__all__ = ["bring", "is_mlflow_dataset"]

_PREFIX = "mlflow:"
_COMPUTED = re.compile(r"[0-9a-f]{8}")
_MOST_ROWS = 10_000
"""MLflow's digests look at no more rows."""


def is_mlflow_dataset(reference: str) -> bool:
    """Whether a reference names a data set in MLflow."""
    return reference.startswith(_PREFIX)


def bring(reference: str, tracking_uri: str | None, out: Path) -> dict[str, Any]:
    """Write the files of a data set into `out`; returns the metadata of the `data` artifact: `type`, `name`, the
    `digest` that MLflow recorded, and `warnings`.

    Where a run has several data sets of one name, `mlflow:<run id>/<name>@<digest>` says which.

    Raises `InputError` if MLflow knows no such run or data set, nothing can be read from where the data set came from,
    or what is there has another digest; `RequirementError` if the tracking server or the source cannot be reached.
    """
    owner, _, name = reference.removeprefix(_PREFIX).partition("/")
    with asking(reference, tracking_uri) as client:
        if not name and owner.startswith("d-"):
            return _own_records(client.get_dataset(owner), reference, out)
        if not (owner and name):
            raise InputError(f"{reference} names no data set: say mlflow:<run id>/<name>, or mlflow:<dataset id>")
        recorded = [given.dataset for given in client.get_run(owner).inputs.dataset_inputs]
    dataset = _chosen(recorded, name, reference)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        path = _found(dataset, reference, Path(scratch))
        try:
            kind = dataset_type(path)
        except DataError as error:
            raise InputError(f"{reference}: {error}") from error
        warnings = _verified(dataset, kind, path, reference)
        folder, names = data_files(path)
        for file in names:
            # Copied, not linked: a file of the user's may be written to later.
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, out / file)
    return {"type": kind, "name": reference, "digest": dataset.digest, "warnings": warnings}


def _own_records(dataset: Any, reference: str, out: Path) -> dict[str, Any]:
    rows = ({**record.inputs, **(record.expectations or {})} for record in dataset.records)
    kind, count = keep_rows(iter(enumerate(rows, 1)), out, f"{reference} ({dataset.name})")
    return {"type": kind, "name": reference, "rows": count, "digest": dataset.digest, "warnings": []}


def _chosen(recorded: Sequence[Dataset], name: str, reference: str) -> Dataset:
    found = [dataset for dataset in recorded if name in (dataset.name, f"{dataset.name}@{dataset.digest}")]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{dataset.name}@{dataset.digest}" for dataset in found or recorded) or "none"
    if found:
        raise InputError(f"{reference}: the run has several data sets of this name; say which: {known}")
    raise InputError(f"{reference}: the run has no data set {name!r}; it has {known}")


def _found(dataset: Dataset, reference: str, scratch: Path) -> Path:
    """Where the files of a data set lie on this machine, brought under `scratch` if they did not."""
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json
    from mlflow.data.filesystem_dataset_source import FileSystemDatasetSource
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource

    if dataset.source_type == "local":
        uri = str(json.loads(dataset.source)["uri"])
        path = Path(url2pathname(urlsplit(uri).path) if uri.startswith("file:") else uri)
        if not path.exists():
            raise InputError(f"{reference} came from {uri}, and nothing is there on this machine: give the file itself")
        return path
    came = f"{reference} came from {dataset.source} ({dataset.source_type})"
    try:
        source = get_dataset_source_from_json(dataset.source, dataset.source_type)
        if isinstance(source, (FileSystemDatasetSource, HTTPDatasetSource)):
            return Path(source.load(str(scratch)))
        if isinstance(source, HuggingFaceDatasetSource) and source.split not in (None, "None"):
            source.load().save_to_disk(scratch / "data")
            return scratch / "data"
    except Exception as error:  # each kind of store has its own
        raise RequirementError(f"{came}, and cannot be had from there: {error}") from error
    raise InputError(f"{came}: that names no file and no split of a data set; give the data")


def _verified(dataset: Dataset, kind: str, path: Path, reference: str) -> list[str]:
    """Hold the files against the recorded digest; a warning if it says nothing of the rows."""
    try:
        digests = _digests(dataset, kind, path) if _COMPUTED.fullmatch(dataset.digest) else None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{reference}: {path} cannot be read: {error}") from error
    if digests is None:
        return [f"the digest of {reference} is not made from its rows, so they may have changed since"]
    if dataset.digest not in digests:
        raise InputError(
            f"{reference} has the digest {dataset.digest}, and what is at {path} has not: it has changed since, or the "
            "run read it in another way than MLflow does; give the file itself if it is what you want"
        )
    return []


def _digests(dataset: Dataset, kind: str, path: Path) -> set[str] | None:
    """What MLflow's digest would be, in every way that the data set may have been made from the file; None if the
    digest was not made from rows, or from something else than these files hold."""
    from mlflow.data.digest_utils import compute_numpy_digest, compute_pandas_digest

    profile: Mapping[str, Any] = json.loads(dataset.profile or "null") or {}
    if "features_shape" in profile and kind == "npz":
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        targets = _like(profile["targets_shape"], arrays) if "targets_shape" in profile else [None]
        return {
            compute_numpy_digest(features, target)
            for features in _like(profile["features_shape"], arrays)
            for target in targets
        }
    if "num_elements" not in profile and "dataset_size" not in profile:
        return None
    frame = _frame(kind, path)
    return None if frame is None else {compute_pandas_digest(frame)}


def _like(shape: Any, arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
    """The arrays that a recorded shape may be about: those of this shape or, by name, all together."""
    if isinstance(shape, dict):
        return [{name: arrays[name] for name in shape}] if shape.keys() <= arrays.keys() else []
    return [array for array in arrays.values() if list(array.shape) == shape]


def _frame(kind: str, path: Path) -> Any:
    """The table that `mlflow.data.from_pandas` and `from_huggingface` are given as a rule."""
    import pandas

    if kind == "csv":
        return pandas.read_csv(path)
    if kind == "jsonl":
        return pandas.read_json(path, lines=True)
    if kind == "parquet":
        return pandas.read_parquet(path)
    if kind == "datasets":
        import datasets

        return next(iter(datasets.load_from_disk(str(path)).to_pandas(batch_size=_MOST_ROWS, batched=True)))
    return None
