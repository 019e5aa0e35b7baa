"""Data sets from a real MLflow store: those that a run was given, and those that MLflow keeps with their rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from calibration.dataset import read_rows
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError
from stages.prepare import CollectOptions, collect, locate_data
from stages.progress import SILENT

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:mlflow")

REVIEWS = [{"text": f"review number {i}", "label": i % 3} for i in range(30)]


@dataclass(frozen=True)
class Logged:
    """A run with data sets, the files that they came from, and an evaluation dataset."""

    uri: str
    run: str
    files: Path
    own: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[str]:
    """The address of a web server that serves the folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def logged(folder: Path, web: str) -> Logged:
    import mlflow
    import mlflow.data
    import pandas
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    frame = pandas.DataFrame(REVIEWS)
    frame.to_csv(folder / "reviews.csv", index=False)
    frame.to_json(folder / "reviews.jsonl", orient="records", lines=True)
    frame.to_parquet(folder / "reviews.parquet")
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(folder / "arrays.npz", x=x, labels=np.arange(3))
    (folder / "notes.md").write_text("no data")
    data = mlflow.data
    sets = [
        data.from_pandas(pandas.read_csv(folder / "reviews.csv"), source=str(folder / "reviews.csv"), name="csv"),
        data.from_pandas(frame, source=(folder / "reviews.jsonl").as_uri(), name="jsonl", targets="label"),
        data.from_pandas(frame, source=str(folder / "reviews.parquet"), name="parquet"),
        data.from_numpy(x, source=str(folder / "arrays.npz"), targets=np.arange(3), name="array"),
        data.from_numpy({"x": x}, source=str(folder / "arrays.npz"), name="arrays"),
        data.from_pandas(frame.head(10), source=str(folder / "reviews.csv"), name="part"),
        data.from_pandas(frame, source=str(folder / "reviews.csv"), name="custom", digest="v1"),
        data.from_pandas(frame, source=str(folder / "gone.csv"), name="gone"),
        data.from_pandas(frame, source=str(folder / "notes.md"), name="notes"),
        data.from_pandas(frame, name="code"),
        data.from_pandas(frame, source=str(folder / "reviews.csv"), name="twice"),
        data.from_pandas(frame.head(3), source=str(folder / "reviews.csv"), name="twice"),
        MetaDataset(HTTPDatasetSource(f"{web}/reviews.csv"), name="web"),
        MetaDataset(HTTPDatasetSource(f"{web}/absent.csv"), name="absent from the web"),
    ]
    uri = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        experiment = mlflow.create_experiment("data", artifact_location=str(folder / "artifacts"))
        with mlflow.start_run(experiment_id=experiment) as run:
            for dataset in sets:
                mlflow.log_input(dataset, context="evaluation")
        own = mlflow.MlflowClient().create_dataset("reviews", experiment, {})
        own.merge_records([{"inputs": {"text": r["text"]}, "expectations": {"label": r["label"]}} for r in REVIEWS])
    finally:
        mlflow.set_tracking_uri(before)
    return Logged(uri, run.info.run_id, folder, own.dataset_id)


@pytest.fixture
def brought(logged: Logged, tmp_path: Path) -> Any:
    """Collects a data set of the run by its name."""

    def bring(name: str, *, reference: str | None = None) -> Artifact:
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        reference = reference or f"mlflow:{logged.run}/{name}"
        options = CollectOptions(reference=reference, tracking_uri=logged.uri)
        return collect(options=options, out=out, progress=SILENT)

    return bring


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_a_table_that_a_run_was_given_is_brought_and_known_by_its_digest(
    brought: Any, logged: Logged, name: str
) -> None:
    artifact = brought(name)
    assert locate_data(f"mlflow:{logged.run}/{name}") is None
    assert artifact.metadata["type"] == name
    assert artifact.metadata["name"] == f"mlflow:{logged.run}/{name}"
    assert artifact.metadata["warnings"] == []
    assert {file.name for file in artifact.path.iterdir()} == {f"reviews.{name}", "artifact.json"}
    rows = read_rows(artifact.path / f"reviews.{name}")
    assert [(row["text"], int(row["label"])) for row in rows] == [(row["text"], row["label"]) for row in REVIEWS]


@pytest.mark.parametrize("name", ["array", "arrays"])
def test_arrays_that_a_run_was_given_are_known_by_their_digest(brought: Any, name: str) -> None:
    artifact = brought(name)
    assert artifact.metadata["warnings"] == []
    assert read_rows(artifact.path / "arrays.npz").names == ["x", "label"]


