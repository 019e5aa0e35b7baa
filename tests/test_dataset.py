"""Reading data sets: every form gives the same rows, a draw keeps the classes' shares, and what is broken is named."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import DataError, dataset_type, read_rows
from calibration.dataset import data_files
from calibration.draw import draw

REVIEWS = [
    {"text": "a fine film", "label": "positive"},
    {"text": 'it said "so, so",\nand was', "label": "negative"},
    {"text": "größer als erwartet, 素晴らしい", "label": "positive"},
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_datasets(path: Path, rows: list[dict[str, Any]]) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize(
    ("name", "write", "kind"),
    [
        ("reviews.jsonl", write_jsonl, "jsonl"),
        ("reviews.csv", write_csv, "csv"),
        ("reviews.parquet", write_parquet, "parquet"),
        ("reviews", write_datasets, "datasets"),
    ],
)
def test_every_table_gives_its_rows(tmp_path: Path, name: str, write: Any, kind: str) -> None:
    path = write(tmp_path / name, REVIEWS)
    rows = read_rows(path)
    assert dataset_type(path) == kind
    assert [dict(row) for row in rows] == REVIEWS
    assert rows.source == name
    assert rows.total == 3
    assert rows.texts("text")[2].endswith("素晴らしい")


def test_csv_and_jsonl_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext\nhello\n")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    assert read_rows(tmp_path / "a.csv").texts("text") == read_rows(tmp_path / "a.jsonl").texts("text") == ["hello"]


def test_an_archive_gives_one_row_a_sample(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    np.savez(tmp_path / "d.npz", x=images, labels=np.array([0, 1, 1, 0]))
    rows = read_rows(tmp_path / "d.npz")
    assert rows.names == ["x", "label"]
    np.testing.assert_array_equal(rows.column("x")[2], images[2])
    assert [int(label) for label in rows.column("label")] == [0, 1, 1, 0]
    np.savez(tmp_path / "t.npz", x=images, labels=np.array([[0, 1]] * 4))
    assert read_rows(tmp_path / "t.npz").names == ["x", "labels"]


def test_plain_text_gives_a_row_a_file(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    (tmp_path / "a.TXT").write_text("größer", encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("not a document")
    (tmp_path / "notes.md").write_text("not a document")
    assert dataset_type(tmp_path / "b.txt") == "txt"
    assert [dict(row) for row in read_rows(tmp_path / "b.txt")] == [{"text": "one\ntwo\n"}]
    assert dataset_type(tmp_path) == "texts"
    rows = read_rows(tmp_path)
    assert rows.texts("text") == ["größer", "one\ntwo\n"]
    assert list(rows.numbers) == [1, 2]
    assert data_files(tmp_path) == (tmp_path, ["a.TXT", "b.txt"])
    assert len(read_rows(tmp_path, limit=1)) == 1


def test_a_blank_file_among_others_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "b.txt").write_text("\n")
    with pytest.raises(DataError, match=r"b.txt is empty: take it out of the folder"):
        read_rows(tmp_path)


def test_a_folder_of_images_stays_one_with_notes_beside_them(tmp_path: Path) -> None:
    make_images(tmp_path, ["a.png"])
    (tmp_path / "readme.txt").write_text("about the images")
    assert dataset_type(tmp_path) == "images"


def make_images(folder: Path, names: list[str]) -> None:
    from PIL import Image

    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name)


def test_a_folder_of_images_has_one_subfolder_a_class(tmp_path: Path) -> None:
    make_images(tmp_path, ["dog/b.png", "cat/a.png", "cat/c.JPG"])
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image")
    rows = read_rows(tmp_path)
    assert [(row["image"].name, row["label"]) for row in rows] == [("a.png", "cat"), ("c.JPG", "cat"), ("b.png", "dog")]
    assert rows.label_names == ("cat", "dog")
    assert data_files(tmp_path) == (tmp_path, ["cat/a.png", "cat/c.JPG", "dog/b.png"])


def test_classes_named_by_numbers_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    make_images(tmp_path, ["10/a.png", "9/b.png", "2/c.png"])
    assert read_rows(tmp_path).label_names == ("2", "9", "10")


def test_a_folder_of_images_may_have_a_list_of_labels(tmp_path: Path) -> None:
    make_images(tmp_path, ["x.png", "deep/y.png"])
    (tmp_path / "labels.csv").write_text("file_name,label\nx.png,cat\ndeep/y.png,dog\n")
    rows = read_rows(tmp_path)
    assert [(row["image"], row["label"]) for row in rows] == [
        (tmp_path / "x.png", "cat"),
        (tmp_path / "deep" / "y.png", "dog"),
    ]
    assert data_files(tmp_path)[1] == ["deep/y.png", "labels.csv", "x.png"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../outside.png,cat", r"labels.csv, row 1: ../outside.png lies outside"),
        ("lost.png,cat", r"labels.csv, row 1: there is no file lost.png"),
        ("in.png,cat\nnotes.txt,dog", r"labels.csv, row 2: notes.txt is no image by its name \(.bmp"),
    ],
)
def test_a_list_names_files_of_its_folder(tmp_path: Path, line: str, message: str) -> None:
    make_images(tmp_path, ["outside.png", "set/in.png"])
    (tmp_path / "set" / "notes.txt").write_text("no image")
    (tmp_path / "set" / "labels.csv").write_text(f"image,label\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "set")


def test_a_saved_dataset_knows_the_names_of_its_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.save_to_disk(tmp_path / "one")
    rows = read_rows(tmp_path / "one")
    assert rows.label_names == ("no", "yes")
    assert rows.column("label") == [1, 0]
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match=r"several splits: give one of .*splits/train, .*splits/test"):
        read_rows(tmp_path / "splits")
    assert read_rows(tmp_path / "splits" / "test").column("text") == ["a", "b"]


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_rows.py").write_text(
        "import numpy as np\n"
        "def texts():\n    yield {'text': 'a'}\n    yield {'text': 'b'}\n"
        "def listed():\n    return [{'text': 'a'}]\n"
        "def wrong():\n    yield {'text': 'a'}\n    yield 'b'\n"
        "def number():\n    return 3\n"
        "def failing():\n    yield {'text': 'a'}\n    raise OSError('the disk is gone')\n"
        "class Sets:\n    def first():\n        yield {'text': 'c'}\n"
        "constant = 3\n"
    )
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    (tmp_path / "misspelt.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_rows", None)


def test_a_function_of_a_module_in_the_working_directory_gives_rows(functions: Path) -> None:
    assert read_rows("my_rows:texts").texts("text") == ["a", "b"]
    assert read_rows("my_rows:listed").source == "my_rows:listed"
    assert read_rows("my_rows:Sets.first").texts("text") == ["c"]
    assert read_rows("my_rows:texts", limit=1).total == 2
    assert str(functions) not in sys.path


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("my_rows:wrong", "my_rows:wrong, row 2 is a str, not a dictionary"),
        ("my_rows:number", "gave a int; it should yield dictionaries"),
        ("my_rows:absent", r"the module my_rows \(.*my_rows.py\) has no 'absent'"),
        ("my_rows:constant", "my_rows:constant is no function but a int"),
        ("no_such_rows:f", "there is no module 'no_such_rows'"),
        ("my_rows:failing", "my_rows:failing failed at row 2 with OSError: the disk is gone"),
        ("needs_more:f", "needs_more cannot be imported: ModuleNotFoundError: .*surely_not_installed"),
        ("misspelt:f", "misspelt cannot be imported: SyntaxError"),
    ],
)
def test_a_function_that_gives_no_rows_is_named(functions: Path, reference: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(reference)


def numbered(count: int) -> list[dict[str, Any]]:
    """Three classes with shares of 70, 20 and 10 %."""
    return [{"text": str(i), "label": "a" if i % 10 < 7 else "b" if i % 10 < 9 else "c"} for i in range(count)]


def test_a_draw_keeps_the_share_of_every_class_and_the_order_of_the_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", numbered(200))
    rows = read_rows(path, limit=30, seed=5)
    assert Counter(rows.column("label")) == {"a": 21, "b": 6, "c": 3}
    assert list(rows.numbers) == sorted(rows.numbers)
    assert [int(text) + 1 for text in rows.texts("text")] == list(rows.numbers)
    assert rows.total == 200


def test_a_draw_holds_no_more_rows_than_it_gives() -> None:
    class Held(dict[str, Any]):
        """A row that can be watched."""

    alive: weakref.WeakSet[Held] = weakref.WeakSet()
    most = 0

    def rows() -> Iterator[tuple[int, Held]]:
        nonlocal most
        for number in range(500):
            row = Held(label=number % 50, number=number)
            alive.add(row)
            most = max(most, len(alive))
            yield number, row

    Held.__hash__ = object.__hash__  # type: ignore[assignment]
    chosen, total = draw(rows, 10, 0)
    assert (len(chosen), total) == (10, 500)
    assert most < 10 + 5


def test_with_more_classes_than_rows_to_draw_every_seed_takes_others() -> None:
    def drawn(seed: int) -> set[int]:
        chosen, _ = draw(lambda: iter(enumerate({"label": number % 100} for number in range(1000))), 20, seed)
        return {row["label"] for _, row in chosen}

    assert [len(drawn(seed)) for seed in range(3)] == [20, 20, 20]
    assert drawn(0) == drawn(0)
    assert len(drawn(0) | drawn(1) | drawn(2)) > 40


def test_a_class_is_the_same_as_a_number_in_any_form() -> None:
    labels = [1, 1.0, np.int64(1), np.float32(1)] * 10 + ["other"] * 40
    chosen, _ = draw(lambda: iter(enumerate({"label": label} for label in labels)), 10, 0)
    assert sum(row["label"] == "other" for _, row in chosen) == 5


def test_drawing_from_an_archive_holds_no_more_than_what_is_drawn(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((400, 10_000)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, labels=np.arange(400) % 10)
    tracemalloc.start()
    try:
        rows = read_rows(tmp_path / "d.npz", limit=20, seed=1)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 3 * 20 * x[0].nbytes < x.nbytes / 5
    assert Counter(int(label) for label in rows.column("label")) == dict.fromkeys(range(10), 2)
    for number, row in zip(rows.numbers, rows, strict=True):
        np.testing.assert_array_equal(row["x"], x[number - 1])


def test_a_draw_is_the_same_for_the_same_seed_and_another_for_another(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", numbered(200))
    first, again, other = (read_rows(path, limit=30, seed=seed).numbers for seed in (1, 1, 2))
    assert first == again != other


def test_a_draw_without_labels_takes_from_everywhere(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": str(i)} for i in range(300)])
    numbers = np.array(read_rows(path, limit=90).numbers)
    assert len(set(numbers.tolist())) == 90
    assert all(((numbers > start) & (numbers <= start + 100)).sum() > 15 for start in (0, 100, 200))


def test_a_limit_that_is_not_reached_takes_everything(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", numbered(20))
    assert len(read_rows(path, limit=100)) == 20


def test_a_draw_is_stratified_by_the_column_that_is_renamed_to_label(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": r["text"], "gold": r["label"]} for r in numbered(100)])
    rows = read_rows(path, columns={"label": "gold"}, limit=10)
    assert Counter(rows.column("label")) == {"a": 7, "b": 2, "c": 1}
    assert not rows.has("gold")


def test_one_column_may_serve_twice(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"sentence": "x"}])
    rows = read_rows(path, columns={"text_a": "sentence", "text_b": "sentence"})
    assert dict(rows.values[0]) == {"text_a": "x", "text_b": "x"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": "sentense"},
            r"'text' is called 'sentense', but d.jsonl has only 'sentence'. Did you mean 'sentence'",
        ),
        ({"sentence": "text"}, r"Our name comes first: columns: \{text: sentence\}"),
    ],
)
def test_columns_that_are_not_there_are_named(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"sentence": "x"}])
    with pytest.raises(DataError, match=message):
        read_rows(path, columns=columns)


def test_a_missing_column_is_named_with_what_is_there_and_the_nearest(tmp_path: Path) -> None:
    rows = read_rows(write_jsonl(tmp_path / "d.jsonl", [{"Texts": "x", "id": 1}]))
    with pytest.raises(DataError, match=r"has no column 'text'; it has 'Texts', 'id'.*columns: \{text: Texts\}"):
        rows.texts("text")


@pytest.mark.parametrize(
    ("row", "message"),
    [({}, "line 2 has no 'text'"), ({"text": None}, "line 2 has no 'text'"), ({"text": 5}, r"should be text, it is 5")],
)
def test_a_row_without_its_value_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    rows = read_rows(write_jsonl(tmp_path / "d.jsonl", [{"text": "x"}, row]))
    with pytest.raises(DataError, match=message):
        rows.texts("text")


def test_half_a_character_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(DataError, match=r"d.jsonl, line 2: 'text' holds half of a surrogate pair"):
        read_rows(tmp_path / "d.jsonl").texts("text")


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "json": ("d.jsonl", b'{"text": "a"}\n\n{"text": \n', "d.jsonl, line 3 is not JSON"),
    "json list": ("d.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 holds a list; a row is a JSON object"),
    "json encoding": ("d.jsonl", '{"text": "ä"}'.encode("latin-1"), "line 1 is not UTF-8"),
    "csv fields": ("d.csv", b"text,label\na,1\nb,c,2\n", r"row 2 \(line 3\) has 3 fields; there are 2 columns"),
    "csv quote": (
        "d.csv",
        b'text,label\na,0\n"b\nb",1\n"c,1\nd,0\n',
        r"d.csv, row 3 \(it begins in line 5\) is not CSV: unexpected end of data. A double quote",
    ),
    "csv quote inside": (
        "d.csv",
        b'text,label\n"a "so" said",1\n',
        r"row 1 \(it begins in line 2\) is not CSV: ',' exp",
    ),
    "csv semicolons": ("d.csv", b"text;label\na;1\n", "d.csv separates its columns by ';': save it with commas"),
    "csv tabs": ("d.csv", b"text\tlabel\na\t1\n", r"d.csv separates its columns by '\\t'"),
    "csv encoding": ("d.csv", "text\nä\n".encode("latin-1"), r"d.csv is not UTF-8 \(byte 5\)"),
    "csv twice": ("d.csv", b"text,text\na,b\n", "names a column twice"),
    "parquet": ("d.parquet", b"PAR1 and nothing else", "d.parquet is not a readable Parquet file"),
    "npz": ("d.npz", b"PK\x03\x04 cut off", "d.npz is not a readable .npz"),
    "npz empty file": ("d.npz", b"", "d.npz is not a readable .npz"),
    "type": ("d.md", b"text", "is no data set that can be read: give a .jsonl, .csv"),
    "text encoding": ("d.txt", "ein größeres".encode("latin-1"), r"d.txt is not UTF-8 \(byte 6\): save it as UTF-8"),
    "blank text": ("d.txt", b" \n", "d.txt is empty: there is not one row in it"),
    "empty jsonl": ("d.jsonl", b"\n", "d.jsonl is empty"),
    "empty csv": ("d.csv", b"", "d.csv is empty"),
    "csv header only": ("d.csv", b"text,label\n", "d.csv is empty"),
    "no bytes": ("d.jsonl", b"", "d.jsonl is empty"),
    "parquet no bytes": ("d.parquet", b"", "d.parquet is not a readable Parquet file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_its_place(tmp_path: Path, case: str) -> None:
    name, content, message = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_a_bare_array_under_the_name_of_an_archive_is_named(tmp_path: Path) -> None:
    with (tmp_path / "d.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(DataError, match=r"d.npz is not a readable .npz"):
        read_rows(tmp_path / "d.npz")


def test_an_archive_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(DataError, match=r"d.npz: 'x' holds Python objects, not plain arrays, and is not unpickled"):
        read_rows(tmp_path / "d.npz")


def test_arrays_are_read_in_any_order_of_their_axes_and_bytes(tmp_path: Path) -> None:
    x = np.arange(24.0).reshape(4, 2, 3)
    np.savez_compressed(tmp_path / "d.npz", c=x, f=np.asfortranarray(x), b=x.astype(">f4"), s=np.array([*"abcd"]))
    rows = read_rows(tmp_path / "d.npz")
    for name in "cfb":
        np.testing.assert_array_equal(np.stack(rows.column(name)), x)
    assert [str(text) for text in rows.column("s")] == [*"abcd"]


def test_a_changed_byte_in_an_archive_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.ones((4, 100), np.float32))
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d.npz is not a readable .npz: Bad CRC-32"):
        read_rows(path)


def test_what_is_no_number_in_an_archive_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array(["2026-01-01"], dtype="datetime64[D]"))
    with pytest.raises(DataError, match=r"d.npz: 'x' is of dtype datetime64\[D\]; numbers and text can be read"):
        read_rows(tmp_path / "d.npz")
    np.savez(tmp_path / "l.npz", x=np.zeros((2, 3)), label=np.zeros(2), labels=np.zeros(2))
    with pytest.raises(DataError, match="holds 'label' twice"):
        read_rows(tmp_path / "l.npz")


def test_tables_without_a_row_are_empty(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d.parquet is empty: there is not one row in it"):
        read_rows(tmp_path / "d.parquet")
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="there is not one row in it"):
        read_rows(tmp_path / "d")


def test_nested_columns_of_a_table_are_dictionaries_and_lists(tmp_path: Path) -> None:
    squad = {"question": "Who?", "answers": {"text": ["Guido"], "answer_start": [0]}, "tokens": [["a"], ["b"]]}
    rows = read_rows(write_parquet(tmp_path / "d.parquet", [squad]))
    assert dict(rows.values[0]) == squad
    assert rows.lists("tokens") == [[["a"], ["b"]]]
    with pytest.raises(DataError, match=r"d.parquet, row 1: 'answers' should be text, it is {'text': .*\(dict\)"):
        rows.texts("answers")
    with pytest.raises(DataError, match=r"d.parquet, row 1: 'answers' should be a list, it is {'text'"):
        rows.lists("answers")


def test_images_of_a_saved_dataset_are_not_decoded_before_they_are_drawn(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    make_images(tmp_path / "files", ["a.png", "b.png"])
    content = [(tmp_path / "files" / name).read_bytes() for name in ("a.png", "b.png")]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    files = [str(tmp_path / "files" / name) for name in ("a.png", "b.png")]
    datasets.Dataset.from_dict({"image": files, "label": [0, 1]}, features=features).save_to_disk(tmp_path / "d")
    assert [row["image"]["bytes"] for row in read_rows(tmp_path / "d")] == content


def test_arrays_of_an_archive_agree_on_the_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)), y=np.zeros((4, 2)))
    with pytest.raises(DataError, match=r"different numbers of samples \(x 3, y 4\)"):
        read_rows(tmp_path / "d.npz")
    np.savez(tmp_path / "n.npz", x=np.float32(3))
    with pytest.raises(DataError, match="'x' is a single number"):
        read_rows(tmp_path / "n.npz")
    np.savez(tmp_path / "e.npz", x=np.zeros((0, 2)))
    with pytest.raises(DataError, match=r"e.npz is empty"):
        read_rows(tmp_path / "e.npz")


def test_a_path_that_is_nothing_says_what_could_be_given(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*lost.jsonl: give a .jsonl"):
        read_rows(tmp_path / "lost.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images, no text and no saved data set"):
        read_rows(tmp_path / "empty")


def test_a_damaged_saved_dataset_is_named(tmp_path: Path) -> None:
    path = write_datasets(tmp_path / "d", REVIEWS)
    next(path.glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(DataError, match="is not a readable data set"):
        read_rows(path)


def test_reading_plain_files_needs_no_heavy_library(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", REVIEWS)
    program = (
        "import sys, calibration\n"
        f"calibration.read_rows({str(path)!r})\n"
        "heavy = {'pandas', 'pyarrow', 'datasets', 'PIL', 'torch', 'transformers', 'tokenizers', 'onnx'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
