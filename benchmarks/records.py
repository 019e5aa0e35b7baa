"""What recording adds to a run, in seconds: in SQLite, and at a real `mlflow server` on loopback with one worker.

    .venv/bin/python benchmarks/records.py [RUN] [--store DIR] [--runs 5]

Takes the result of a finished job (default: the last one of the store) and records it again and again as new jobs, as
`optimize run` does: once when the release is about to be published (the run waits for it, since the release names the
MLflow run), once at the end, with report and files. Both are what a run waits for. MLflow is imported, and a new
database made, beside the run's first steps; `started` is how long that takes where nothing is beside it, and a run that
is shorter than that waits for the rest. `models` says of which variants the files are kept in MLflow.
`CPU s` is that of the process that talks to MLflow, `server` that of the server, for one job. On a busy machine the
least of the seconds (`min`) and the CPU seconds are the figures to believe.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import psutil

sys.path = sys.path[1:]  # beside this file lies pipeline.py, another benchmark

from pipeline.finished import find_job  # noqa: E402
from pipeline.records import Recorder  # noqa: E402
from pipeline.records.model_files import Models, model_files  # noqa: E402
from pipeline.result import RunResult  # noqa: E402
from pipeline.store import default_store  # noqa: E402


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            if process.poll() is not None:
                sys.exit((folder / "log").read_text())
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                break
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(
    result: RunResult,
    report: Path,
    spool: Path,
    uri: str,
    models: Models,
    runs: int,
    server: psutil.Process | None = None,
) -> None:
    """Print one row: the first two deliveries begin with a process that is warm, as in a run of a minute."""
    before, waited = [], []
    recorder = Recorder(spool, uri, models=models)
    try:
        started = time.perf_counter()
        _deliver(recorder, result, report)
        first = time.perf_counter() - started
        child = max(psutil.Process().children(), key=psutil.Process.create_time)  # the one that talks to MLflow
        cpu, served = _cpu(child), 0.0 if server is None else _cpu(server)
        for _ in range(runs):
            seconds = _deliver(recorder, result, report)
            before.append(seconds[0])
            waited.append(sum(seconds))
        cpu, served = (_cpu(child) - cpu) / runs, 0.0 if server is None else (_cpu(server) - served) / runs
    finally:
        recorder.close()
    kept = model_files(result, models, spool.parent / "steps")
    size = sum(path.stat().st_size for files in kept.values() for path, _ in files.values())
    share = f"{100 * min(waited) / result.seconds:.2f} %"
    print(
        f"{uri.split(':')[0]:7} {models:10} {size / 1e6:9.1f} {first:8.2f} {min(before):8.2f} {min(waited):7.2f} "
        f"{share:>8} {statistics.median(waited):7.2f} {max(waited):7.2f} {cpu:6.2f} {served:7.2f}",
        flush=True,
    )


def _cpu(process: psutil.Process) -> float:
    """Seconds of a process and of those that it has started."""
    return sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True)))


def _deliver(recorder: Recorder, result: RunResult, report: Path) -> tuple[float, float]:
    job = result.model_copy(update={"job_id": f"benchmark-{uuid.uuid4().hex}"})
    early = job.model_copy(update={"release": None, "message": "", "seconds": 0.0})
    times = [time.perf_counter()]
    for told, running in ((early, True), (job, False)):
        link = recorder.deliver(told, running=running, report=None if running else report)
        if link.spooled is not None:
            sys.exit(link.spooled)
        times.append(time.perf_counter())
    return times[1] - times[0], times[2] - times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="last")
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended and the folder removed
    store = (arguments.store or default_store()).absolute()
    result = find_job(store, arguments.run)
    report = store / "jobs" / result.job_id / "report.html"
    print(
        f"{result.model} {result.job_id}: {len(result.variants)} variants, took {result.seconds:.1f} s; "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    print("        models      files MB  started   before     min   of run  median     max  CPU s  server")
    with tempfile.TemporaryDirectory(dir=store) as folder:
        for models in get_args(Models):
            place = Path(folder) / models
            (place / "records").mkdir(parents=True)
            (place / "steps").symlink_to(store / "steps")
            uri = f"sqlite:///{place}/mlflow.db"
            measure(result, report, place / "records", uri, models, arguments.runs)
        with server(Path(folder)) as (uri, process):
            for models in get_args(Models):
                measure(result, report, Path(folder) / models / "records", uri, models, arguments.runs, process)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\nCPU of all that talked to MLflow, and of the server: {used.ru_utime + used.ru_stime:.1f} s")


if __name__ == "__main__":
    main()
