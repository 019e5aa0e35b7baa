"""Plain text: a `.txt` file, or a folder of them. A file is one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calibration.errors import DataError
from calibration.rows import Row

__all__ = ["read_text", "read_texts", "text_files"]


def text_files(folder: Path) -> list[Path]:
    """The `.txt` files directly in a folder, by name. Hidden ones do not count."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() == ".txt" and not entry.name.startswith(".") and entry.is_file()
    )


def read_text(path: Path) -> Iterator[tuple[int, Row]]:
    """The one row of a file in UTF-8: `{"text": …}`, with `\\n` at the ends of its lines; none if it is blank.

    Raises `DataError` if it is not UTF-8.
    """
    text = _read(path)
    if text.strip():
        yield 1, {"text": text}


def read_texts(folder: Path) -> Iterator[tuple[int, Row]]:
    """A row `{"text": …}` for each of the `text_files`. Raises `DataError` for one that is blank or not UTF-8."""
    for number, file in enumerate(text_files(folder), 1):
        text = _read(file)
        if not text.strip():
            raise DataError(f"{file.name} is empty: take it out of the folder")
        yield number, {"text": text}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
