"""Finished jobs: the results that a store keeps."""

from __future__ import annotations

import difflib
from pathlib import Path

from pydantic import ValidationError

from pipeline.result import RunResult
from stages.errors import InputError

__all__ = ["find_job"]


def find_job(store: Path, run: str) -> RunResult:
    """The result of a job by its id, by the beginning of one, or `last`.

    Raises `InputError` if there is no such store or job (with the nearest name), or if several begin like that.
    """
    if not (store / "jobs").is_dir():
        raise InputError(f"{store} is no store; say where it is with --store")
    results = {path.parent.name: path for path in (store / "jobs").glob("*/result.json")}
    if not results:
        raise InputError(f"the store {store} has no finished run")
    if run == "last":
        found = [max(results, key=lambda job: results[job].stat().st_mtime)]
    else:
        found = [run] if run in results else sorted(job for job in results if run and job.startswith(run))
    if not found:
        near = difflib.get_close_matches(run, ["last", *results], n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(results))}, and `last`"
        raise InputError(f"there is no run {run!r} in {store}; {hint}")
    if len(found) > 1:
        raise InputError(f"several runs begin with {run!r}: {', '.join(found)}")
    try:
        return RunResult.model_validate_json(results[found[0]].read_text())
    except ValidationError as error:
        raise InputError(
            f"{results[found[0]]} was written by another version of optimize; run the job again"
        ) from error
