"""One measurement from its start to its figures: what is the same whatever is measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.host import host_fingerprint
from stages.profile.latency import percentile_figures
from stages.profile.options import TurnOptions
from stages.profile.processes import Processes
from stages.profile.race import race
from stages.profile.rounds import Size, measure
from stages.progress import Progress

__all__ = ["Taken", "take"]


@dataclass(frozen=True)
class Taken:
    """What was measured of the variants `names`, baseline first, at `sizes`, and under which circumstances.

    `errors` says of a variant why it could not be measured to the end.
    """

    names: Sequence[str]
    sizes: Sequence[Size]
    options: TurnOptions
    cold_starts: Mapping[str, float | None]
    memory: Mapping[str, int]
    errors: Mapping[str, str]
    circumstances: Mapping[str, Any]

    def figures(self, name: str, produced: int = 1) -> dict[str, Any]:
        """A variant's error or its figures (for each batch size those of `pipeline.result.BatchFigures`, and its
        speedup over the baseline). A call produces `produced` results for each sample of its batch."""
        error = self.errors.get(name)
        batches, speedups = {}, {}
        for size in self.sizes if error is None else ():
            if not size.turns[name]:
                continue
            values = size.latencies(name).ravel()
            interval = size.relative_interval(name)
            batches[str(size.key)] = {
                "batch_size": size.batch_size,
                "latency_ms": percentile_figures(values, size.kinds(name)),
                "throughput_per_s": float(1000 * size.batch_size * produced / values.mean()),
                "calls": len(values),
                "relative_interval": interval,
                "settled": len(values) >= self.options.min_calls and interval < self.options.relative_interval,
            }
            if size.turns[self.options.baseline]:
                against = race(size.latencies(name), size.latencies(self.options.baseline))
                speedups[str(size.key)] = {"value": against.ratio, "low": against.low, "high": against.high}
        return {
            "error": error,
            "cold_start_ms": self.cold_starts[name],
            "peak_memory_bytes": self.memory.get(name),
            "batches": batches,
            "speedups": speedups,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By `<variant>/<size>` the [calls] float64 milliseconds in the order taken; by `order/<size>` [rounds,
        variants] who was measured in which order (indices into `names`; -1: gone), and by `inputs/<size>` which of the
        inputs each call had."""
        arrays: dict[str, NDArray[Any]] = {}
        for size in self.sizes:
            for name in self.names:
                if name not in self.errors and size.turns[name]:
                    arrays[f"{name}/{size.key}"] = size.latencies(name).ravel()
            arrays[f"order/{size.key}"] = np.array(size.order, dtype=np.int16).reshape(-1, len(self.names))
            arrays[f"inputs/{size.key}"] = np.array(size.inputs, dtype=np.int16)
        return arrays

    def metadata(self) -> dict[str, Any]:
        """When, where and how it was measured."""
        return {
            **self.circumstances,
            "baseline": self.options.baseline,
            "batch_sizes": [size.batch_size for size in self.sizes],
            "calls_per_turn": {str(size.key): size.calls for size in self.sizes},
            "names": list(self.names),
        }


def take(
    start: Callable[[], Processes],
    names: Sequence[str],
    sizes: Sequence[Size],
    options: TurnOptions,
    progress: Progress,
) -> Taken:
    """Start the processes, open every variant and take turns. Raises `StageError` if the processes do not start."""
    load_before = os.getloadavg()
    measured_at = datetime.now(UTC).isoformat(timespec="seconds")
    progress.update("starting the measured processes")
    with start() as processes:
        cold_starts = {name: processes.ask(name, "open") for name in names}
        ended = measure(processes, sizes, names, options, progress)
        memory = {name: processes.ask(name, "memory") for name in processes.alive}
        errors = dict(processes.errors)
    circumstances = {
        "measured_at": measured_at,
        "host": host_fingerprint(),
        "load_average": {"before": list(load_before), "after": list(os.getloadavg())},
        "budget_ended": ended,
    }
    return Taken(names, sizes, options, cold_starts, memory, errors, circumstances)
