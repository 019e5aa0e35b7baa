"""The stage that makes a form of a language model's checkpoint."""

from __future__ import annotations

from pathlib import Path

from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.variant import LanguageVariant, build_checkpoint
from stages.progress import SILENT, Progress
from stages.stage import Stage

__all__ = ["QUANTISE_CHECKPOINT", "quantise_checkpoint"]


def quantise_checkpoint(
    model: Artifact,
    options: LanguageVariant,
    out: Path,
    progress: Progress = SILENT,
    data: Artifact | None = None,
) -> Artifact:
    """Write the form of the checkpoint `model` that `options` describes into `out`: an artifact of kind `checkpoint`.

    `data` is a dataset of windows (`stages.language.prepare`); variants that learn from data need it. What is promised
    of the result is in each variant's file; `StageError` where it cannot be had, `InputError` if the model does not
    suit the variant, or if data are needed and were not given, `RequirementError` if a library is not installed.
    """
    if options.needs_data and data is None:
        raise InputError(f"{options.name} is made with calibration data, and none were given")
    made = build_checkpoint(options, model, out, progress, data)
    for name in made.files:
        file = out / name
        if file.stat().st_nlink == 1:  # `save_pretrained` lets only their owner read weights
            file.chmod(0o644)
    return made


QUANTISE_CHECKPOINT = Stage(
    name="quantise checkpoint",
    revision=1,
    function=quantise_checkpoint,
    libraries=("torch", "transformers"),
    preload=("stages.language.runtime.preload",),
)
