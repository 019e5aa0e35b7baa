"""Measure all variants together: turn by turn in random order, on the same real inputs, until the medians stand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.errors import InputError
from stages.host import host_fingerprint, usable_cores, versions
from stages.model import ASSETS, Model
from stages.profile.latency import percentile_figures
from stages.profile.options import ProfileOptions
from stages.profile.processes import MeasuredProcesses
from stages.profile.race import FILE, race
from stages.profile.rounds import Size, measure
from stages.progress import SILENT, Progress
from stages.runtime import RuntimeOptions, runtime_of
from stages.stage import Stage

__all__ = ["PROFILE", "profile"]


def profile(
    data: Artifact, options: ProfileOptions, out: Path, progress: Progress = SILENT, **models: Artifact
) -> Artifact:
    """Measure `models` (by variant name, `options.baseline` among them) on samples of `data`.

    Returns an artifact of kind `measurement`. `latencies.npz` holds `<variant>/<batch>`: [calls] float64 milliseconds
    in the order taken, `order/<batch>`: [rounds, variants] who was measured in which order (indices into `names`; -1:
    gone), and `inputs/<batch>`: which of the batches each call had. Metadata: when, where and how it was measured, and
    for every variant its `runtime` and its error or its figures (for each batch size those of
    `pipeline.result.BatchFigures`, and its speedup over the baseline). `peak_memory_bytes` is that of a process with
    nothing but the variant's runtime and this model; `cold_start_ms` opens the model and answers once, in a process
    that has the runtime imported.

    A variant that crashes, raises or hangs is recorded with its error; the others go on. Raises `InputError` if the
    baseline is missing or the data are no samples, `StageError` if nothing can be measured at all.
    """
    if options.baseline not in models:
        raise InputError(f"the baseline {options.baseline!r} is not among the models: {', '.join(models) or 'none'}")
    names = [options.baseline, *(name for name in models if name != options.baseline)]
    sizes = [Size(size, turns={name: [] for name in names}) for size in _sizes(models[options.baseline], options)]
    threads = options.threads or usable_cores()
    runtimes = {name: options.runtime or runtime_of(models[name]) for name in names}
    load_before = os.getloadavg()
    measured_at = datetime.now(UTC).isoformat(timespec="seconds")
    progress.update("starting the measured processes")
    with MeasuredProcesses(
        {name: models[name].path for name in names},
        data.path,
        _batches(data, [size.batch_size for size in sizes], options.inputs),
        {name: RuntimeOptions(name=runtime, threads=threads) for name, runtime in runtimes.items()},
        options.timeout_s,
    ) as processes:
        cold_starts = {name: processes.ask(name, "open") for name in names}
        ended = measure(processes, sizes, names, options, progress)
        memory = {name: processes.ask(name, "memory") for name in processes.alive}
        errors = dict(processes.errors)

    variants = {
        name: {
            "runtime": runtimes[name],
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
        "libraries": versions(sorted({"numpy", *runtimes.values()})),
        "baseline": options.baseline,
        "batch_sizes": [size.batch_size for size in sizes],
        "calls_per_turn": {str(size.batch_size): size.calls for size in sizes},
        "names": names,
        "budget_ended": ended,
        "variants": variants,
    }
    return Artifact.write(out, "measurement", metadata, {"data": data, **models})


PROFILE = Stage(name="profile", revision=2, function=profile, libraries=("onnxruntime", "numpy"), host_bound=True)


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


def _figures(name: str, sizes: Sequence[Size], options: ProfileOptions) -> dict[str, Any]:
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


def _arrays(names: Sequence[str], errors: Mapping[str, str], sizes: Sequence[Size]) -> dict[str, NDArray[Any]]:
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
