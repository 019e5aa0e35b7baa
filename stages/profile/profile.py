"""Measure all variants together: turn by turn in random order, on the same real inputs, until the medians stand."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.errors import InputError
from stages.host import host_fingerprint, usable_cores, versions
from stages.model import ASSETS, Model
from stages.profile.latency import calls_to_bound, median_interval, percentile_figures
from stages.profile.processes import MeasuredProcesses
from stages.profile.race import FILE, Race, race
from stages.progress import SILENT, Progress
from stages.runtime import RuntimeOptions
from stages.stage import Stage

__all__ = ["PROFILE", "ProfileOptions", "profile"]

_LIBRARIES = ("onnxruntime", "numpy")

_TURN_MS = 100.0
"""About how long a turn lasts: long against what changing turns costs, short against what disturbs a machine."""
_MOST_CYCLES = 3
_STRETCH = 3
"""A turn may last so many times longer if it then holds every input once."""
_LEAD_IN_FROM = 3
_WORTH_HAVING = 1.02
"""Two variants whose ratio is known to be nearer to 1 than this need no further race."""


class ProfileOptions(BaseModel):
    """How speed is measured.

    `threads`: 0 is every usable core. `inputs`: how many different batches of each size are cycled through; odd, so
    that the median is one of them. A batch size is settled when every variant has `min_calls` and the 95 % interval of
    its median is narrower than `relative_interval` of it; with `until="decided"`, when each variant is known to be
    faster or slower than the baseline (or not to differ by 2 %). `budget_s` ends the measuring in any case, after
    one round of each batch size; warming up is part of it. A variant that does not answer in `timeout_s` is ended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    baseline: str = "fp32"
    batch_sizes: tuple[int, ...] = Field(default=(1, 8, 32), min_length=1)
    budget_s: float = Field(default=10.0, gt=0)
    threads: int = Field(default=0, ge=0)
    runtime: Literal["onnxruntime", "pytorch"] = "onnxruntime"
    inputs: int = Field(default=7, ge=1)
    relative_interval: float = Field(default=0.05, gt=0)
    min_calls: int = Field(default=30, ge=1)
    until: Literal["settled", "decided"] = "settled"
    timeout_s: float = Field(default=120.0, gt=0)
    seed: int = 0


