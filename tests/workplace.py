"""The command `optimize` in a folder of its own, as tests use it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Workplace:
    """A folder with a store, a repository and an MLflow database of its own, and the command `optimize` in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path / "store"
        self.repository = path / "repository"
        self.tracking_uri = f"sqlite:///{path}/mlflow.db"

    def command(self, *arguments: object) -> list[str]:
        """`optimize` with these arguments; `run` gets the places of this workplace."""
        words = [str(argument) for argument in arguments]
        if words[0] == "run":
            for option, value in [
                ("--store", self.store),
                ("--repository", self.repository),
                ("--tracking-uri", self.tracking_uri),
            ]:
                if option not in words:
                    words += [option, str(value)]
        return [str(Path(sys.executable).with_name("optimize")), *words]

    def optimize(self, *arguments: object) -> Finished:
        """Run `optimize` and wait for it."""
        ended = subprocess.run(self.command(*arguments), cwd=self.path, capture_output=True, text=True)
        return Finished(ended.returncode, ended.stdout, ended.stderr)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start `optimize` in a process group of its own, deaf to Ctrl-C no longer if these tests run in the
        background of a script: what a shell starts there ignores SIGINT, and so do its children."""
        return subprocess.Popen(
            self.command(*arguments), cwd=self.path, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


@dataclass(frozen=True)
class Classifier:
    """A trained model and the data that its accuracy can be lost on."""

    model: Path
    evaluation: Path
    accuracy: float
