"""A job that was recorded and registered in a local database, and `optimize ui` over it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from dataclasses import dataclass
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
    """`optimize ui` while it runs: the address that it told, and the two links of the model's last job."""

    place: Workplace
    result: RunResult
    name: str
    address: str = ""
    charts: str = ""
    table: str = ""

    def __enter__(self) -> Self:
        self._process = self.place.start("ui", "--tracking-uri", self.place.tracking_uri)
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline() for _ in range(2)]
        if not all(lines):
            _, said = self._process.communicate()
            raise AssertionError(f"optimize ui ended: {said}")
        self.charts, self.table = (line.split()[1] for line in lines)
        self.address = self.charts.partition("/#/")[0]
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end()

    def end(self) -> tuple[int, list[Any]]:
        """Press Ctrl-C; the exit code, and which of the processes that it had are still there."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        assert children
        os.kill(self._process.pid, signal.SIGINT)
        try:
            code = self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise
        _, alive = psutil.wait_procs(children, timeout=10)
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

    def version_page(self) -> str:
        """The page of the registered version."""
        return f"{self.address}/#/models/{self.name}-optimized/versions/1?workflowType=machine_learning"
