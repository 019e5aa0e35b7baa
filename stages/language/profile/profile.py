"""Measure all forms of a language model together: the same requests to each in turns, until the medians stand."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.windows import Windows
from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.host import usable_cores, versions
from stages.language.checkpoint import Checkpoint
from stages.language.profile.generation import Point, first_token_ms, generation_figures
from stages.language.profile.options import ProfileLanguageOptions
from stages.language.profile.prompts import SHORTEST, mixed_lengths
from stages.language.profile.requests import Requests
from stages.profile.processes import Processes
from stages.profile.race import FILE
from stages.profile.taken import Taken, take
from stages.progress import SILENT, Progress
from stages.stage import Stage

__all__ = ["PROFILE_LANGUAGE", "profile_language"]

_LIBRARIES = ("compressed-tensors", "gptqmodel", "numpy", "onnxruntime-genai", "torch", "transformers")


def profile_language(
    data: Artifact, options: ProfileLanguageOptions, out: Path, progress: Progress = SILENT, **models: Artifact
) -> Artifact:
    """Measure `models` (checkpoints by variant name, `options.baseline` among them) on prompts cut from `data`, a
    dataset of windows.

    Returns an artifact of kind `measurement`, outwardly that of `stages.profile.profile`: a call is a request, a batch
    of prompts of one length and `new_tokens` tokens after each. `batches` are of prompts as long as the documents are,
    `latency_ms` is that of whole requests, `throughput_per_s` counts generated tokens. Besides, each variant has
    `generation`, a list of `stages.language.profile.generation.generation_figures`: those of the mix (`prompt_tokens`
    None), then those of each length from the shortest on, each at every batch size. The metadata further have
    `new_tokens`, and `prompt_lengths` and `documents`: the lengths that the mix consists of, and of how many documents
    they are the quantiles. `latencies.npz` has `<variant>/<batch>` of the mix and `<variant>/<batch>/<prompt tokens>`,
    and each under `first_token/`, too. `peak_memory_bytes` is that of a process with nothing but the runtime and this
    model; `cold_start_ms` opens the model and generates one token, in a process that has the runtime imported.

    A variant that crashes, raises or hangs is recorded with its error; the others go on. Raises `InputError` if the
    baseline is missing, `new_tokens` leave no room for a prompt, or the data are no windows (`DataError`), and
    `StageError` if the baseline cannot be measured.
    """
    if options.baseline not in models:
        raise InputError(f"the baseline {options.baseline!r} is not among the models: {', '.join(models) or 'none'}")
    names = [options.baseline, *(name for name in models if name != options.baseline)]
    checkpoints = {name: Checkpoint.of(models[name]) for name in names}
    windows = _windows(data)
    points = _points(windows, min(checkpoint.positions for checkpoint in checkpoints.values()), names, options)
    threads = options.threads or usable_cores()
    taken = take(
        lambda: Processes(_groups(models, checkpoints, data.path, points, threads, options), options.timeout_s),
        names,
        points,
        options,
        progress,
    )
    if options.baseline in taken.errors:
        raise StageError(f"{options.baseline}, the baseline, could not be measured: {taken.errors[options.baseline]}")
    mixed = replace(taken, sizes=[point for point in points if point.prompt_tokens is None])
    variants = {
        name: {
            "runtime": checkpoints[name].runtime,
            "size_bytes": models[name].size_bytes,
            **mixed.figures(name, options.new_tokens),
            **_generation(name, taken, points, options.new_tokens),
        }
        for name in names
    }
    np.savez(out / FILE, **taken.arrays(), **_first_tokens(taken, points))  # type: ignore[arg-type]
    metadata = taken.metadata() | {
        "batch_sizes": [point.batch_size for point in mixed.sizes],
        "threads": threads,
        "libraries": versions(_LIBRARIES),
        "new_tokens": options.new_tokens,
        "prompt_lengths": list(points[0].lengths),
        "documents": len(windows.lengths),
        "variants": variants,
    }
    return Artifact.write(out, "measurement", metadata, {"data": data, **models})


PROFILE_LANGUAGE = Stage(
    name="profile language", revision=1, function=profile_language, libraries=_LIBRARIES, host_bound=True
)


def _windows(data: Artifact) -> Windows:
    if data.kind != "dataset":
        raise InputError(f"{data.path} is a {data.kind}, not a dataset")
    windows = Windows.load(data.path)
    if not len(windows) or not len(windows.lengths):
        raise InputError(f"there is no text in {data.path}")
    return windows


def _points(windows: Windows, positions: int, names: Sequence[str], options: ProfileLanguageOptions) -> list[Point]:
    """What is measured: at every batch size the mix, which decides and takes half of the time, and every length of
    prompt that has room."""
    room = positions - options.new_tokens
    if room < SHORTEST:
        raise InputError(
            f"the model has {positions} positions: {options.new_tokens} new tokens leave no room for a prompt of "
            f"{SHORTEST}; ask for fewer"
        )
    mix = mixed_lengths(windows.lengths, options.inputs, min(room, options.longest_prompt))
    fixed = sorted({min(length, room) for length in options.prompt_tokens})
    # From the middle on: where the time is up early, what was measured is not the shortest prompts alone.
    mix = [mix[place] for place in sorted(range(len(mix)), key=lambda place: abs(place - len(mix) // 2))]
    lengths: list[tuple[int | None, list[int]]] = [(None, mix), *((one, [one] * options.inputs) for one in fixed)]
    return [
        Point(
            size,
            turns={name: [] for name in names},
            share=1.0 if asked is not None else max(1.0, float(len(fixed))),
            prompt_tokens=asked,
            lengths=tuple(own),
        )
        for asked, own in lengths
        for size in dict.fromkeys(options.batch_sizes)
    ]


def _groups(
    models: Mapping[str, Artifact],
    checkpoints: Mapping[str, Checkpoint],
    data: Path,
    points: Sequence[Point],
    threads: int,
    options: ProfileLanguageOptions,
) -> list[tuple[Requests, dict[str, Path]]]:
    asked: dict[Hashable, tuple[int, Sequence[int]]] = {
        point.key: (point.batch_size, point.lengths) for point in points
    }
    return [
        (
            Requests(runtime, threads, data, asked, options.new_tokens, options.seed),
            {name: models[name].path for name, checkpoint in checkpoints.items() if checkpoint.runtime == runtime},
        )
        for runtime in dict.fromkeys(checkpoint.runtime for checkpoint in checkpoints.values())
    ]


def _generation(name: str, taken: Taken, points: Sequence[Point], new_tokens: int) -> dict[str, Any]:
    measured = [point for point in points if name not in taken.errors and point.turns[name]]
    return {"generation": [generation_figures(point, name, new_tokens) for point in measured]}


def _first_tokens(taken: Taken, points: Sequence[Point]) -> dict[str, NDArray[Any]]:
    return {
        f"first_token/{name}/{point.key}": first_token_ms(point, name)
        for point in points
        for name in taken.names
        if name not in taken.errors and point.turns[name]
    }
