"""Tables: JSON lines, CSV and Parquet, a row a sample, read row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from calibration.errors import DataError
from calibration.rows import Row

__all__ = ["read_csv", "read_jsonl", "read_parquet"]

_ROWS = 256


def read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """The objects of a file with one JSON object a line, with their line numbers. Empty lines are passed over.

    Raises `DataError` naming the line that is no JSON object or no UTF-8.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path.name}, line {number} is not UTF-8 ({error.reason})") from error
            except ValueError as error:
                raise DataError(f"{path.name}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path.name}, line {number} holds a {type(row).__name__}; a row is a JSON object")
            yield number, row


def read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a CSV file in UTF-8 whose first line names the columns, numbered from 1 after it.

    Every value is text. Raises `DataError` for a row that has more or fewer fields than there are columns, broken
    quotes, and columns that are not separated by commas.
    """
    number, begins = 0, 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            names = next(reader, None)
            if names is None:
                return
            _check_header(path, names)
            begins = reader.line_num + 1
            for fields in reader:
                line, begins = begins, reader.line_num + 1
                if not fields:
                    continue
                number += 1
                if len(fields) != len(names):
                    raise DataError(
                        f"{path.name}, row {number} (line {line}) has {len(fields)} fields; there are {len(names)} "
                        "columns. A comma or a line break inside a field needs double quotes around it."
                    )
                yield number, dict(zip(names, fields, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except csv.Error as error:
        # A quote that is not closed is noticed only where the file, or the next quoted field, ends.
        raise DataError(
            f"{path.name}, row {number + 1} (it begins in line {begins}) is not CSV: {error}. A double quote inside a "
            "field is written twice, and the field has double quotes around it."
        ) from error


def _check_header(path: Path, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise DataError(f"{path.name} names a column twice: {', '.join(names)}")
    separator = next((mark for mark in (";", "\t") if mark in names[0]), None) if len(names) == 1 else None
    if separator is not None:
        raise DataError(f"{path.name} separates its columns by {separator!r}: save it with commas")


def read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a Parquet file, numbered from 1, some of them in memory at a time. Nested values are dictionaries and
    lists. Raises `DataError` if it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not a readable Parquet file: {error}") from error
