"""Rows: what was read from a data set, before it is turned into the inputs of a model."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from calibration.errors import DataError

__all__ = ["Reader", "Row", "Rows"]

Row = Mapping[str, Any]
"""One row: values by column name."""

Reader = Callable[[], Iterator[tuple[int, Row]]]
"""Reads rows with their numbers, from the first one again each time that it is called."""


@dataclass(frozen=True)
class Rows:
    """Rows in the order of their source.

    `numbers[i]` is where row `i` stands there, counted from 1 in `unit`s, and `total` how many rows there are in all.
    `label_names` are the names of the classes where the source knows them (the subfolders of a folder of images, the
    `ClassLabel` of a Hugging Face data set): a `label` is then one of these names or an index among them.
    """

    values: Sequence[Row]
    numbers: Sequence[int]
    source: str
    unit: str = "row"
    label_names: tuple[str, ...] = ()
    total: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.values)

    @property
    def names(self) -> list[str]:
        """The columns, in the order in which they first appear."""
        return list(dict.fromkeys(name for row in self.values for name in row))

    def where(self, index: int) -> str:
        """The place of row `index` for a message: `evaluation.jsonl, line 7`."""
        return f"{self.source}, {self.unit} {self.numbers[index]}"

    def has(self, *names: str) -> bool:
        """Whether there are columns of all these names."""
        return set(names) <= set(self.names)

    def require(self, *names: str) -> None:
        """Raises `DataError` that names the columns that are missing, those that are there and the nearest."""
        there = self.names
        missing = [name for name in names if name not in there]
        if not missing:
            return
        message = (
            f"{self.source} has no {'column' if len(missing) == 1 else 'columns'} "
            f"{', '.join(map(repr, missing))}; it has {', '.join(map(repr, there)) or 'none'}."
        )
        for name in missing:
            near = _nearest(name, there)
            if near is not None:
                message += f" If {near!r} is meant, say so with columns: {{{name}: {near}}}."
        raise DataError(message)

    def column(self, name: str) -> list[Any]:
        """The values of one column. Raises `DataError` if it is missing, in all rows or in one."""
        self.require(name)
        values = [row.get(name) for row in self.values]
        for index, value in enumerate(values):
            if value is None:
                raise DataError(f"{self.where(index)} has no {name!r}")
        return values

    def texts(self, name: str) -> list[str]:
        """The values of a column of text. Raises `DataError` for a value that is no text or no valid Unicode."""
        values = self.column(name)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise DataError(f"{self.where(index)}: {name!r} should be text, it is {_shown(value)}")
            if not _is_unicode(value):
                raise DataError(f"{self.where(index)}: {name!r} holds half of a surrogate pair, which is no character")
        return values

    def lists(self, name: str) -> list[list[Any]]:
        """The values of a column of lists. A text is read as JSON if it starts with `[`, else split at white space.

        (The latter is how lists are commonly kept in CSV.) Raises `DataError` for anything else.
        """
        found = []
        for index, value in enumerate(self.column(name)):
            listed = value.tolist() if hasattr(value, "tolist") else value
            if isinstance(listed, str):
                listed = self.parsed(index, name, listed) if listed.lstrip().startswith("[") else listed.split()
            if not isinstance(listed, (list, tuple)):
                raise DataError(f"{self.where(index)}: {name!r} should be a list, it is {_shown(value)}")
            found.append(list(listed))
        return found

    def parsed(self, index: int, name: str, text: str) -> Any:
        """The value that a text writes as JSON. Raises `DataError` if it does not."""
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(f"{self.where(index)}: {name!r} looks like JSON, but is not ({error})") from error

    def renamed(self, columns: Mapping[str, str]) -> Rows:
        """The rows under our names. `columns` maps our name for a column to its name in the data."""
        there = self.names
        for ours, theirs in columns.items():
            if theirs not in there:
                turned = ours in there
                near = None if turned else _nearest(theirs, there)
                hint = (
                    f" Our name comes first: columns: {{{theirs}: {ours}}}."
                    if turned
                    else f" Did you mean {near!r}?"
                    if near is not None
                    else ""
                )
                raise DataError(
                    f"columns says that {ours!r} is called {theirs!r}, but {self.source} has only "
                    f"{', '.join(map(repr, there)) or 'no columns'}.{hint}"
                )
        if not columns:
            return self
        taken = set(columns.values())
        values = [
            {name: value for name, value in row.items() if name not in taken and name not in columns}
            | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
            for row in self.values
        ]
        return replace(self, values=values)


def _nearest(name: str, there: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(name.lower(), [other.lower() for other in there], n=1)
    return next(other for other in there if other.lower() == near[0]) if near else None


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
