"""From a reference to figures: out of the store, out of MLflow, out of a model repository."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model_repository import Repository
from pipeline.compare.reference import Reference
from pipeline.compare.subject import Subject, of_release, of_result
from pipeline.finished import find_job
from pipeline.result import RunResult, VariantResult
from pipeline.triggers.registry import Registry
from stages.errors import InputError

__all__ = ["Finder"]

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RESULT = "result.json"


class Finder:
    """Finds what references name. MLflow is imported and asked only for those that it alone knows."""

    def __init__(self, store: Path, tracking_uri: str | None) -> None:
        self._store = store
        self._registry = Registry(tracking_uri)

    def find(self, reference: Reference) -> Subject:
        """What one reference names; of a job, the variant that was chosen.

        Raises `InputError` if there is no such thing or nothing was measured of it, `RegistryAwayError` if MLflow does
        not answer.
        """
        if reference.kind == "job":
            return of_result(reference.text, self.job(reference), reference.part, self._steps)
        if reference.kind == "release":
            return self._release(reference)
        if reference.kind == "run":
            return self._run(reference)
        return self._version(reference)

    def job(self, reference: Reference) -> RunResult:
        """The result of a job in the store."""
        return find_job(self._store, reference.place)

    def everything(self, reference: Reference) -> list[Subject]:
        """What a single reference stands for: a job's variants, the baseline first; of anything else that and the
        baseline that it was measured beside."""
        if reference.kind == "job" and reference.part is None:
            result = self.job(reference)
            names = [row.name for row in sorted(result.variants, key=lambda row: not row.baseline) if _figures(row)]
            return [of_result(f"{reference.text}:{name}", result, name, self._steps) for name in names]
        one = self.find(reference)
        whole = self._known(one.job_id)
        baseline = None if whole is None else next((row.name for row in whole.variants if row.baseline), None)
        if whole is None or baseline in (None, one.row.name):
            raise InputError(f"{reference.text} alone has nothing to be compared with: name a second one")
        return [of_result(f"{whole.job_id}:{baseline}", whole, baseline, self._steps), one]

    @property
    def _steps(self) -> Path:
        return self._store / "steps"

    def _release(self, reference: Reference) -> Subject:
        assert reference.part is not None
        assert reference.number is not None
        versions = Repository(reference.place).versions(reference.part)
        info = next((info for info in versions if info.version == reference.number), None)
        if info is None:
            known = ", ".join(str(info.version) for info in versions) or "none"
            raise InputError(f"{reference.text}: {reference.part} has no version {reference.number}; it has {known}")
        try:
            alone = of_release(reference.text, reference.part, reference.number, dict(info.provenance))
        except (KeyError, TypeError, ValidationError) as error:
            raise InputError(
                f"{reference.text} was not published by this version of optimize: nothing measured is known of it"
            ) from error
        result = self._known(alone.job_id)
        return alone if result is None else of_result(reference.text, result, alone.row.name, self._steps)

    def _run(self, reference: Reference) -> Subject:
        with self._registry.errors(f"the run {reference.place}"):
            tags = dict(self._registry.client().get_run(reference.place).data.tags)
        return self._tagged(reference, tags, None)

    def _version(self, reference: Reference) -> Subject:
        client = self._registry.client()
        assert reference.part is not None
        with self._registry.errors(reference.text):
            if reference.kind == "alias":
                version = client.get_model_version_by_alias(reference.place, reference.part)
            else:
                version = client.get_model_version(reference.place, reference.part)
        return self._tagged(reference, dict(version.tags or {}), version.run_id)

    def _tagged(self, reference: Reference, tags: dict[str, str], run_id: str | None) -> Subject:
        """By the tags of a run or a version, which anybody with access to the server may have written."""
        job_id = tags.get("optimize.job_id", "")
        if not _JOB_ID.fullmatch(job_id):
            raise InputError(
                f"{reference.text} was not made by optimize: nothing measured is known of it. Compare what "
                "`optimize run` or `optimize watch` made of it"
            )
        result = self._known(job_id) or self._recorded(reference, job_id, run_id)
        return of_result(reference.text, result, tags.get("optimize.variant") or None, self._steps)

    def _known(self, job_id: str) -> RunResult | None:
        if not _JOB_ID.fullmatch(job_id) or not (self._store / "jobs" / job_id / _RESULT).is_file():
            return None
        return find_job(self._store, job_id)

    def _recorded(self, reference: Reference, job_id: str, run_id: str | None) -> RunResult:
        """The result that the job's run holds."""
        client = self._registry.client()
        with self._registry.errors(f"the job's run of {reference.text}"):
            job = run_id or self._job_run(client, reference, job_id)
            with tempfile.TemporaryDirectory() as folder:
                text = Path(client.download_artifacts(job, _RESULT, folder)).read_text()
        try:
            return RunResult.model_validate_json(text)
        except ValidationError as error:
            raise InputError(f"{reference.text} was recorded by another version of optimize; run it again") from error

    def _job_run(self, client: Any, reference: Reference, job_id: str) -> str:
        experiment = client.get_run(reference.place).info.experiment_id
        query = f"tags.`optimize.job_id` = '{job_id}' and tags.`optimize.role` = 'job'"
        found = client.search_runs([experiment], query, max_results=1)
        if not found:
            raise InputError(f"{reference.text}: the run of its job {job_id} is no longer in MLflow")
        return str(found[0].info.run_id)


def _figures(row: VariantResult) -> bool:
    return row.latency_ms is not None or bool(row.generation) or row.metric is not None or bool(row.fidelity)
