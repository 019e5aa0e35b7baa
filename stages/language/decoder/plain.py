"""The stages that bring a decoder in ONNX to Triton's own backend: its plain graph, and what to verify that with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveInt

from calibration.windows import Windows
from stages.artifact import Artifact
from stages.language.decoder.graph import decoder_samples, triton_model
from stages.progress import SILENT, Progress
from stages.stage import Stage

__all__ = ["PLAIN_GRAPH", "STEPS", "PlainGraphOptions", "StepsOptions", "plain_graph", "steps"]


class PlainGraphOptions(BaseModel):
    """There is nothing to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StepsOptions(BaseModel):
    """Steps of `sequences` windows, evenly spaced, each after `cached` tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences: PositiveInt = 32
    cached: int = 16


def plain_graph(model: Artifact, options: PlainGraphOptions, out: Path, progress: Progress = SILENT) -> Artifact:
    """The decoder of a checkpoint as an artifact of kind `model` (see `stages.language.decoder.graph.triton_model`)."""
    progress.update("writing the decoder as a plain graph")
    return triton_model(model, out)


def steps(model: Artifact, data: Artifact, options: StepsOptions, out: Path, progress: Progress = SILENT) -> Artifact:
    """Decoding steps over windows of text, as an artifact of kind `dataset` that `Samples.load` reads."""
    windows = Windows.load(data.path)
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(options.sequences, len(windows))).round().astype(int))
    cached = min(options.cached, windows.length - 1)
    progress.update(f"reading the first {cached} tokens of {len(chosen)} windows")
    samples = decoder_samples(model, windows.tokens[chosen], cached)
    samples.save(out)
    evidence = f"steps after {cached} tokens of {len(samples)} windows, of {data.metadata['evidence']}"
    metadata = {"role": "evaluation", "evidence": evidence, "samples": len(samples), "truth": None}
    return Artifact.write(out, "dataset", metadata, {"model": model, "data": data})


PLAIN_GRAPH = Stage(name="plain graph", revision=1, function=plain_graph, libraries=("onnx-ir",))
STEPS = Stage(name="steps", revision=1, function=steps, libraries=("onnxruntime",))
