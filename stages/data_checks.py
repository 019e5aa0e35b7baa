"""What is held against the model itself before data are accepted, and what a person should know of them."""

from __future__ import annotations

from dataclasses import replace

from calibration.errors import DataError
from calibration.images import PREPROCESSOR_FILE
from calibration.rows import Rows
from calibration.samples import Samples
from calibration.tasks import TEXT_TASKS, ModelInputs
from stages.artifact import Artifact
from stages.errors import StageError
from stages.onnx_model import read_graph
from stages.runtime import RuntimeOptions, open_session
from stages.trial import rows_of_tables

__all__ = ["FEW_SAMPLES", "few_samples", "guessed_preprocessing", "try_sample", "with_choices"]

FEW_SAMPLES = 32
"""Fewer leave the ranges of some activations too narrow: those of MiniLM by 8 % from 32, by 20 % from 8 and by 42 %
from one sample, against what 64 others hold."""


def with_choices(inputs: ModelInputs, model: Artifact) -> ModelInputs:
    """The inputs, and for those that choose rows of a table how many rows the graph's table has."""
    if not any(spec.integer for spec in inputs.inputs):
        return inputs
    tables = rows_of_tables(read_graph(model))
    return replace(inputs, inputs=tuple(replace(spec, choices=tables.get(spec.name)) for spec in inputs.inputs))


def try_sample(model: Artifact, samples: Samples, rows: Rows) -> None:
    """Run the model on one of `samples`, which were made of `rows` and are all of one shape.

    A graph may want more than its signature says: a length within its position embeddings, sides that are multiples
    of 32. Raises `DataError` if it does not take the sample.
    """
    with open_session(model, RuntimeOptions(spinning=False)) as session:
        axis = session.signature.inputs[0].shape[0]
        try:
            session(samples.batch([0] * (axis if isinstance(axis, int) else 1)))
        except StageError as error:
            raise DataError(f"{rows.where(0)}: the model does not take samples like this: {error}") from error


def guessed_preprocessing(inputs: ModelInputs, samples: Samples) -> list[str]:
    """A warning if images were made into inputs without knowing how the model wants them."""
    if inputs.task in TEXT_TASKS or (inputs.assets / PREPROCESSOR_FILE).is_file():
        return []
    shape = next(iter(samples.inputs.values()))[0].shape
    return [
        f"the model says nothing of its preprocessing (no {PREPROCESSOR_FILE}): it is given images as "
        f"{' x '.join(map(str, shape))}, and where it takes floats, divided by 255"
    ]


def few_samples(samples: Samples) -> list[str]:
    """A warning if there are too few samples to calibrate with."""
    if len(samples) >= FEW_SAMPLES:
        return []
    return [
        f"{len(samples)} sample{'s' * (len(samples) > 1)} for calibration: activations of other data may leave the "
        f"ranges that are learnt from so few; give {FEW_SAMPLES} or more"
    ]
