"""What every variant has in common: its config, the function that its handler extends, and what it must hold to."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from stages.artifact import Artifact
from stages.errors import StageError
from stages.model import ASSETS, Model
from stages.onnx_model import weight_bytes, write_model
from stages.progress import Progress
from stages.trial import Answer, Runtime, trial_answers, trial_batches

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["NonFiniteError", "VariantConfig", "build", "write_variant"]


class VariantConfig(BaseModel):
    """The parameters of one variant. The class says what it is, its fields how it is made.

    `name` is what the variant is called in results, records and the release; it defaults to the type.
    A subclass adds `type: Literal["…"]`, its parameters, and these declarations:

    - `precision`: what `Model.precision` says of the result
    - `runtime`: what runs the result
    - `targets`: where that can be done
    - `libraries`: the distributions whose versions decide the result
    - `needs_data`: whether calibration data are needed to make it
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: ClassVar[str]
    runtime: ClassVar[Runtime] = "onnxruntime"
    targets: ClassVar[tuple[str, ...]]
    libraries: ClassVar[tuple[str, ...]] = ()
    needs_data: ClassVar[bool] = False

    type: str
    name: str = Field(default_factory=lambda data: data["type"], pattern=r"^[a-z0-9][a-z0-9._-]*$")


class NonFiniteError(StageError):
    """A variant answers NaN or infinity where the model that it was made from does not."""


@singledispatch
def build(config: VariantConfig, model: Artifact, out: Path, progress: Progress) -> Artifact:
    """Write the form of `model` that `config` describes into `out`. Each variant's file registers its own."""
    raise TypeError(f"no handler is registered for {type(config).__name__}")


def write_variant(graph: ir.Model, model: Artifact, out: Path, config: VariantConfig, bytes_before: int) -> Artifact:
    """Write `graph` as a variant of `model`, with the model's signature, labels and assets.

    `bytes_before` are the bytes of the model's weights (`weight_bytes`).

    Raises `StageError` if the weights are not smaller than that, if the signature has changed, or if the graph does not
    open or fails on a random batch that the model takes, and `NonFiniteError` if its answers are not finite there.
    """
    about = Model.of(model)
    bytes_after = weight_bytes(graph)
    if bytes_after >= bytes_before:
        raise StageError(
            f"{config.name} made the weights no smaller: {bytes_after:,} bytes, and {bytes_before:,} before it"
        )
    batches = trial_batches(graph, about.signature)
    variant = write_model(
        graph,
        out,
        signature=about.signature,
        task=about.task,
        precision=config.precision,
        fused=about.fused,
        labels=about.labels,
        assets=model.path / ASSETS,
        made_from={"model": model},
    )
    answers = trial_answers(variant, batches, config.runtime)
    if any(_troubled(answer) for answer in answers):
        # Trouble is the variant's own only where the model itself has none: only then is the model opened as well.
        for answer, expected in zip(answers, trial_answers(model, batches), strict=True):
            if _troubled(answer) and not _troubled(expected):
                _raise(config, answer)
    return variant


def _troubled(answer: Answer) -> bool:
    return isinstance(answer, StageError) or bool(_not_finite(answer))


def _not_finite(answer: Answer) -> list[str]:
    if isinstance(answer, StageError):
        return []
    return [
        name
        for name, values in answer.items()
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all()
    ]


def _raise(config: VariantConfig, answer: Answer) -> None:
    if isinstance(answer, StageError):
        raise StageError(f"{config.name} fails on a batch that the model takes: {answer}") from answer
    raise NonFiniteError(
        f"{config.name} answers NaN or infinity in {', '.join(_not_finite(answer))} to a random batch; "
        "the model that it was made from does not"
    )
