"""The logged model of a run: made once, with its files, and tied to the runs that have its figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.records.record import Model

__all__ = ["logged_model", "point_to"]

_IDENTITY = ("optimize.job_id", "optimize.variant", "optimize.files")


def logged_model(client: Any, experiment_id: str, run_id: str, model: Model, files: Callable[[], Path]) -> str:
    """The id of the logged model that holds `model`; found, taken up, or made with the files in the folder that `files`
    gives (it is asked only then). This is the one way by which a release's files get into MLflow.

    MLflow makes the same one twice without a word, so it is searched first, by job, variant and the digest of its
    files: another job's has the same files and other figures. One that is not `READY` was left by a delivery that was
    interrupted, and gets its files again. Raises `MlflowException`.
    """
    query = " and ".join(f"tags.`{name}` = '{model.tags[name]}'" for name in _IDENTITY)
    found = client.search_logged_models([experiment_id], filter_string=query)
    ready = [one for one in found if str(one.status) == "READY"]
    if ready:
        return str(ready[0].model_id)
    if found:
        model_id = str(found[0].model_id)
    else:
        made = client.create_logged_model(
            experiment_id,
            name=model.name,
            source_run_id=run_id,
            tags=model.tags,
            params=model.params,
            model_type=model.type,
        )
        model_id = str(made.model_id)
    client.log_model_artifacts(model_id, str(files()))
    client.finalize_logged_model(model_id, "READY")
    return model_id


def point_to(client: Any, run: Any, model_id: str) -> None:
    """Make the logged model an output of a run, once. `run` as it was before."""
    from mlflow.entities import LoggedModelOutput

    outputs = [] if run.outputs is None else run.outputs.model_outputs
    if model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model_id, step=0)])
