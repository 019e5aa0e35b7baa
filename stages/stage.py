"""What the runner needs to know of a stage; the stage itself is a plain function that does not know the runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stages.artifact import Artifact

__all__ = ["Stage"]


@dataclass(frozen=True)
class Stage:
    """A declared stage.

    `function` is called as `function(**inputs, options=..., out=..., progress=...)`: `inputs` are artifacts by
    name, `options` a frozen pydantic model, `out` an empty directory, `progress` a `stages.progress.Progress`.
    It writes one artifact into `out` and returns it (`Artifact.write`).

    `revision` is raised when the same inputs and options would give another result than before.
    `libraries` are the distributions whose versions decide the result; they enter the step's key.
    `preload` are the modules worth importing once, before workers are forked.
    `host_bound` marks measurements: their key holds the host's fingerprint too.
    `volatile` stages look at the world (a registry, a Python function): they run every time, and what follows them is
    cached by the digest of what they bring.
    """

    name: str
    revision: int
    function: Callable[..., Artifact]
    libraries: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    host_bound: bool = False
    volatile: bool = False
