"""Measure all variants together: turn by turn in random order, on the same real inputs, until the medians stand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.errors import InputError
from stages.gpu import GpuWatch
from stages.host import usable_cores, versions
from stages.model import ASSETS, Model
from stages.profile.options import ProfileOptions
from stages.profile.processes import MeasuredProcesses
from stages.profile.race import FILE
from stages.profile.rounds import Size
from stages.profile.taken import Taken, take
from stages.progress import SILENT, Progress
from stages.runtime import DEVICE_TIMES, RuntimeOptions, runtime_of
from stages.stage import Stage
from stages.target import RUNTIME_LIBRARIES

__all__ = ["PROFILE", "profile"]

_ON_GPU = {"onnxruntime-cuda", "tensorrt"}


def profile(
    data: Artifact, options: ProfileOptions, out: Path, progress: Progress = SILENT, **models: Artifact
) -> Artifact:
    """Measure `models` (by variant name, `options.baseline` among them) on samples of `data`.

    Returns an artifact of kind `measurement`. `latencies.npz` holds `<variant>/<batch>`: [calls] float64 milliseconds
    in the order taken, `order/<batch>`: [rounds, variants] who was measured in which order (indices into `names`; -1:
    gone), and `inputs/<batch>`: which of the batches each call had. Metadata: when, where and how it was measured, and
    for every variant its `runtime`, on a GPU `device` (see `_device_figures`), and its error or its figures (for each
    batch size those of `pipeline.result.BatchFigures`, and its speedup over the baseline). `peak_memory_bytes` is that
    of a process with nothing but the variant's runtime and this model, on the host; `cold_start_ms` opens the model and
    answers once, in a process that has the runtime imported.

    Where a GPU measured, `gpu` tells its clocks, power and temperature meanwhile (`stages.gpu.GpuWatch`).

    A variant that crashes, raises or hangs is recorded with its error; the others go on. Raises `InputError` if the
    baseline is missing or the data are no samples, `StageError` if nothing can be measured at all.
    """
    if options.baseline not in models:
        raise InputError(f"the baseline {options.baseline!r} is not among the models: {', '.join(models) or 'none'}")
    names = [options.baseline, *(name for name in models if name != options.baseline)]
    sizes = [Size(size, turns={name: [] for name in names}) for size in _sizes(models[options.baseline], options)]
    threads = options.threads or usable_cores()
    runtimes = {name: options.runtime or runtime_of(models[name]) for name in names}
    watch = GpuWatch() if set(runtimes.values()) & _ON_GPU else None
    with watch or nullcontext():
        taken = take(
            lambda: MeasuredProcesses(
                {name: models[name].path for name in names},
                data.path,
                _batches(data, [size.batch_size for size in sizes], options.inputs),
                {
                    name: RuntimeOptions(name=runtime, threads=threads, cuda=options.cuda)
                    for name, runtime in runtimes.items()
                },
                options.timeout_s,
            ),
            names,
            sizes,
            options,
            progress,
        )
    variants = {
        name: {"runtime": runtimes[name], "size_bytes": _size_bytes(models[name])}
        | taken.figures(name)
        | _device_figures(taken, name)
        for name in names
    }
    np.savez(out / FILE, **taken.arrays())  # type: ignore[arg-type]
    behind = {library for runtime in runtimes.values() for library in RUNTIME_LIBRARIES.get(runtime, (runtime,))}
    libraries = versions(sorted({"numpy", *behind}))
    gpu = {} if watch is None else {"gpu": watch.figures()}
    metadata = taken.metadata() | gpu | {"threads": threads, "libraries": libraries, "variants": variants}
    return Artifact.write(out, "measurement", metadata, {"data": data, **models})


PROFILE = Stage(name="profile", revision=2, function=profile, libraries=("onnxruntime", "numpy"), host_bound=True)


def _device_figures(taken: Taken, name: str) -> dict[str, Any]:
    """By batch size the medians of what the device timed itself, `DEVICE_TIMES`: transfers apart from computing."""
    device = {}
    for size in taken.sizes:
        if name in taken.errors or not size.turns[name]:
            continue
        times = size.times(name)
        if times.shape[2] > 1:
            medians = np.median(times[:, :, 1:].reshape(-1, times.shape[2] - 1), axis=0)
            device[str(size.batch_size)] = dict(zip(DEVICE_TIMES, map(float, medians), strict=True))
    return {"device": device} if device else {}


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


def _size_bytes(model: Artifact) -> int:
    """The graph and its external data, without tokenizer and the like."""
    return sum((model.path / name).stat().st_size for name in model.files if not name.startswith(f"{ASSETS}/"))
