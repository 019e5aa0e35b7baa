"""Class labels: from what the data call a class to the index that the model gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from calibration.errors import DataError
from calibration.rows import Rows

__all__ = ["LabelIndex", "row_labels"]


class LabelIndex:
    """Finds the index of a class.

    `labels` are the model's names by index; `data_names` those of the data, if the source knows them. A name is looked
    up among the model's (exactly, then without regard to case). Where the model has only the placeholders
    `LABEL_0, LABEL_1, …` or no names at all, the place among the data's names counts. An integer is an index: into the
    data's names if both sides have names, otherwise the model's own.
    """

    def __init__(self, labels: Sequence[str], data_names: Sequence[str] = ()) -> None:
        self._labels = tuple(labels)
        self._data_names = tuple(data_names)
        self._nameless = all(re.fullmatch(r"LABEL_\d+", label) for label in labels)
        self._by_name = {label: index for index, label in enumerate(labels)}
        self._by_folded: dict[str, int] = {}
        for index, label in enumerate(labels):
            self._by_folded.setdefault(label.casefold(), index)

    def __call__(self, value: Any, where: str) -> int:
        """The index of one label. Raises `DataError` that names the row and the classes there are."""
        if hasattr(value, "item") and getattr(value, "size", None) == 1:
            value = value.item()
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and self._data_names and not self._nameless:
            # An index of the data's own: their order need not be the model's.
            if not 0 <= value < len(self._data_names):
                raise DataError(f"{where}: label {value} is not one of the data's {len(self._data_names)} classes")
            value = self._data_names[value]
        if isinstance(value, str):
            found = self._named(value)
            if found is not None:
                return found
            value = int(value) if re.fullmatch(r"\d+", value.strip()) else value
        if isinstance(value, int) and not isinstance(value, bool):
            if 0 <= value < (len(self._labels) or value + 1):
                return value
            raise DataError(f"{where}: label {value} is no index of the model's {len(self._labels)} classes")
        known = self._data_names if self._nameless and self._data_names else self._labels
        shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
        raise DataError(
            f"{where}: label {value!r} is neither a name nor an index of a class; "
            + (f"the classes are {shown}" if known else "the model names no classes, so give indices from 0")
        )

    def _named(self, name: str) -> int | None:
        if name in self._by_name:
            return self._by_name[name]
        if name.casefold() in self._by_folded:
            return self._by_folded[name.casefold()]
        if self._nameless and name in self._data_names:
            return self._data_names.index(name)
        return None


def row_labels(rows: Rows, labels: Sequence[str]) -> list[int] | None:
    """The class of every row from the column `label`; none if there is no such column.

    Raises `DataError` naming the first row without a label or with an unknown one.
    """
    if not rows.has("label"):
        return None
    index = LabelIndex(labels, rows.label_names)
    return [index(value, rows.where(i)) for i, value in enumerate(rows.column("label"))]
