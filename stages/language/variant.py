"""What every variant of a language model has in common: its config, and the function that its handler extends."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path

from stages.artifact import Artifact
from stages.language.checkpoint import LanguageRuntime
from stages.progress import Progress
from stages.variant import Variant

__all__ = ["LanguageVariant", "build_checkpoint"]


class LanguageVariant(Variant):
    """The parameters of one form of a checkpoint.

    `runtime` is what runs the result in this process. `exclude` names linear layers that stay as they are, as their
    modules are called (`model.layers.0.mlp.down_proj`).
    """

    runtime: LanguageRuntime = "transformers"


@singledispatch
def build_checkpoint(
    config: LanguageVariant, model: Artifact, out: Path, progress: Progress, data: Artifact | None
) -> Artifact:
    """Write the form of the checkpoint `model` that `config` describes into `out`. A variant's file registers its own.

    `data` are windows of calibration text (`calibration.windows.Windows`), there if the config needs data.
    """
    raise TypeError(f"no handler is registered for {type(config).__name__}")
