"""What is measured of a graph: calls of its session, each with a batch of real samples."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.profile.measured import Served, Turn
from stages.runtime import RUNTIMES, Arrays, RuntimeName, RuntimeOptions, Session, open_session
from stages.runtime.openvino import import_openvino

__all__ = ["Calls"]

_ENGINES: Mapping[RuntimeName, Callable[[], object]] = {
    "onnxruntime": partial(importlib.import_module, "onnxruntime"),
    "openvino": import_openvino,
    # Imported, and no more: a process that has used a GPU cannot be forked.
    "onnxruntime-cuda": partial(importlib.import_module, "onnxruntime"),
    "tensorrt": partial(importlib.import_module, "tensorrt"),
}

Batches = Mapping[int, Sequence[Arrays]]


@dataclass(frozen=True)
class Calls:
    """Calls in one runtime, which `runtime.name` names. `batches[size]` lists the samples (of the dataset in `data`)
    of each batch."""

    data: Path
    batches: Mapping[int, Sequence[Sequence[int]]]
    runtime: RuntimeOptions

    @property
    def engine(self) -> str:
        assert self.runtime.name is not None
        return self.runtime.name

    def prepare(self) -> None:
        assert self.runtime.name is not None
        importlib.import_module(RUNTIMES[self.runtime.name])
        _ENGINES[self.runtime.name]()

    def load(self) -> Batches:
        samples = Samples.load(self.data)
        return {size: [samples.batch(batch) for batch in listed] for size, listed in self.batches.items()}

    def open(self, model: Artifact, inputs: Batches) -> Served:
        session = open_session(model, self.runtime)
        session(inputs[min(inputs)][0])
        return partial(_run, session, inputs)


def _run(session: Session, batches: Batches, size: int, order: Sequence[int], lead_in: bool) -> Turn:
    """One call for each batch in `order`, with the device's own times behind the whole call's if it has any.

    With `lead_in`, a call before them is not counted: it brings back to the caches what another variant has driven out.
    """
    inputs = batches[size]
    if lead_in:
        session(inputs[order[0]])
    taken: Turn = []
    for index in order:
        batch = inputs[index]
        started = time.perf_counter_ns()
        session(batch)
        wall_ms = (time.perf_counter_ns() - started) / 1e6
        taken.append((wall_ms, *getattr(session, "device_ms", ())))
    return taken
