"""Arrays by input name as the inputs of a model, whatever they mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from calibration.errors import DataError
from calibration.inputs import InputSpec, common_shape, fitted
from calibration.labels import LabelIndex, row_labels
from calibration.rows import Rows
from calibration.samples import Samples

__all__ = ["array_samples"]


def array_samples(rows: Rows, specs: Sequence[InputSpec], labels: Sequence[str] = ()) -> Samples:
    """Rows that hold a value for every input of the model, by its name, without the batch axis.

    Values are arrays, numbers or (nested) lists of numbers, or text that writes them as JSON, as in CSV. The truth is
    `label` (a class for each sample) or `labels` (a class for each position), if there is one.

    Raises `DataError` for an input that is missing, NaN, another shape than the model takes, numbers that the input's
    dtype cannot hold, and samples of different shapes (what to pad them with is not known).
    """
    rows.require(*(spec.name for spec in specs))
    places = [rows.where(index) for index in range(len(rows))]
    inputs = {}
    for spec in specs:
        values = rows.column(spec.name)
        if spec.dtype != "string":
            values = [_written(value) if isinstance(value, str) else value for value in values]
        arrays = [fitted(value, spec, where) for value, where in zip(values, places, strict=True)]
        common_shape(arrays, spec, places, "pad them to one shape")
        inputs[spec.name] = arrays
    found = row_labels(rows, labels)
    if found is not None:
        return Samples(inputs, {}, {"kind": "label", "label": found})
    if rows.has("labels"):
        return Samples(inputs, {}, {"kind": "labels", "labels": _positions(rows, labels)})
    return Samples(inputs)


def _written(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # which is no number: for `fitted` to refuse


def _positions(rows: Rows, labels: Sequence[str]) -> list[list[int]]:
    index = LabelIndex(labels)
    found = []
    for row, values in enumerate(rows.lists("labels")):
        where = rows.where(row)
        if any(isinstance(value, list) for value in values):
            raise DataError(f"{where}: 'labels' has more than one axis; it holds one class for each position")
        found.append([-100 if value == -100 else index(value, where) for value in values])
    return found
