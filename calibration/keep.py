"""Keep rows that exist only in memory: as JSON lines, as arrays, or, where there are images, as Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calibration.archives import write_npz
from calibration.errors import DataError
from calibration.rows import Row

__all__ = ["keep_rows"]

_ROW_GROUP = 64


def keep_rows(
    rows: Iterator[tuple[int, Row]], folder: Path, source: str
) -> tuple[Literal["jsonl", "npz", "parquet"], int]:
    """Write rows to a file `rows.<type>` in `folder`; the type and the number of rows.

    The first row decides: an `image` that is a picture of Pillow, the bytes of a file or its `Path` makes it Parquet
    (pictures become PNG files, which lose nothing), any array an `.npz`, and anything else JSON lines.

    Raises `DataError` naming `source` if there are no rows, and the row that holds what cannot be written: among
    arrays, another shape or other columns than in the first row; elsewhere, what is no text, number, list or array.
    """
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source} yielded no rows")
    rows = chain([first], rows)
    values = first[1]
    if _is_image(values.get("image")):
        return "parquet", _keep_images(rows, folder / "rows.parquet", source)
    if any(isinstance(value, np.ndarray) and value.ndim for value in values.values()):
        return "npz", _keep_arrays(rows, folder / "rows.npz", source)
    return "jsonl", _keep_lines(rows, folder / "rows.jsonl", source)


def _keep_lines(rows: Iterator[tuple[int, Row]], file: Path, source: str) -> int:
    number = 0
    with file.open("w", encoding="utf-8") as stream:
        for number, row in rows:
            try:
                stream.write(json.dumps(dict(row), default=_listed) + "\n")
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{source}, row {number} cannot be kept: {error}. Yield text, numbers, lists and NumPy arrays"
                ) from error
    return number


def _listed(value: object) -> object:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no text, number, list or array")


def _keep_arrays(rows: Iterator[tuple[int, Row]], file: Path, source: str) -> int:
    columns: dict[str, list[Any]] = {}
    number = 0
    for number, row in rows:
        columns = columns or {name: [] for name in row}
        if set(row) != set(columns):
            raise DataError(f"{source}, row {number} has the columns {', '.join(row)}, row 1 has {', '.join(columns)}")
        for name, value in row.items():
            array = np.asarray(value)
            if array.dtype == object:
                raise DataError(
                    f"{source}, row {number}: {name!r} is a {type(value).__name__}, not an array of numbers"
                )
            if columns[name] and array.shape != columns[name][0].shape:
                raise DataError(
                    f"{source}, row {number}: {name!r} has shape {list(array.shape)}, row 1 has "
                    f"{list(columns[name][0].shape)}"
                )
            columns[name].append(array)
    write_npz(file, {name: ((number, *parts[0].shape), parts) for name, parts in columns.items()})
    return number


def _is_image(value: object) -> bool:
    # Pillow is imported only by who makes pictures with it.
    return isinstance(value, (bytes, Path)) or any(kind.__module__ == "PIL.Image" for kind in type(value).__mro__)


def _keep_images(rows: Iterator[tuple[int, Row]], file: Path, source: str) -> int:
    import pyarrow
    import pyarrow.parquet

    number, held = 0, []
    schema, writer = None, None
    try:
        for number, row in rows:
            where = f"{source}, row {number}"
            values = {name: _listed(value) if _is_array(value) else value for name, value in row.items()}
            values["image"] = _encoded(row.get("image"), where)
            if schema is not None and set(values) != set(schema.names):
                raise DataError(f"{where} has the columns {', '.join(row)}, row 1 has {', '.join(schema.names)}")
            try:
                held.append(pyarrow.Table.from_pylist([values], schema))
            except pyarrow.ArrowException as error:
                raise DataError(f"{where} cannot be kept beside row 1: {error}") from error
            if writer is None:
                schema = held[0].schema
                writer = pyarrow.parquet.ParquetWriter(file, schema)
            if len(held) == _ROW_GROUP:
                writer.write_table(pyarrow.concat_tables(held))
                held.clear()
        if writer is not None and held:
            writer.write_table(pyarrow.concat_tables(held))
    finally:
        if writer is not None:
            writer.close()
    return number


def _is_array(value: object) -> bool:
    return isinstance(value, (np.generic, np.ndarray))


def _encoded(image: Any, where: str) -> bytes:
    if isinstance(image, Mapping):
        image = image.get("bytes")
    if isinstance(image, bytes):
        return image
    try:
        if isinstance(image, Path):
            return image.read_bytes()
        if _is_image(image):
            stream = io.BytesIO()
            image.save(stream, "PNG", exif=image.getexif())
            return stream.getvalue()
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: the image cannot be kept: {error}") from error
    raise DataError(f"{where}: 'image' is a {type(image).__name__}, not a picture, its bytes or its path")
