"""Reading a data set, by what its path is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from calibration.archives import read_npz
from calibration.draw import draw
from calibration.errors import DataError
from calibration.folders import LABELS_FILE, class_folders, image_files, read_datasets, read_images
from calibration.functions import is_function, read_function
from calibration.plain import read_text, read_texts, text_files
from calibration.rows import Reader, Rows
from calibration.tables import read_csv, read_jsonl, read_parquet

__all__ = ["DatasetType", "data_files", "dataset_type", "read_rows"]

DatasetType = Literal["jsonl", "csv", "parquet", "npz", "txt", "images", "texts", "datasets", "function"]
"""`txt` is one file of plain text, `texts` a folder of them."""

_FILES = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet, "npz": read_npz, "txt": read_text}
_KNOWN = (
    "a .jsonl, .csv, .parquet, .npz or .txt file, a folder of images (one subfolder a class, or with a labels.csv) or "
    "of .txt files, a directory saved by Hugging Face datasets, or module:function"
)


def dataset_type(source: str | Path) -> DatasetType:
    """What a path is. Raises `DataError` if there is nothing, or nothing that is known."""
    path = Path(source)
    if path.is_dir():
        return _directory_type(path)
    if path.exists():
        kind = path.suffix.lower().removeprefix(".")
        if kind not in _FILES:
            raise DataError(f"{path} is no data set that can be read: give {_KNOWN}")
        return kind  # type: ignore[return-value]
    if is_function(str(source)):
        return "function"
    raise DataError(f"there is no {source}: give {_KNOWN}")


def _directory_type(path: Path) -> DatasetType:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return "datasets"
    if (path / LABELS_FILE).is_file() or class_folders(path) or image_files(path):
        return "images"
    if text_files(path):
        return "texts"
    raise DataError(f"{path} holds no images, no text and no saved data set: give {_KNOWN}")


def data_files(source: str | Path) -> tuple[Path, list[str]]:
    """The directory and the names in it of the files that a data set consists of; they decide its digest.

    Raises `DataError` for what `dataset_type` refuses and for a function, which has no files.
    """
    path, kind = Path(source), dataset_type(source)
    if kind == "function":
        raise DataError(f"{source} is a function: it has no files")
    if path.is_file():
        return path.parent, [path.name]
    if kind == "images":
        # With a list, images may lie at any depth.
        found = [file for folder in (path, *_folders(path)) for file in image_files(folder)]
        names = [file.relative_to(path).as_posix() for file in found]
        return path, sorted(names + [LABELS_FILE] * (path / LABELS_FILE).is_file())
    if kind == "texts":
        return path, [file.name for file in text_files(path)]
    return path, sorted(
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.suffix in {".arrow", ".json"}
    )


def _folders(path: Path) -> list[Path]:
    return [entry for entry in path.rglob("*") if entry.is_dir()]


def read_rows(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Rows:
    """Read a data set: a path or `module:function`.

    `columns` maps our name for a column to its name in the data. `limit` draws at most so many rows with `seed`, each
    class (`label`) keeping its share; no others are held in memory (those of a function all are).

    Raises `DataError` for a path that is no data set, an empty one, a row that is broken (with its number), and a
    column of `columns` that is not there; `ModuleNotFoundError` if a library is needed that is not installed.
    """
    columns = dict(columns or {})
    path, kind = Path(source), dataset_type(source)
    read: Reader
    label_names: tuple[str, ...] = ()
    if kind == "images":
        read, label_names = read_images(path)
    elif kind == "datasets":
        read, label_names = read_datasets(path)
    elif kind == "texts":
        read = partial(read_texts, path)
    elif kind == "function":
        # Called a second time, a function may yield something else.
        read = list(read_function(str(source))).__iter__
    else:
        read = partial(_FILES[kind], path)
    chosen, total = draw(read, limit, seed, columns.get("label", "label"))
    name = str(source) if kind == "function" else (path.name or path.resolve().name)
    if not chosen:
        raise DataError(f"{source} is empty: there is not one row in it")
    rows = Rows(
        values=[row for _, row in chosen],
        numbers=[number for number, _ in chosen],
        source=name,
        unit="line" if kind == "jsonl" else "row",
        label_names=label_names,
        total=total,
    )
    return rows.renamed(columns)
