"""From rows to samples, by what a model is for; and what to feed it where no data are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calibration.arrays import array_samples
from calibration.builtin import builtin_rows
from calibration.errors import DataError
from calibration.images import image_samples, image_size
from calibration.inputs import InputSpec
from calibration.rows import Rows
from calibration.samples import Samples
from calibration.synthetic import synthetic_samples
from calibration.text import classification_samples, embedding_samples, for_inputs
from calibration.text_positions import answering_samples, mask_samples, token_samples
from calibration.tokenizer import TextTokenizer, has_tokenizer, load_tokenizer, positions

__all__ = [
    "IMAGE_TASKS",
    "TEXT_TASKS",
    "ModelInputs",
    "builtin_samples",
    "random_samples",
    "reads_text",
    "samples_from_rows",
    "takes_arrays",
]


@dataclass(frozen=True)
class ModelInputs:
    """What has to be known of a model to feed it.

    `task` is the name of what it is for (`text-classification`, `generic`, …), `assets` the directory with its
    tokenizer or preprocessor, `labels` the names of its classes by index.
    """

    task: str
    inputs: tuple[InputSpec, ...]
    assets: Path
    labels: tuple[str, ...] = ()


_Encode = Callable[[Rows, TextTokenizer, ModelInputs, int], Samples]

_TEXT: dict[str, _Encode] = {
    "feature-extraction": lambda rows, tokenizer, model, _: embedding_samples(rows, tokenizer, model.inputs),
    "sentence-embedding": lambda rows, tokenizer, model, _: embedding_samples(rows, tokenizer, model.inputs),
    "text-classification": lambda rows, tokenizer, model, _: classification_samples(
        rows, tokenizer, model.inputs, model.labels
    ),
    "token-classification": lambda rows, tokenizer, model, _: token_samples(
        rows, tokenizer, model.inputs, model.labels
    ),
    "question-answering": lambda rows, tokenizer, model, _: answering_samples(rows, tokenizer, model.inputs),
    "fill-mask": lambda rows, tokenizer, model, seed: mask_samples(rows, tokenizer, model.inputs, seed),
}

TEXT_TASKS = frozenset(_TEXT)
IMAGE_TASKS = frozenset({"image-classification", "image-feature-extraction"})


def samples_from_rows(rows: Rows, model: ModelInputs, *, seed: int = 0, max_length: int | None = None) -> Samples:
    """The samples that rows make for a model.

    Rows that hold every input of the model by its name (an `.npz`, say) are taken as they are, whatever the task.
    Raises `DataError` if the rows do not fit the task (see the functions of `calibration.text`, `text_positions`,
    `images` and `arrays`), and for a text task if the model has no tokenizer.
    """
    if takes_arrays(rows, model):
        samples = array_samples(rows, model.inputs, model.labels)
        _check_length(samples, rows, model)
        return samples
    if model.task in IMAGE_TASKS:
        if not rows.has("image"):
            raise DataError(
                f"{rows.source} has {', '.join(map(repr, rows.names))}; {model.task} reads a folder of images, a "
                f"column 'image', or the input {model.inputs[0].name!r} in an .npz"
            )
        return image_samples(rows, model.assets, model.inputs, model.labels)
    return _text_samples(rows, model, seed, max_length)


def takes_arrays(rows: Rows, model: ModelInputs) -> bool:
    """Whether rows are taken as arrays, by the names of the model's inputs: neither tokenized nor seen as images."""
    return model.task not in TEXT_TASKS | IMAGE_TASKS or rows.has(*(spec.name for spec in model.inputs))


def _check_length(samples: Samples, rows: Rows, model: ModelInputs) -> None:
    """Texts are cut by their tokenizer; token ids that come as arrays are not, and beyond the last position embedding
    a model fails or reads what is not there."""
    most = positions(model.assets)
    if most is None or "input_ids" not in samples.inputs:
        return
    for index, ids in enumerate(samples.inputs["input_ids"]):
        if ids.size > most:
            raise DataError(
                f"{rows.where(index)}: 'input_ids' has {ids.size} tokens, the model has only {most} positions: cut them"
            )


def _text_samples(rows: Rows, model: ModelInputs, seed: int, max_length: int | None) -> Samples:
    tokenizer = for_inputs(load_tokenizer(model.assets, max_length), model.inputs)
    return _TEXT[model.task](rows, tokenizer, model, seed)


def builtin_samples(
    model: ModelInputs,
    count: int,
    *,
    seed: int = 0,
    max_length: int | None = None,
    part: Literal["evaluation", "calibration"] = "evaluation",
) -> Samples:
    """Samples of `builtin_text` for a text task, without truth but for masked words.

    Raises `DataError` for other tasks and if the model has no tokenizer.
    """
    if model.task not in TEXT_TASKS:
        raise DataError(f"{model.task} reads no text")
    return _text_samples(builtin_rows(model.task, count, seed, part), model, seed, max_length)


def random_samples(model: ModelInputs, count: int, *, seed: int = 0) -> Samples:
    """`synthetic_samples` for a model; images are of the size that its preprocessing gives, if that is known."""
    axes: dict[str, int] = {}
    size = image_size(model.assets)
    for spec in model.inputs:
        if model.task in IMAGE_TASKS and len(spec.shape) == 4:
            known = (3, *(size or ()))
            axes |= {name: number for name, number in zip(spec.shape[1:], known, strict=False) if isinstance(name, str)}
    return synthetic_samples(model.inputs, count, seed, axes)


def reads_text(model: ModelInputs) -> bool:
    """Whether a model is for text and has the tokenizer that it takes to feed it text."""
    return model.task in TEXT_TASKS and has_tokenizer(model.assets)
