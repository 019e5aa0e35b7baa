"""Samples: batches are padded to their longest, and what is saved comes back, from the same bytes each time."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from calibration import DataError, Samples


@pytest.fixture
def ragged() -> Samples:
    """Three samples of 2, 4 and 1 tokens beside one image each."""
    ids = [np.array(values, dtype=np.int64) for values in ([7, 8], [1, 2, 3, 4], [9])]
    masks = [np.ones(len(value), dtype=np.int32) for value in ids]
    images = [np.full((2, 2), float(number), dtype=np.float16) for number in range(3)]
    return Samples(
        {"ids": ids, "mask": masks, "image": images},
        {"ids": 5, "mask": 0},
        {"kind": "label", "label": [0, 1, 0]},
        cut=1,
    )


def test_a_batch_is_padded_to_its_longest_sample(ragged: Samples) -> None:
    batch = ragged.batch([0, 1])
    assert batch["ids"].tolist() == [[7, 8, 5, 5], [1, 2, 3, 4]]
    assert batch["mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["image"].shape == (2, 2, 2)
    assert [array.dtype for array in batch.values()] == [np.int64, np.int32, np.float16]
    assert ragged.batch([2])["ids"].tolist() == [[9]]


def test_batches_hold_every_sample_once_and_put_like_lengths_together(ragged: Samples) -> None:
    batches = list(ragged.batches(2))
    assert [indices for indices, _ in batches] == [[2, 0], [1]]
    assert [arrays["ids"].shape for _, arrays in batches] == [(2, 2), (1, 4)]


def test_what_is_saved_comes_back(ragged: Samples, tmp_path: Path) -> None:
    ragged.save(tmp_path)
    loaded = Samples.load(tmp_path)
    assert loaded.padding == ragged.padding
    assert loaded.truth == ragged.truth
    assert loaded.cut == 1
    assert loaded.lengths().tolist() == ragged.lengths().tolist() == [2, 4, 1]
    assert [value.tolist() for value in loaded.inputs["ids"][1:]] == [[1, 2, 3, 4], [9]]
    assert loaded.inputs["ids"][-1].tolist() == [9]
    for name, values in ragged.inputs.items():
        for before, after in zip(values, loaded.inputs[name], strict=True):
            np.testing.assert_array_equal(before, after)
            assert before.dtype == after.dtype
            assert before.shape == after.shape


def test_loaded_samples_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    images = [np.full((100, 100), number, np.float32) for number in range(200)]
    Samples({"image": images}).save(tmp_path)
    tracemalloc.start()
    try:
        loaded = Samples.load(tmp_path)
        seen = [array["image"][0, 0, 0] for _, array in loaded.batches(2)]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(seen) == sum(range(0, 200, 2))
    assert most < 10 * images[0].nbytes


def test_single_numbers_and_empty_sequences_come_back(tmp_path: Path) -> None:
    scalars = [np.float32(1.5).reshape(()), np.float32(-2).reshape(())]
    sequences = [np.zeros(0, dtype=np.int64), np.ones(2, dtype=np.int64)]
    Samples({"x": scalars, "s": sequences}, {"s": 0}).save(tmp_path)
    loaded = Samples.load(tmp_path)
    assert [value.shape for value in loaded.inputs["x"]] == [(), ()]
    assert [float(value) for value in loaded.inputs["x"]] == [1.5, -2]
    assert [value.tolist() for value in loaded.inputs["s"]] == [[], [1, 1]]


def test_the_archive_is_a_plain_one_and_its_bytes_depend_on_nothing_else(ragged: Samples, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ragged.save(tmp_path / name)
        contents.append([(tmp_path / name / file).read_bytes() for file in ("samples.npz", "samples.json")])
    assert contents[0] == contents[1]
    with zipfile.ZipFile(tmp_path / "one" / "samples.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(tmp_path / "one" / "samples.npz", allow_pickle=False) as arrays:
        assert arrays["ids/values"].tolist() == [7, 8, 1, 2, 3, 4, 9]
        assert arrays["image/shapes"].tolist() == [[2, 2]] * 3


def test_an_array_that_is_not_contiguous_is_saved_as_it_reads(tmp_path: Path) -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    Samples({"x": [turned]}).save(tmp_path)
    np.testing.assert_array_equal(Samples.load(tmp_path).inputs["x"][0], turned)


def test_damaged_samples_are_named(ragged: Samples, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no readable samples"):
        Samples.load(tmp_path)
    ragged.save(tmp_path)
    whole = (tmp_path / "samples.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "compressed.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("ids", "mask", "image"):
            archive.writestr(f"{name}/values.npy", b"")
    compressed = (tmp_path / "compressed.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"something else", compressed):
        (tmp_path / "samples.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="holds no readable samples"):
            Samples.load(tmp_path)
    (tmp_path / "samples.npz").write_bytes(whole)
    for text in ("[]", "{", json.dumps({"inputs": ["other"], "padding": {}, "truth": None})):
        (tmp_path / "samples.json").write_text(text)
        with pytest.raises(DataError, match="holds no readable samples"):
            Samples.load(tmp_path)


def test_inputs_have_the_same_number_of_samples() -> None:
    with pytest.raises(DataError, match=r"same number of samples, got {'x': 1, 'y': 2}"):
        Samples({"x": [np.zeros(1)], "y": [np.zeros(1)] * 2})
    with pytest.raises(DataError, match="no inputs"):
        Samples({})