@dataclass
class _Size:
    """What is measured at one batch size. `turns[name]` has one list of milliseconds a round."""

    batch_size: int
    calls: int = 1
    turns: dict[str, list[list[float]]] = field(default_factory=dict)
    order: list[list[int]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    spent_s: float = 0.0
    settled: bool = False

    def latencies(self, name: str) -> NDArray[np.float64]:
        """[rounds, calls] milliseconds."""
        return np.array(self.turns[name], dtype=np.float64).reshape(-1, self.calls)

    def kinds(self, name: str) -> NDArray[np.int64]:
        """Which input each call had."""
        return np.array(self.inputs[: self.calls * len(self.turns[name])], dtype=np.int64)

    @property
    def round_s(self) -> float:
        """How long a round takes; 0 before the first."""
        return self.spent_s / len(self.order) if self.order else 0.0

    def relative_interval(self, name: str) -> float:
        """The width of the median's interval over the median; 1 with too few calls for an interval."""
        values = self.latencies(name).ravel()
        if len(values) < calls_to_bound(0.5):
            return 1.0
        low, high = median_interval(values, self.kinds(name))
        return float((high - low) / np.median(values))


def profile(
    data: Artifact, options: ProfileOptions, out: Path, progress: Progress = SILENT, **models: Artifact
) -> Artifact:
    """Measure `models` (by variant name, `options.baseline` among them) on samples of `data`.

    Returns an artifact of kind `measurement`. `latencies.npz` holds `<variant>/<batch>`: [calls] float64 milliseconds
    in the order taken, `order/<batch>`: [rounds, variants] who was measured in which order (indices into `names`; -1:
    gone), and `inputs/<batch>`: which of the batches each call had. Metadata: when, where and how it was measured, and
    for every variant its error or its figures (for each batch size those of `pipeline.result.BatchFigures`, and its
    speedup over the baseline). `peak_memory_bytes` is that of a process with nothing but the runtime and this model;
    `cold_start_ms` opens the model and answers once, in a process that has the runtime imported.

    A variant that crashes, raises or hangs is recorded with its error; the others go on. Raises `InputError` if the
    baseline is missing or the data are no samples, `StageError` if nothing can be measured at all.
    """
    if options.baseline not in models:
        raise InputError(f"the baseline {options.baseline!r} is not among the models: {', '.join(models) or 'none'}")
    names = [options.baseline, *(name for name in models if name != options.baseline)]
    sizes = [_Size(size, turns={name: [] for name in names}) for size in _sizes(models[options.baseline], options)]
    threads = options.threads or usable_cores()
    load_before = os.getloadavg()
    measured_at = datetime.now(UTC).isoformat(timespec="seconds")
    progress.update("starting the measured processes")
    with MeasuredProcesses(
        {name: models[name].path for name in names},
        data.path,
        _batches(data, [size.batch_size for size in sizes], options.inputs),
        RuntimeOptions(name=options.runtime, threads=threads),
        options.timeout_s,
    ) as processes:
        cold_starts = {name: processes.ask(name, "open") for name in names}
        ended = _measure(processes, sizes, names, options, progress)
        memory = {name: processes.ask(name, "memory") for name in processes.alive}
        errors = dict(processes.errors)

    variants = {
        name: {
            "error": errors.get(name),
            "size_bytes": _size_bytes(models[name]),
            "cold_start_ms": cold_starts[name],
            "peak_memory_bytes": memory.get(name),
            "batches": {},
            "speedups": {},
        }
        | (_figures(name, sizes, options) if name not in errors else {})
        for name in names
    }
    np.savez(out / FILE, **_arrays(names, errors, sizes))  # type: ignore[arg-type]
    metadata = {
        "measured_at": measured_at,
        "host": host_fingerprint(),
        "load_average": {"before": list(load_before), "after": list(os.getloadavg())},
        "threads": threads,
        "runtime": options.runtime,
        "libraries": versions(_LIBRARIES),
        "baseline": options.baseline,
        "batch_sizes": [size.batch_size for size in sizes],
        "calls_per_turn": {str(size.batch_size): size.calls for size in sizes},
        "names": names,
        "budget_ended": ended,
        "variants": variants,
    }
    return Artifact.write(out, "measurement", metadata, {"data": data, **models})


PROFILE = Stage(name="profile", revision=1, function=profile, libraries=_LIBRARIES, host_bound=True)


def _sizes(baseline: Artifact, options: ProfileOptions) -> list[int]:
    """The batch sizes that the model takes: those asked for, or the one that it is fixed to."""
    shape = Model.of(baseline).signature.inputs[0].shape
    if shape and isinstance(shape[0], int):
        return [shape[0]]
    return list(dict.fromkeys(options.batch_sizes))


def _batches(data: Artifact, sizes: Sequence[int], count: int) -> dict[int, list[list[int]]]:
    """For each size `count` batches of sample indices that have the data's own mix of lengths: every batch is a
    systematic sample (every k-th, from another start) of the samples in order of length."""
    if data.kind != "dataset":
        raise InputError(f"{data.path} is a {data.kind}, not a dataset")
    by_length = np.argsort(Samples.load(data.path).lengths(), kind="stable")
    if not len(by_length):
        raise InputError(f"there are no samples in {data.path}")
    batches = {}
    for size in sizes:
        starts = (np.arange(count) + 0.5) / count
        places = (np.arange(size)[None, :] + starts[:, None]) / size
        batches[size] = by_length[(places * len(by_length)).astype(np.int64)].tolist()
    return batches


def _warm_up(processes: MeasuredProcesses, sizes: Sequence[_Size], options: ProfileOptions) -> None:
    """A few calls of every size; how long they take says how many make a turn, the same for all variants."""
    for size in sizes:
        slowest = 1e-3
        for name in processes.alive:
            taken = processes.ask(name, "run", size.batch_size, [0], False)
            if taken and taken[0] < _TURN_MS:
                spread = [0, options.inputs // 2, options.inputs - 1]
                taken = processes.ask(name, "run", size.batch_size, spread, False)
            slowest = max(slowest, float(np.mean(taken or 0.0)))
        calls, cycle = int(_TURN_MS / slowest), options.inputs
        # Whole cycles where they fit, so that each turn has the same mix of inputs.
        if calls >= cycle:
            size.calls = cycle * min(calls // cycle, _MOST_CYCLES)
        else:
            size.calls = cycle if _STRETCH * calls >= cycle else max(1, calls)


def _measure(
    processes: MeasuredProcesses,
    sizes: Sequence[_Size],
    names: Sequence[str],
    options: ProfileOptions,
    progress: Progress,
) -> bool:
    """Take turns until every size is settled. Returns whether the budget ended that."""
    random = np.random.default_rng(options.seed)
    started = time.monotonic()
    progress.update("warming up", 0.0, options.budget_s)
    _warm_up(processes, sizes, options)
    while open_sizes := [size for size in sizes if not size.settled]:
        if not processes.alive:
            return False
        elapsed = time.monotonic() - started
        # The sizes share the time evenly. Each has its first round whatever the budget; another one only if it is
        # likely to end in time.
        fitting = [size for size in open_sizes if not size.order or elapsed + size.round_s <= options.budget_s]
        if not fitting:
            return True
        size = min(fitting, key=lambda one: one.spent_s)
        progress.update(f"batch size {size.batch_size}", min(elapsed, options.budget_s), options.budget_s)
        begun = time.monotonic()
        _round(processes, size, names, random, options.inputs)
        size.spent_s += time.monotonic() - begun
        size.settled = _settled(size, processes.alive, options)
    return False


def _round(
    processes: MeasuredProcesses, size: _Size, names: Sequence[str], random: np.random.Generator, inputs: int
) -> None:
    """One turn of every variant, all on the same inputs."""
    first = len(size.inputs)
    order = [(first + call) % inputs for call in range(size.calls)]
    size.inputs += order
    went = []
    for index in random.permutation(len(names)).tolist():
        name = names[index]
        if name in processes.errors:
            continue
        taken = processes.ask(name, "run", size.batch_size, order, size.calls >= _LEAD_IN_FROM)
        if taken is not None:
            size.turns[name].append(taken)
            went.append(index)
    size.order.append(went + [-1] * (len(names) - len(went)))


def _settled(size: _Size, alive: Sequence[str], options: ProfileOptions) -> bool:
    if not alive or size.calls * len(size.order) < options.min_calls:
        return False
    if options.until == "settled" or options.baseline not in alive:
        return all(size.relative_interval(name) < options.relative_interval for name in alive)
    races = [race(size.latencies(name), size.latencies(options.baseline)) for name in alive if name != options.baseline]
    return all(one.decided or _alike(one) for one in races)


def _alike(one: Race) -> bool:
    return one.low is not None and one.high is not None and one.low > 1 / _WORTH_HAVING and one.high < _WORTH_HAVING


def _figures(name: str, sizes: Sequence[_Size], options: ProfileOptions) -> dict[str, Any]:
    batches, speedups = {}, {}
    for size in sizes:
        if not size.turns[name]:
            continue
        values = size.latencies(name).ravel()
        interval = size.relative_interval(name)
        batches[str(size.batch_size)] = {
            "batch_size": size.batch_size,
            "latency_ms": percentile_figures(values, size.kinds(name)),
            "throughput_per_s": float(1000 * size.batch_size / values.mean()),
            "calls": len(values),
            "relative_interval": interval,
            "settled": len(values) >= options.min_calls and interval < options.relative_interval,
        }
        if size.turns[options.baseline]:
            against = race(size.latencies(name), size.latencies(options.baseline))
            speedups[str(size.batch_size)] = {"value": against.ratio, "low": against.low, "high": against.high}
    return {"batches": batches, "speedups": speedups}


def _arrays(names: Sequence[str], errors: Mapping[str, str], sizes: Sequence[_Size]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for size in sizes:
        for name in names:
            if name not in errors and size.turns[name]:
                arrays[f"{name}/{size.batch_size}"] = size.latencies(name).ravel()
        arrays[f"order/{size.batch_size}"] = np.array(size.order, dtype=np.int16).reshape(-1, len(names))
        arrays[f"inputs/{size.batch_size}"] = np.array(size.inputs, dtype=np.int16)
    return arrays


def _size_bytes(model: Artifact) -> int:
    """The graph and its external data, without tokenizer and the like."""
    return sum((model.path / name).stat().st_size for name in model.files if not name.startswith(f"{ASSETS}/"))
