"""Asking MLflow: where it is, and what its errors mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stages.errors import InputError, RequirementError

__all__ = ["asking", "pointed_at"]

_NO_SUCH = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND", "ENDPOINT_NOT_FOUND"}


@contextmanager
def asking(reference: str, tracking_uri: str | None) -> Iterator[Any]:
    """A client of the tracking server at `tracking_uri` (None: MLflow's own setting), asked for `reference`.

    Raises `InputError` if the server knows no such thing, `RequirementError` if it cannot be asked.
    """
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise RequirementError("mlflow is not installed: `pip install mlflow`") from error
    where = tracking_uri or mlflow.get_tracking_uri()
    try:
        with pointed_at(where):
            yield mlflow.MlflowClient(where)
    except MlflowException as error:
        if error.error_code in _NO_SUCH:
            raise InputError(f"{reference} is not in MLflow at {where}: {error.message}") from error
        raise RequirementError(f"{reference} cannot be had from MLflow at {where}: {error.message}") from error


@contextmanager
def pointed_at(tracking_uri: str) -> Iterator[None]:
    """Let the process's own tracking URI be this one for a while.

    Some of MLflow's functions ask there, whatever client or argument they are given (3.17): registered models that are
    downloaded (`ModelsArtifactRepository._get_model_uri_infos`), the records of an evaluation dataset
    (`EvaluationDataset.records`), the model that a version in a database's registry is made of.
    """
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
