"""MLflow's own pages over a local database: its real server, on loopback, for as long as somebody looks."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO
from urllib.parse import quote

from pipeline.records.address import comparison_page, is_server, page_of, sqlite_file, table_page
from stages.errors import InputError, RequirementError

__all__ = ["Page", "pages", "serve"]

_PR_SET_PDEATHSIG = 1
_HOST = "127.0.0.1"
_START_S = 180.0
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Only pages are wanted: without this, more processes run jobs that nothing here starts.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""Unless the user's environment says otherwise."""


@dataclass(frozen=True)
class Page:
    """Where the last job of a model is compared, variant by variant: as charts, and as a table with those before it."""

    experiment: str
    job_id: str
    charts: str
    table: str


@contextlib.contextmanager
def serve(tracking_uri: str, port: int | None = None) -> Iterator[str]:
    """Start `mlflow server` over an SQLite tracking URI and yield its address once it answers; end it afterwards.

    `port`: a free one if None. Raises `InputError` if the URI is no local database, if there is none yet, if another
    version of MLflow made it or the port is taken; `RequirementError` if the server does not start.
    """
    database = sqlite_file(tracking_uri)
    if database is None:
        where = f"open {tracking_uri} in a browser" if is_server(tracking_uri) else "it is no SQLite database"
        raise InputError(f"{tracking_uri} needs no server of this machine: {where}")
    if not database.is_file():
        raise InputError(f"there is no MLflow database {database}: `optimize run` makes one; or say --tracking-uri")
    from pipeline.triggers.registry import Registry

    Registry(tracking_uri).client()  # refuses a database that a server of this version would change for good
    with _held(port) as port, tempfile.TemporaryFile() as log:
        command = [
            sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1", "--host", _HOST, "--port", str(port),
            "--backend-store-uri", f"sqlite:///{database}",
            "--artifacts-destination", str(database.parent / "mlartifacts"),
        ]  # fmt: skip
        # A session of its own, so that Ctrl-C reaches it through us and all its processes can be ended together.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=database.parent,
            env=_ENVIRONMENT | os.environ,
            preexec_fn=_die_with_parent,
        )
        try:
            address = f"http://{_HOST}:{port}"
            _wait(process, address, log)
            yield address
        finally:
            _end(process)


def pages(tracking_uri: str, address: str, most: int = 10) -> list[Page]:
    """The comparison of the last job in each of the latest experiments of ours, the newest first."""
    database = sqlite_file(tracking_uri)
    assert database is not None
    query = """
        select experiments.experiment_id, experiments.name, tags.value, max(runs.start_time) as latest
        from runs join experiments on experiments.experiment_id = runs.experiment_id
        join tags on tags.run_uuid = runs.run_uuid and tags.key = 'optimize.job_id'
        join tags as roles on roles.run_uuid = runs.run_uuid and roles.key = 'optimize.role' and roles.value = 'job'
        where runs.lifecycle_stage = 'active' and experiments.lifecycle_stage = 'active'
        group by experiments.experiment_id order by latest desc limit ?
    """
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
        rows = connection.execute(query, (most,)).fetchall()
    found = []
    for experiment_id, name, job_id, _ in rows:
        page = page_of(address, str(experiment_id))
        assert page is not None
        found.append(Page(str(name), str(job_id), comparison_page(page, str(job_id)), table_page(page)))
    return found


@contextlib.contextmanager
def _held(port: int | None) -> Iterator[int]:
    """The port, or a free one, so that nobody else gets it: it is bound, but never listening, and so the server, which
    says SO_REUSEADDR too, can have it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((_HOST, port or 0))
        except OSError as error:
            raise InputError(f"port {port} of {_HOST} cannot be used: {error.strerror}; take another --port") from error
        yield int(holder.getsockname()[1])


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        time.sleep(0.2)
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    how = "did not answer" if process.poll() is None else f"ended with exit code {process.returncode}"
    raise RequirementError(f"mlflow server {how}" + (f": {lines[-1][:400]}" if lines else ""))


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):  # its worker may outlive it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
