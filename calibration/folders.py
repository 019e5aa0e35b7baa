"""Folders: images by class, and data sets that Hugging Face `datasets` saved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from calibration.errors import DataError
from calibration.rows import Reader, Row
from calibration.tables import read_csv

__all__ = ["IMAGE_SUFFIXES", "LABELS_FILE", "class_folders", "image_files", "read_datasets", "read_images"]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
LABELS_FILE = "labels.csv"
_FILE_COLUMNS = ("image", "file", "file_name", "filename", "path")


def image_files(folder: Path) -> list[Path]:
    """The images directly in a folder, by name. Hidden files are no images."""
    return sorted(file for file in folder.iterdir() if _is_image(file))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def class_folders(folder: Path) -> list[Path]:
    """The subfolders that hold images, one a class: in the order of their numbers if all are numbers, else by name."""
    folders = [entry for entry in folder.iterdir() if entry.is_dir() and image_files(entry)]
    if all(re.fullmatch(r"\d+", entry.name) for entry in folders):
        return sorted(folders, key=lambda entry: (int(entry.name), entry.name))
    return sorted(folders)


def read_images(folder: Path) -> tuple[Reader, tuple[str, ...]]:
    """Rows `{"image": path, "label": class}` of a folder, and the names of the classes.

    With a `labels.csv` (columns `image` or `file` or `file_name`, relative to the folder, and `label`), its rows;
    otherwise one subfolder a class; otherwise the images that lie in the folder itself, without labels. The images
    are not opened here. Raises `DataError` for a row that names no file inside the folder.
    """
    if (folder / LABELS_FILE).is_file():
        return partial(_listed, folder), ()
    classes = class_folders(folder)
    rows: list[dict[str, Any]] = [
        {"image": file, "label": entry.name} for entry in classes for file in image_files(entry)
    ]
    rows = rows or [{"image": file} for file in image_files(folder)]
    return partial(enumerate, rows, 1), tuple(entry.name for entry in classes)


def _listed(folder: Path) -> Iterator[tuple[int, Row]]:
    for number, row in read_csv(folder / LABELS_FILE):
        column = next((name for name in _FILE_COLUMNS if name in row), None)
        if column is None:
            raise DataError(
                f"{folder.name}/{LABELS_FILE} has no column with file names: it has {', '.join(row)}; "
                f"call it one of {', '.join(_FILE_COLUMNS)}"
            )
        file = folder / row[column]
        # Only what lies in the folder is part of the data set's digest.
        if not file.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{folder.name}/{LABELS_FILE}, row {number}: {row[column]} lies outside of {folder}")
        if not file.is_file():
            raise DataError(f"{folder.name}/{LABELS_FILE}, row {number}: there is no file {row[column]} in {folder}")
        if not _is_image(file):
            known = " ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(
                f"{folder.name}/{LABELS_FILE}, row {number}: {row[column]} is no image by its name ({known})"
            )
        yield number, {name: value for name, value in row.items() if name != column} | {"image": file}


def read_datasets(folder: Path) -> tuple[Reader, tuple[str, ...]]:
    """The rows of one split that `Dataset.save_to_disk` wrote, and the names of the classes of its column `label`.

    Images come as the bytes of their files: only those that are drawn are decoded, and by us.
    Raises `ModuleNotFoundError` if the library `datasets` is not installed, `DataError` for a set of several splits
    or a damaged one.
    """
    if (folder / "dataset_dict.json").is_file():
        try:
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        except (ValueError, KeyError) as error:
            raise DataError(f"{folder}/dataset_dict.json is damaged ({error})") from error
        raise DataError(
            f"{folder} holds several splits: give one of {', '.join(f'{folder}/{name}' for name in splits)}"
        )
    try:
        import datasets
        import pyarrow
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {folder} needs the library `datasets`: pip install 'optimize-pipeline[datasets]'", name=error.name
        ) from error
    try:
        data = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except (OSError, ValueError, KeyError, IndexError, pyarrow.ArrowException) as error:
        # The library writes no file for no rows, and then fails to read what it wrote.
        empty = isinstance(error, IndexError) and not list(folder.glob("*.arrow"))
        why = "there is not one row in it" if empty else error
        raise DataError(f"{folder} is not a readable data set of the library `datasets`: {why}") from error
    feature = data.features.get("label")
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    for name, kind in data.features.items():
        if isinstance(kind, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return partial(enumerate, data, 1), names
