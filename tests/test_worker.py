"""Workers: whatever a stage does to its process, the run gets a reason and goes on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pydantic import BaseModel

from pipeline.store import Made
from pipeline.worker import WorkerError, run_in_worker
from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.progress import SILENT, Progress


class Options(BaseModel):
    what: str = "work"


def misbehave(options: Options, out: Path, progress: Progress) -> Artifact:
    print("hello from the worker", flush=True)
    match options.what:
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "hang":
            subprocess.Popen(["sleep", "600"])
            (out / "started").write_text(str(os.getpid()))
            time.sleep(600)
        case "input":
            raise InputError("the row 7 is empty")
        case "bug":
            raise ZeroDivisionError("oops")
        case "memory":
            raise MemoryError
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device", "x")
        case "large":
            data = bytearray(200 << 20)
            data[::4096] = b"x" * len(data[::4096])
        case _:
            pass
    progress.update("working", 1, 2)
    (out / "file").write_text(options.what)
    return Artifact.write(out, "text", {})


def work(tmp_path: Path, what: str, progress: Progress = SILENT, timeout_s: float = 60) -> Made:
    out = tmp_path / what
    out.mkdir()
    return run_in_worker(misbehave, {}, Options(what=what), out, progress, log=tmp_path / "log", timeout_s=timeout_s)


def test_a_stage_works_and_is_measured(tmp_path: Path) -> None:
    class Notes:
        def __init__(self) -> None:
            self.seen: list[tuple[str, float | None, float | None]] = []

        def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
            self.seen.append((note, done, total))

    notes = Notes()
    small = work(tmp_path, "work", notes)
    large = work(tmp_path, "large")
    assert notes.seen == [("working", 1, 2)]
    assert (tmp_path / "work" / "file").read_text() == "work"
    assert large.peak_memory_bytes - small.peak_memory_bytes > 150 << 20
    assert "hello from the worker" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("segfault", "killed by SIGSEGV"),
        ("killed", "killed by SIGKILL; most likely the system was out of memory"),
        ("exit", "ended with code 7 and gave no result"),
        ("memory", "out of memory"),
    ],
)
def test_a_worker_that_dies_gives_its_reason(tmp_path: Path, what: str, says: str) -> None:
    with pytest.raises(StageError, match=says):
        work(tmp_path, what)


def test_a_hang_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no result after 2 s"):
        work(tmp_path, "hang", timeout_s=2)
    pid = int((tmp_path / "hang" / "started").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "600"] and p.ppid() == pid]
    assert left == []


def test_errors_that_a_stage_means_arrive_as_they_were(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the row 7 is empty"):
        work(tmp_path, "input")
    with pytest.raises(OSError, match="No space left") as caught:
        work(tmp_path, "disk")
    assert caught.value.errno == errno.ENOSPC


def test_any_other_exception_is_a_bug_and_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="ZeroDivisionError in the stage misbehave: oops") as caught:
        work(tmp_path, "bug")
    assert "in misbehave" in caught.value.__notes__[0]


def test_workers_die_with_a_run_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "import test_worker\n"
        "if __name__ == '__main__':\n"
        "    test_worker.work(Path(sys.argv[1]), 'hang')\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)])
    started = tmp_path / "hang" / "started"
    while not (started.exists() and started.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    worker = psutil.Process(int(started.read_text()))
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs([worker], timeout=20)
    assert alive == []
