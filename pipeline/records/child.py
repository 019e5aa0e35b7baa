"""The process that talks to MLflow. It reads the places of records, a line each, and answers with a line of JSON.

    python -P -m pipeline.records.child PARENT_PID TRACKING_URI SPOOL

It ends with its parent, is left alone by Ctrl-C (the parent decides), and never prints where the run's output goes.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from pipeline.records.address import is_server, public, sqlite_file
from pipeline.records.record import Record
from pipeline.records.spool import RECORD, lock_path

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until standard input ends."""
    parent, tracking_uri, spool = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    # MLflow and what it imports print as they like: what they take for stdout is our stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _prepare(tracking_uri, spool)
    for line in sys.stdin:
        _say(answers, _deliver(Path(json.loads(line))))


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _prepare(tracking_uri: str, spool: Path) -> None:
    """Do beside the run's first steps what takes seconds: the imports, and a new database."""
    importlib.import_module("mlflow")
    database = sqlite_file(tracking_uri)
    if database is not None:
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        from pipeline.records.upsert import create_database

        spool.mkdir(parents=True, exist_ok=True)
        create_database(database, spool)


def _deliver(path: Path) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    from pipeline.records.upsert import upsert

    try:
        record = Record.model_validate_json((path / RECORD).read_bytes())
    except FileNotFoundError:
        return {"reason": "another process has delivered this record or a later one of the same job"}
    # Two processes that deliver the same job one after the other find what is there; at once they would both make it.
    with lock_path(path, record).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            experiment_id, run_id = upsert(record, path)
        except MlflowException as error:
            return {"reason": _reason(str(error), record.tracking_uri)}
    return {"experiment_id": experiment_id, "run_id": run_id}


def _reason(message: str, tracking_uri: str) -> str:
    """MLflow's message, shortened to what a person can use where a server could not be reached."""
    cause = re.search(r"\[Errno -?\d+\] [^'\")]+|timed out", message)
    if is_server(tracking_uri) and "failed with" in message and cause is not None:
        return f"{public(tracking_uri)} cannot be reached: {cause[0]}"
    first = message.replace(tracking_uri, public(tracking_uri)).strip().split("\n")[0]
    return first if len(first) <= 400 else first[:400] + "…"


def _say(stream: TextIO, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
