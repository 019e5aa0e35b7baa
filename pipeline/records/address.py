"""Tracking URIs: the default, the file behind an SQLite one, the page to open, and whether a run is still there."""

from __future__ import annotations

import json
import os
import sqlite3
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

__all__ = ["comparison_page", "is_server", "page_of", "public", "resolve", "run_exists", "sqlite_file", "table_page"]

_SQLITE = "sqlite:///"
_QUICK_S = 2.0


def resolve(tracking_uri: str | None) -> str:
    """The tracking URI to use: the one given, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in this directory.

    A relative SQLite path is made absolute, since the record may be delivered from elsewhere.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
    file = sqlite_file(uri)
    return uri if file is None else f"{_SQLITE}{file}"


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of an SQLite tracking URI's database; null for any other."""
    if not uri.startswith(_SQLITE) or "?" in uri:
        return None
    return Path(uri.removeprefix(_SQLITE)).absolute()


def is_server(uri: str) -> bool:
    """Whether a tracking URI is that of an HTTP server."""
    return urlsplit(uri).scheme in ("http", "https")


def public(uri: str) -> str:
    """The URI without a user name and password in it."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def page_of(uri: str, experiment_id: str) -> str | None:
    """Where a server shows the runs of an experiment side by side, metrics first; null without a server.

    Without `workflowType` MLflow opens an experiment as one of prompts and traces, and hides the runs.
    """
    if not is_server(uri):
        return None
    query = "workflowType=machine_learning&compareRunsMode=CHART"
    return f"{public(uri).rstrip('/')}/#/experiments/{quote(experiment_id)}/runs?{query}"


def comparison_page(page: str, job_id: str) -> str:
    """The page of an experiment (`page_of`) with the runs of one job on it and no others."""
    runs = quote(f"tags.`optimize.job_id` = '{job_id}'", safe="")
    return f"{page}&searchFilter={runs}"


def table_page(page: str) -> str:
    """The page of an experiment (`page_of`) as a table whose columns tell figures and verdicts (see `view`)."""
    return f"{page.replace('compareRunsMode=CHART', 'compareRunsMode=TABLE')}&viewStateShareKey=optimize"


def run_exists(uri: str, run_id: str) -> bool:
    """Whether a run is still there and not deleted, asked without MLflow, in milliseconds. Any doubt is a no."""
    file = sqlite_file(uri)
    if file is not None:
        return _in_database(file, run_id)
    return is_server(uri) and _on_server(uri, run_id)


def _in_database(file: Path, run_id: str) -> bool:
    try:
        connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=_QUICK_S)
        try:
            row = connection.execute("select lifecycle_stage from runs where run_uuid = ?", (run_id,)).fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return False
    return row is not None and row[0] == "active"


def _on_server(uri: str, run_id: str) -> bool:
    # A server that wants a password says no here, and the record is then delivered in the ordinary way.
    address = f"{public(uri).rstrip('/')}/api/2.0/mlflow/runs/get?run_id={quote(run_id)}"
    try:
        with urllib.request.urlopen(address, timeout=_QUICK_S) as answer:
            stage: object = json.load(answer)["run"]["info"]["lifecycle_stage"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return stage == "active"
