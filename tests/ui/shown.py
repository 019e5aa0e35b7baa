"""A job that was recorded and registered in a local database, and `optimize ui` over it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from dataclasses import dataclass, field, replace
from typing import Any, Self

import psutil
from workplace import Workplace

from pipeline.records.registration import Registration, register
from pipeline.result import RunResult

__all__ = ["Shown", "registered"]


def registered(place: Workplace, result: RunResult, name: str) -> int:
    """Make the release of a run a version of `<name>-optimized`, as `optimize watch` does."""
    import mlflow

    client = mlflow.MlflowClient(place.tracking_uri, place.tracking_uri)
    client.create_registered_model(name)
    source = client.create_model_version(name, source=str(place.path))
    wanted = Registration(
        key=hashlib.sha256(name.encode()).hexdigest(),
        model=name,
        version=int(source.version),
        target=f"{name}-optimized",
        alias="champion",
    )
    return register(result, wanted, place.tracking_uri, place.path).version


@dataclass
class Shown:
    """`optimize ui` while it runs: the address that it told, and the two links of a model's last job. `models`: of so
    many it tells."""

    place: Workplace
    result: RunResult
    name: str
    models: int = 1
    address: str = ""
    links: dict[str, list[str]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._process = self.place.start("ui", "--tracking-uri", self.place.tracking_uri)
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline() for _ in range(2 * self.models)]
        if not all(lines):
            _, said = self._process.communicate()
            raise AssertionError(f"optimize ui ended: {said}")
        for line in lines:
            experiment, link = line.split()[:2]
            self.links.setdefault(experiment, []).append(link)
        self.address = self.charts.partition("/#/")[0]
        return self

    def of(self, result: RunResult, name: str) -> Shown:
        """The same pages of another model."""
        return replace(self, result=result, name=name)

    @property
    def charts(self) -> str:
        """The printed link to the charts."""
        return self.links[f"optimize/{self.name}"][0]

    @property
    def table(self) -> str:
        """The printed link to the table."""
        return self.links[f"optimize/{self.name}"][1]

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end()

    def end(self) -> tuple[int, list[Any]]:
        """Press Ctrl-C; the exit code, and which of the processes that it had are still there."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        assert children
        os.kill(self._process.pid, signal.SIGINT)
        try:
            code = self._process.wait(300)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise
        _, alive = psutil.wait_procs(children, timeout=60)
        return code, alive

    def runs(self) -> dict[str, Any]:
        """The job's runs by their names."""
        import mlflow

        client = mlflow.MlflowClient(self.place.tracking_uri)
        experiment = client.get_experiment_by_name(f"optimize/{self.name}").experiment_id
        found = client.search_runs([experiment], f"tags.`optimize.job_id` = '{self.result.job_id}'")
        return {str(run.info.run_name): run for run in found}

    def comparison(self) -> str:
        """MLflow's own page that compares the variants' runs."""
        variants = [run for name, run in self.runs().items() if not name.startswith(f"{self.name} ")]
        ids = ",".join(f'"{run.info.run_id}"' for run in variants)
        experiment = variants[0].info.experiment_id
        return f'{self.address}/#/compare-runs?runs=[{ids}]&experiments=["{experiment}"]&workflowType=machine_learning'

    def job_page(self) -> str:
        """The page of the job's run."""
        run = next(run for name, run in self.runs().items() if name.startswith(f"{self.name} "))
        where = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        return f"{self.address}/#/{where}?workflowType=machine_learning"

    def artifact_page(self, file: str) -> str:
        """The page of the job's run with one of its files open."""
        return self.job_page().replace("?", f"/artifacts/{file}?")

    def version_page(self) -> str:
        """The page of the registered version."""
        return f"{self.address}/#/models/{self.name}-optimized/versions/1?workflowType=machine_learning"
