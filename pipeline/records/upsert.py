"""Bringing a record into MLflow so that it is there once, however often and however brokenly it is delivered.

A run is searched by its tags (job, role, variant) before one is made, and the tags are part of the call that makes it.
What a run holds already is known by its tag `optimize.record`, which is written last. Over a network every request
counts: what can go together does, and the variants go side by side.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.records.address import is_server, sqlite_file
from pipeline.records.logged_model import logged_model, point_to
from pipeline.records.migration import of_another_version
from pipeline.records.names import METRICS, is_param
from pipeline.records.record import Dataset, Entry, Record, model_folder
from pipeline.records.view import VIEW_TAG, view_of

__all__ = ["create_database", "upsert"]

_BATCH = 500
"""Metrics in one request; MLflow takes 1,000."""

_SIDE_BY_SIDE = 4
"""Variants that are delivered to a server at once."""


def upsert(record: Record, files: Path) -> tuple[str, str]:
    """Deliver a record whose artifact files lie in `files`. Returns the ids of the experiment and of the job's run.

    Of a run that is still going on only the job's run is made, which its release names; the rest comes with the record
    of its end. Raises `MlflowException` for whatever the server or the database has against it.
    """
    from mlflow import MlflowClient

    database = sqlite_file(record.tracking_uri)
    if database is not None:
        create_database(database, files.parent.parent)
        _refuse_to_migrate(database, record.tracking_uri)
    client = MlflowClient(record.tracking_uri)
    experiment_id, shown = _experiment(client, record)
    found = _existing(client, experiment_id, record.job_id)
    job, *variants = record.entries
    if record.running:
        job, variants = job.model_copy(update={"datasets": [], "files": {}}), []
    # First, and alone: two requests at once that bring the same dataset would both make it.
    run, _ = _deliver(client, experiment_id, job, found.get((job.role, job.variant)), files)
    published = job.tags.get("optimize.chosen")
    largest_first = sorted(variants, key=lambda entry: entry.model is None)
    with ThreadPoolExecutor(_SIDE_BY_SIDE if is_server(record.tracking_uri) else 1, "variant") as pool:
        at_work = [
            (entry, pool.submit(_deliver, client, experiment_id, entry, found.get((entry.role, entry.variant)), files))
            for entry in largest_first
        ]
    for entry, done in at_work:
        _, model_id = done.result()
        if entry.variant == published and model_id is not None:  # the job shows its figures, and so its model
            point_to(client, run, model_id)
    view = view_of(record)
    if not record.running and shown != view:  # the columns of MLflow's table; a running job has not all of its figures
        client.set_experiment_tag(experiment_id, VIEW_TAG, view)
    return experiment_id, str(run.info.run_id)


def create_database(file: Path, scratch: Path) -> None:
    """Make an MLflow database at `file` if there is none, whole or not at all.

    MLflow fills a new database over seconds, in many steps, and can do nothing with one that was left in between; so it
    is filled in `scratch` and then linked into place.
    """
    if file.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(dir=scratch, prefix=f".scratch-{os.getpid()}-") as folder:
        fresh = Path(folder) / "mlflow.db"
        store = SqlAlchemyStore(f"sqlite:///{fresh}", _artifacts(file))
        store.engine.dispose()
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{Path(folder).name}")
        try:
            shutil.copyfile(fresh, beside)
            file.hardlink_to(beside)
        except FileExistsError:
            pass  # another process was quicker
        finally:
            beside.unlink(missing_ok=True)


def _refuse_to_migrate(file: Path, uri: str) -> None:
    from mlflow.exceptions import MlflowException

    if of_another_version(file):
        raise MlflowException(
            f"{file} was made by another version of MLflow, which could not read it any more if this one wrote to it; "
            f"`mlflow db upgrade {uri}` changes it for good"
        )


def _artifacts(database: Path) -> str:
    return (database.parent / "mlartifacts").as_uri()


def _experiment(client: Any, record: Record) -> tuple[str, str | None]:
    """The id of the record's experiment, and what its table shows."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(record.experiment)
    if experiment is None:
        database = sqlite_file(record.tracking_uri)
        location = None
        if database is not None:
            # MLflow's own default is a folder of whatever directory the process happens to be in.
            location = f"{_artifacts(database)}/{record.experiment}"
        try:
            return str(client.create_experiment(record.experiment, artifact_location=location)), None
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(record.experiment)
    if experiment.lifecycle_stage != "active":
        raise MlflowException(
            f"the experiment {record.experiment!r} was deleted: restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    return str(experiment.experiment_id), experiment.tags.get(VIEW_TAG)


def _existing(client: Any, experiment_id: str, job_id: str) -> dict[tuple[str, str], Any]:
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], f"tags.`optimize.job_id` = '{job_id}'", page_token=token)
        runs += page
        token = page.token
        if not token:
            break
    tags = [run.data.tags for run in runs]
    return {
        (tag.get("optimize.role"), tag.get("optimize.variant", "")): run for tag, run in zip(tags, runs, strict=True)
    }