def test_a_digest_that_is_not_made_from_rows_is_warned_of(brought: Any) -> None:
    (warning,) = brought("custom").metadata["warnings"]
    assert "the digest of mlflow:" in warning
    assert "is not made from its rows" in warning


def test_files_that_have_changed_since_the_run_are_refused(brought: Any, logged: Logged) -> None:
    file = logged.files / "reviews.csv"
    content = file.read_text()
    try:
        file.write_text(content.replace("number 7", "number 8"))
        with pytest.raises(InputError, match=r"/csv has the digest [0-9a-f]{8}, and what is at .*reviews.csv has not"):
            brought("csv")
        file.write_text('text,label\n"cut off,1\n')
        with pytest.raises(InputError, match=r"/csv: .*reviews.csv cannot be read: "):
            brought("csv")
    finally:
        file.write_text(content)
    with pytest.raises(InputError, match=r"/part has the digest .*the run read it in another way"):
        brought("part")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"the run has no data set 'absent'; it has csv@[0-9a-f]{8}, jsonl@"),
        ("gone", r"gone came from .*gone.csv, and nothing is there on this machine: give the file itself"),
        ("notes", r"/notes: .*notes.md is no data set that can be read"),
        ("code", r"code came from {.*} \(code\): that names no file"),
        ("twice", r"the run has several data sets of this name; say which: twice@[0-9a-f]{8}, twice@"),
    ],
)
def test_what_cannot_be_brought_is_named(brought: Any, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        brought(name)


def test_a_digest_chooses_among_data_sets_of_one_name(brought: Any, logged: Logged) -> None:
    with pytest.raises(InputError) as refusal:
        brought("twice")
    found = str(refusal.value).rpartition("say which: ")[2].split(", ")
    whole = brought("csv").metadata["digest"]
    assert brought(f"twice@{whole}").metadata["digest"] == whole
    assert f"twice@{whole}" in found


def test_a_data_set_on_the_web_is_downloaded(brought: Any) -> None:
    artifact = brought("web")
    assert len(read_rows(artifact.path / "reviews.csv")) == 30
    assert "is not made from its rows" in artifact.metadata["warnings"][0]
    with pytest.raises(RequirementError, match=r"absent from the web came from .*, and cannot be had from there: 404"):
        brought("absent from the web")


def test_an_evaluation_dataset_of_mlflow_comes_with_its_rows(brought: Any, logged: Logged) -> None:
    artifact = brought("", reference=f"mlflow:{logged.own}")
    assert artifact.metadata["rows"] == 30
    rows = [json.loads(line) for line in (artifact.path / "rows.jsonl").read_text().splitlines()]
    assert sorted(rows, key=lambda row: str(row["text"])) == sorted(REVIEWS, key=lambda row: str(row["text"]))
    assert brought("", reference=f"mlflow:{logged.own}").digest == artifact.digest


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mlflow:0123/csv", "mlflow:0123/csv is not in MLflow at sqlite:"),
        ("mlflow:d-0123", "mlflow:d-0123 is not in MLflow at sqlite:"),
        ("mlflow:0123", "names no data set: say mlflow:<run id>/<name>, or mlflow:<dataset id>"),
    ],
)
def test_a_reference_that_mlflow_does_not_know_is_named(brought: Any, reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        brought("", reference=reference)


def test_a_data_set_of_the_hub_is_loaded_by_the_library_that_knows_it(
    brought: Any, logged: Logged, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With files in place of the hub, which the same source may name."""
    datasets = pytest.importorskip("datasets")
    import mlflow
    from mlflow.data.huggingface_dataset import HuggingFaceDataset
    from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    file = tmp_path_factory.mktemp("hub") / "reviews.jsonl"
    shutil.copyfile(logged.files / "reviews.jsonl", file)
    rows = datasets.Dataset.from_list(REVIEWS)
    source = HuggingFaceDatasetSource(path="json", data_files={"test": str(file)}, split="test")
    unsplit = HuggingFaceDatasetSource(path="json", data_files={"test": str(file)})
    client = mlflow.MlflowClient(logged.uri)
    entries = [(source, "hub"), (unsplit, "unsplit")]
    inputs = [
        mlflow.entities.DatasetInput(HuggingFaceDataset(rows, found, name=name)._to_mlflow_entity())
        for found, name in entries
    ]
    client.log_inputs(logged.run, datasets=inputs)
    artifact = brought("hub")
    assert artifact.metadata["type"] == "datasets"
    assert artifact.metadata["warnings"] == []
    assert read_rows(artifact.path).column("label") == [row["label"] for row in REVIEWS]
    with pytest.raises(InputError, match="that names no file and no split of a data set"):
        brought("unsplit")
