"""What a run costs: convert → fuse → int8-dynamic with evaluation on all-MiniLM-L6-v2, clean and fully cached.

    .venv/bin/python benchmarks/pipeline.py [--runs 3] [--pairs 128]

Each run is `optimize run` as a user types it, without the Triton verification, in a fresh store, repository and
MLflow database; then the same command again, with everything cached. CPU seconds are those of all processes that
the command starts (this program adopts the orphans and waits for every one). Memory is given twice: the largest
resident set of any one process, and the largest proportional set (shared pages counted once) of all together.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
OPTIMIZE = Path(sys.executable).with_name("optimize")
PR_SET_CHILD_SUBREAPER = 36

RECIPE = """
model: {data}/checkpoint
name: minilm
evaluation: {{path: {data}/evaluation.jsonl, max_length: 64}}
variants: [int8-dynamic]
profile: {{batch_sizes: [1], budget: 1s}}
"""


@dataclass
class Cost:
    wall_s: float
    cpu_s: float
    largest_mb: float
    together_mb: float
    output: str


def cost_of(command: list[str], cwd: Path) -> Cost:
    """Run a command, wait for it and for everything that it started, and tell what it cost."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = _MemoryWatch(process.pid)
    watch.start()
    output, errors = process.communicate()
    wall = time.monotonic() - started
    watch.stop.set()
    watch.join()
    while True:  # the orphans that we adopted
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} exited with {process.returncode}:\n{errors}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, watch.largest / 1e6, watch.together / 1e6, output)


class _MemoryWatch(threading.Thread):
    """Looks every 50 ms at the memory of a process and all its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.largest = 0.0
        self.together = 0.0
        self._pid = pid

    def run(self) -> None:
        me = psutil.Process()
        while not self.stop.wait(0.05):
            together = 0.0
            for process in me.children(recursive=True):
                try:
                    memory = process.memory_full_info()
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                together += memory.pss
                self.largest = max(self.largest, memory.rss)
            self.together = max(self.together, together)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=128, help="query and document pairs of the evaluation")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    rows: dict[str, list[Cost]] = {"clean": [], "fully cached": [], "optimize --help": []}
    steps: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        build = [sys.executable, str(ROOT / "examples/minilm/data.py"), str(data), "--pairs", str(arguments.pairs)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        for number in range(arguments.runs):
            place = Path(folder) / f"run{number}"
            place.mkdir()
            (place / "recipe.yaml").write_text(RECIPE.format(data=data))
            command = [
                str(OPTIMIZE), "run", "recipe.yaml", "--no-verify", "--store", "store", "--repository", "repository",
                "--tracking-uri", f"sqlite:///{place}/mlflow.db", "--json",
            ]  # fmt: skip
            rows["clean"].append(cost_of(command, place))
            rows["fully cached"].append(cost_of(command, place))
            rows["optimize --help"].append(cost_of([str(OPTIMIZE), "--help"], place))
            for stage in json.loads(rows["clean"][-1].output)["stages"]:
                steps.setdefault(stage["name"], []).append(stage["cpu_seconds"])
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"{arguments.pairs} pairs, {arguments.runs} runs: minimum (median)\n")  # fmt: skip
    print(f"{'':<18}{'wall s':>16}{'CPU s':>16}{'largest MB':>16}{'together MB':>16}")
    for name, costs in rows.items():
        figures = [
            [getattr(cost, field) for cost in costs] for field in ("wall_s", "cpu_s", "largest_mb", "together_mb")
        ]
        cells = "".join(f"{f'{min(values):.2f} ({statistics.median(values):.2f})':>16}" for values in figures)
        print(f"{name:<18}{cells}")
    print("\nsteps of the clean run, CPU s: " + ", ".join(f"{name} {min(times):.1f}" for name, times in steps.items()))


if __name__ == "__main__":
    main()