def _deliver(client: Any, experiment_id: str, entry: Entry, run: Any, files: Path) -> tuple[Any, str | None]:
    """Bring one entry into its `run`, or into a new one. Returns the run as it was before, and the id of its logged
    model."""
    if run is not None and run.data.tags.get("optimize.record") == entry.digest:
        held = [] if run.outputs is None else run.outputs.model_outputs
        return run, held[0].model_id if held else None
    if run is not None and _contradicts(run, entry):
        client.delete_run(run.info.run_id)
        run = None
    if run is None:
        identity = ("optimize.job_id", "optimize.role", "optimize.variant", "mlflow.user", "mlflow.source.name")
        run = client.create_run(
            experiment_id,
            start_time=entry.start_ms,
            run_name=entry.name,
            tags={name: value for name, value in entry.tags.items() if name in identity},
        )
    run_id = str(run.info.run_id)
    model_id = None
    if entry.model is not None:
        folder = files / model_folder(entry.variant)
        model_id = logged_model(client, experiment_id, run_id, entry.model, lambda: folder)
        point_to(client, run, model_id)
    for name in run.data.tags:
        if name.startswith("optimize.") and name not in entry.tags and name != "optimize.record":
            client.delete_tag(run_id, name)
    if entry.datasets:
        client.log_inputs(run_id, datasets=[_dataset(data) for data in entry.datasets])
    for name in entry.files:
        client.log_artifact(run_id, str(files / name))
    if entry.end_ms is not None:
        client.set_terminated(run_id, status=entry.status, end_time=entry.end_ms)
    elif run.info.status != entry.status:
        client.update_run(run_id, status=entry.status)
    _log(client, run, entry, model_id)
    return run, model_id


def _contradicts(run: Any, entry: Entry) -> bool:
    """Whether the run holds what MLflow cannot take back: another value of a parameter, a metric that is no more."""
    params: Mapping[str, str] = run.data.params
    if any(is_param(name) and entry.params.get(name) != value for name, value in params.items()):
        return True
    measured = {*entry.metrics, *(name for name, _, _ in entry.sweeps)}
    ours = {name.partition("/")[0] for name in METRICS} - {"job"}
    return any(name not in measured and name.partition("/")[0] in ours for name in run.data.metrics)


def _log(client: Any, run: Any, entry: Entry, model_id: str | None) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run_id, held = run.info.run_id, run.data.metrics
    # The time is the run's own: a metric that comes twice is the same metric to MLflow.
    time_ms = entry.start_ms
    metrics = [Metric(name, value, time_ms, 0) for name, value in entry.metrics.items() if held.get(name) != value]
    if model_id is not None:  # those of a model carry its id, also where the run had them before there was a model
        data = next((data for data in entry.datasets if data.context == "evaluation"), None)
        name, digest = (None, None) if data is None else (data.name, data.digest)
        metrics = [
            Metric(key, value, time_ms, 0, model_id=model_id, dataset_name=name, dataset_digest=digest, run_id=run_id)
            for key, value in entry.metrics.items()
        ]
    swept = {name for name, _, _ in entry.sweeps} & set(held)
    points = {(name, point.step, point.value) for name in swept for point in client.get_metric_history(run_id, name)}
    metrics += [
        Metric(name, value, time_ms, step) for name, step, value in entry.sweeps if (name, step, value) not in points
    ]
    params = [Param(name, value) for name, value in entry.params.items() if name not in run.data.params]
    # Of one batch the tags are written last (MLflow 3.17, `SqlAlchemyStore.log_batch`), and this one is the last batch.
    tags = [RunTag(name, value) for name, value in (entry.tags | {"optimize.record": entry.digest}).items()]
    for start in range(_BATCH, len(metrics), _BATCH):
        client.log_batch(run_id, metrics[start : start + _BATCH])
    client.log_batch(run_id, metrics[:_BATCH], params, tags)


def _dataset(data: Dataset) -> Any:
    from mlflow import entities

    return entities.DatasetInput(
        entities.Dataset(
            name=data.name,
            digest=data.digest,
            source_type="local",
            source=json.dumps({"uri": data.source}),
            profile=json.dumps({"num_rows": data.samples}),
        ),
        tags=[entities.InputTag("mlflow.data.context", data.context)],
    )
