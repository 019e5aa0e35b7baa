"""Arrays, images and made-up inputs fit the model's signature exactly, or the row and the axis are named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration import DataError, InputSpec, ModelInputs, Rows, Samples, random_samples, read_rows, synthetic_samples
from calibration import samples_from_rows as from_rows

PIXELS = InputSpec("pixel_values", "float32", ("batch", 3, "height", "width"))
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 24, "width": 24},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.5, 0.5],
    "resample": 0,
}


def rows_of(*values: dict[str, Any], **about: Any) -> Rows:
    return Rows(list(values), range(1, len(values) + 1), "data", "row", total=len(values), **about)


def generic(tmp_path: Path, *specs: InputSpec) -> ModelInputs:
    return ModelInputs("generic", specs, tmp_path)


def images(tmp_path: Path, spec: InputSpec = PIXELS, **preprocessing: Any) -> ModelInputs:
    if preprocessing:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return ModelInputs("image-classification", (spec,), tmp_path, ("cat", "dog"))


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ([1.5, 2.0], "float32", [1.5, 2.0]),
        (np.array([0.1, 1e300]) * 0 + 0.1, "float32", [np.float32(0.1)] * 2),
        ([1.0, 2.0], "int64", [1, 2]),
        (np.array([1, 2], dtype=np.int64), "int32", [1, 2]),
        (np.array([1, 255], dtype=np.int64), "uint8", [1, 255]),
        ([1, 2], "float16", [1, 2]),
        ([0, 1], "bool", [False, True]),
        (["a", "bc"], "string", ["a", "bc"]),
    ],
)
def test_a_value_takes_the_inputs_dtype_where_it_stays_the_same(
    tmp_path: Path, value: Any, dtype: str, expected: list[Any]
) -> None:
    samples = from_rows(rows_of({"x": value}), generic(tmp_path, InputSpec("x", dtype, ("batch", 2))))
    array = samples.inputs["x"][0]
    assert array.tolist() == expected
    assert dtype == "string" or array.dtype == dtype


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ([1.5, 2.0], "int64", "row 2: 'x' holds float64 values that the model's int64 cannot"),
        ([1, 300], "uint8", "holds int64 values that the model's uint8 cannot"),
        ([-1, 3], "uint64", "cannot"),
        ([1.0, 1e6], "float16", "holds float64 values that the model's float16 cannot"),
        ([1, 2**53 + 1], "float64", "cannot"),
        ([1.0, float("nan")], "float32", r"row 2: 'x' has NaN at \[1\]"),
        ([float("-inf"), 1.0], "float32", r"row 2: 'x' has infinity at \[0\]"),
        ([1.0], "float32", r"row 2: 'x' has shape \[1\], the model takes \[2\] a sample \(axis 0 is 1, not 2\)"),
        ([[1.0, 2.0]], "float32", r"the model takes \[2\] a sample \(1 axes, not 2\)"),
        ([[1.0], [1.0, 2.0]], "float32", "is not an array of one shape"),
        (["a", "b"], "float32", "should be numbers of dtype float32"),
        ([1.0, 2.0], "string", "should be numbers of dtype string|should be"),
        (None, "float32", "row 2 has no 'x'"),
    ],
)
def test_a_value_that_does_not_fit_is_named(tmp_path: Path, value: Any, dtype: str, message: str) -> None:
    good = ["a", "b"] if dtype == "string" else [0, 1]
    with pytest.raises(DataError, match=message):
        from_rows(rows_of({"x": good}, {"x": value}), generic(tmp_path, InputSpec("x", dtype, ("batch", 2))))


def test_every_input_is_needed_and_labels_are_the_truth(tmp_path: Path) -> None:
    specs = (InputSpec("x", "float32", ("n", 2)), InputSpec("mask", "bool", ("n",)))
    rows = rows_of({"x": [1.0, 2.0], "mask": True, "label": 1}, {"x": [1.0, 2.0], "mask": False, "label": 0})
    samples = from_rows(rows, generic(tmp_path, *specs))
    assert samples.truth == {"kind": "label", "label": [1, 0]}
    assert samples.batch([0, 1])["mask"].tolist() == [True, False]
    assert samples.padding == {}
    with pytest.raises(DataError, match="has no column 'mask'"):
        from_rows(rows_of({"x": [1.0, 2.0]}), generic(tmp_path, *specs))


def test_numbers_may_be_written_as_text(tmp_path: Path) -> None:
    specs = (InputSpec("x", "float32", ("n", 2)), InputSpec("age", "int64", ("n",)))
    (tmp_path / "d.csv").write_text('x,age,label\n"[0.5, 2]",41,1\n"[1, 3]",7,0\n')
    samples = from_rows(read_rows(tmp_path / "d.csv"), generic(tmp_path, *specs))
    assert {name: array.tolist() for name, array in samples.batch([0, 1]).items()} == {
        "x": [[0.5, 2], [1, 3]],
        "age": [41, 7],
    }
    (tmp_path / "d.csv").write_text('x,age\n"[0.5, 2]",41\n"[1, 3",7\n')
    with pytest.raises(DataError, match=r"d.csv, row 2: 'x' should be numbers of dtype float32, it is \[1, 3$"):
        from_rows(read_rows(tmp_path / "d.csv"), generic(tmp_path, *specs))


def test_labels_of_positions_are_the_truth_of_sequences(tmp_path: Path) -> None:
    spec = InputSpec("x", "float32", ("n", "time"))
    rows = rows_of({"x": np.zeros(3), "labels": np.array([1, -100, 0])})
    assert from_rows(rows, generic(tmp_path, spec)).truth == {"kind": "labels", "labels": [[1, -100, 0]]}


def test_samples_of_different_lengths_are_named(tmp_path: Path) -> None:
    rows = rows_of({"x": [1.0]}, {"x": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"row 2: 'x' has shape \[2\], the first sample has \[1\]; pad them"):
        from_rows(rows, generic(tmp_path, InputSpec("x", "float32", ("n", "time"))))


def test_ready_inputs_are_taken_whatever_the_task(tmp_path: Path) -> None:
    specs = (InputSpec("input_ids", "int64", ("b", "s")), InputSpec("attention_mask", "int64", ("b", "s")))
    rows = rows_of({"input_ids": [1, 2], "attention_mask": [1, 1], "label": "pos"})
    samples = from_rows(rows, ModelInputs("text-classification", specs, tmp_path, ("neg", "pos")))
    assert samples.inputs["input_ids"][0].tolist() == [1, 2]
    assert samples.truth == {"kind": "label", "label": [1]}


def test_ids_lie_within_the_models_table(tmp_path: Path) -> None:
    model = generic(tmp_path, InputSpec("ids", "int32", ("n", "time"), choices=5))
    assert from_rows(rows_of({"ids": [0, 4]}), model).inputs["ids"][0].tolist() == [0, 4]
    for wrong in (5, -1):
        with pytest.raises(DataError, match=rf"row 2: 'ids' has {wrong} at \[1\]; the model's table .* 5 rows, 0 to 4"):
            from_rows(rows_of({"ids": [0, 4]}, {"ids": [1, wrong]}), model)


def test_ids_are_no_longer_than_the_models_positions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "max_position_embeddings": 8, "pad_token_id": 1}')
    specs = (InputSpec("input_ids", "int64", ("b", "s")),)
    model = ModelInputs("feature-extraction", specs, tmp_path)
    assert len(from_rows(rows_of({"input_ids": [3] * 6}), model)) == 1
    with pytest.raises(DataError, match=r"row 1: 'input_ids' has 7 tokens, the model has only 6 positions: cut them"):
        from_rows(rows_of({"input_ids": [3] * 7}), model)


def test_a_sample_with_nothing_in_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1: 'x' has shape \[0\]: there is nothing in it"):
        from_rows(rows_of({"x": []}), generic(tmp_path, InputSpec("x", "float32", ("n", "time"))))


def test_an_input_without_a_batch_axis_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="input 'x' is a single number: it has no batch axis"):
        from_rows(rows_of({"x": 1.0}), generic(tmp_path, InputSpec("x", "float32", ())))


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)


@pytest.mark.parametrize(
    "preprocessing",
    [
        VIT,
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 24}, "crop_pct": 0.875},
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 24, "do_normalize": True},
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 28},
            "crop_size": {"height": 24, "width": 24},
        },
    ],
)
def test_images_pass_through_the_checkpoints_preprocessing(tmp_path: Path, preprocessing: dict[str, Any]) -> None:
    rows = rows_of({"image": noise(), "label": "dog"}, {"image": noise("L", (25, 50)), "label": "cat"})
    samples = from_rows(rows, images(tmp_path, **preprocessing))
    assert [value.shape for value in samples.inputs["pixel_values"]] == [(3, 24, 24)] * 2
    assert {value.dtype for value in samples.inputs["pixel_values"]} == {np.dtype(np.float32)}
    assert samples.truth == {"kind": "label", "label": [1, 0]}


def test_grey_images_pass_through_preprocessing_for_one_channel(tmp_path: Path) -> None:
    spec = InputSpec("pixel_values", "float32", ("batch", 1, 24, 24))
    model = images(tmp_path, spec, **VIT | {"image_mean": [0.5], "image_std": [0.25]})
    array = from_rows(rows_of({"image": Image.new("RGB", (24, 24), (51, 51, 51))}), model).inputs["pixel_values"][0]
    np.testing.assert_allclose(array, np.full((1, 24, 24), (0.2 - 0.5) / 0.25), rtol=1e-5)


def test_preprocessing_resizes_rescales_and_normalises(tmp_path: Path) -> None:
    image = Image.new("RGB", (24, 24), (255, 0, 51))
    samples = from_rows(rows_of({"image": image}), images(tmp_path, **VIT))
    red, green, blue = samples.inputs["pixel_values"][0][:, 3, 5].tolist()
    assert (red, green) == (pytest.approx(0.5 / 0.25), pytest.approx(-0.5 / 0.5))
    assert blue == pytest.approx((0.2 - 0.5) / 0.5)
    # Nearest neighbour from 48 to 24 pixels takes pixels of the original.
    large = np.asarray(from_rows(rows_of({"image": noise(size=(48, 48))}), images(tmp_path)).inputs["pixel_values"][0])
    original = np.asarray(noise(size=(48, 48)), dtype=np.float32).transpose(2, 0, 1) / 255
    mean, std = np.array([[[0.5]]] * 3), np.array([[[0.25]], [[0.5]], [[0.5]]])
    np.testing.assert_allclose(large, ((original - mean) / std)[:, 1::2, 1::2], atol=1e-5)


def test_without_preprocessing_an_image_is_resized_and_divided_by_255(tmp_path: Path) -> None:
    grey = InputSpec("x", "float32", ("batch", 1, 8, 8))
    samples = from_rows(rows_of({"image": Image.new("RGB", (20, 10), (255, 255, 255))}), images(tmp_path, grey))
    np.testing.assert_array_equal(samples.inputs["x"][0], np.ones((1, 8, 8), dtype=np.float32))
    last = InputSpec("x", "uint8", ("batch", 8, 8, 3))
    samples = from_rows(rows_of({"image": Image.new("RGB", (20, 10), (7, 8, 9))}), images(tmp_path, last))
    assert samples.inputs["x"][0].shape == (8, 8, 3)
    assert samples.inputs["x"][0][0, 0].tolist() == [7, 8, 9]


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    rows = rows_of({"image": noise()}, {"image": noise(size=(10, 10))})
    with pytest.raises(DataError, match=r"row 2: .*resize the images to one size, or put a preprocessor_config\.json"):
        from_rows(rows, images(tmp_path))


def test_an_image_comes_as_a_path_bytes_or_a_picture(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    forms = [noise(), tmp_path / "a.png", buffer.getvalue(), {"bytes": buffer.getvalue(), "path": None}]
    samples = from_rows(rows_of(*({"image": form} for form in forms)), images(tmp_path))
    for array in samples.inputs["pixel_values"]:
        np.testing.assert_array_equal(array, samples.inputs["pixel_values"][0])


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    samples = from_rows(rows_of({"image": tmp_path / "a.jpg"}), images(tmp_path))
    assert samples.inputs["pixel_values"][0].shape == (3, 4, 2)


def test_images_that_cannot_be_read_or_converted_are_named(tmp_path: Path) -> None:
    noise().save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_bytes(b"no image")
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "float.tiff")
    cases = {
        "cut.png": r"row 2 \(/.*/cut.png\): the image cannot be read",
        "text.png": r"row 2 \(/.*/text.png\): the image cannot be read",
        "lost.png": r"row 2 \(/.*/lost.png\): the image cannot be read",
        "deep.png": r"row 2 \(/.*/deep.png\): an image of mode 'I;16' cannot be converted to RGB",
        "float.tiff": r"row 2 \(/.*/float.tiff\): an image of mode 'F' cannot be converted",
    }
    for name, message in cases.items():
        rows = rows_of({"image": tmp_path / "good.png"}, {"image": tmp_path / name})
        with pytest.raises(DataError, match=message):
            from_rows(rows, images(tmp_path))
    with pytest.raises(DataError, match="'image' is a int, not an image"):
        from_rows(rows_of({"image": 3}), images(tmp_path))


@pytest.mark.parametrize("image", ["good.png", {"bytes": None, "path": "good.png"}])
def test_an_image_that_is_no_part_of_the_data_is_refused(tmp_path: Path, image: Any) -> None:
    with pytest.raises(DataError, match=r"row 1: 'image' names a file \(good.png\), which is no part of this data set"):
        from_rows(rows_of({"image": image}), images(tmp_path))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_images_of_the_usual_modes_are_converted(tmp_path: Path, mode: str, channels: int) -> None:
    image = noise().convert("P").convert("PA") if mode == "PA" else noise().convert("RGBA").convert("RGB").convert(mode)
    spec = InputSpec("pixel_values", "float32", ("batch", channels, "height", "width"))
    array = from_rows(rows_of({"image": image}), images(tmp_path, spec)).inputs["pixel_values"][0]
    assert array.shape == (channels, 30, 40)
    assert array.std() > 0.05


def test_colours_become_grey_by_their_luma(tmp_path: Path) -> None:
    spec = InputSpec("pixel_values", "uint8", ("batch", 1, 2, 2))
    samples = from_rows(rows_of({"image": Image.new("RGB", (2, 2), (200, 100, 50))}), images(tmp_path, spec))
    assert samples.inputs["pixel_values"][0][0, 0, 0] == round((299 * 200 + 587 * 100 + 114 * 50) / 1000)


def palette_with_a_hole() -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpixel((0, 0), 0)
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    "image",
    [Image.new("RGBA", (2, 2), (1, 2, 3, 254)), Image.new("LA", (2, 2), (9, 0)), palette_with_a_hole()],
    ids=["RGBA", "LA", "P"],
)
def test_transparent_images_are_refused_where_a_background_would_be_made_up(tmp_path: Path, image: Image.Image) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    image.save(folder / "a.png")
    spec = InputSpec("pixel_values", "float32", ("batch", 4, 2, 2))
    assert from_rows(read_rows(folder), images(tmp_path, spec)).inputs["pixel_values"][0].shape == (4, 2, 2)
    with pytest.raises(DataError, match=rf"pets, row 1 \(.*a.png\): the image \(mode '{image.mode}'\) is transparent"):
        from_rows(read_rows(folder), images(tmp_path))


def test_a_result_that_does_not_fit_the_model_is_named(tmp_path: Path) -> None:
    spec = InputSpec("pixel_values", "float32", ("batch", 3, 32, 32))
    noise().save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"row 1 \(.*/a.png\): .* shape \[3, 24, 24\], the model takes \[3, 32, 32\]"):
        from_rows(rows_of({"image": tmp_path / "a.png"}), images(tmp_path, spec, **VIT))


def test_an_image_that_the_preprocessing_refuses_is_named(tmp_path: Path) -> None:
    grey = InputSpec("pixel_values", "float32", ("batch", 1, 24, 24))
    with pytest.raises(DataError, match=r"row 1: the checkpoint's preprocessing refuses the image: "):
        from_rows(rows_of({"image": noise("L")}), images(tmp_path, grey, **VIT))


@pytest.mark.parametrize("preprocessing", [{"image_processor_type": "NoSuchProcessor"}, {"image_mean": [0.5]}])
def test_preprocessing_that_is_not_known_is_named(tmp_path: Path, preprocessing: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"preprocessor_config\.json cannot be used"):
        from_rows(rows_of({"image": noise()}), images(tmp_path, **preprocessing))


def test_images_need_a_model_that_takes_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images make one input of 4 axes, the model takes x \['n', 4\]"):
        from_rows(rows_of({"image": noise()}), images(tmp_path, InputSpec("x", "float32", ("n", 4))))
    with pytest.raises(DataError, match="has 7 channels"):
        from_rows(rows_of({"image": noise()}), images(tmp_path, InputSpec("x", "float32", ("n", 7, 8, 8))))
    with pytest.raises(DataError, match="reads a folder of images, a column 'image', or the input 'pixel_values'"):
        from_rows(rows_of({"text": "a"}), images(tmp_path))


def first_values(samples: Samples) -> dict[str, list[Any]]:
    return {name: values[0].ravel()[:4].tolist() for name, values in samples.inputs.items()}


def test_random_inputs_fit_the_signature_and_depend_on_the_seed() -> None:
    specs = (
        InputSpec("x", "float16", ("n", 3, "time")),
        InputSpec("index", "int32", ("n", "time")),
        InputSpec("attention_mask", "int64", ("n", "time")),
        InputSpec("flag", "bool", ("n",)),
    )
    samples, again, other = (synthetic_samples(specs, 5, seed, {"time": 7}) for seed in (1, 1, 2))
    batch = samples.batch(range(5))
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        "x": ("float16", (5, 3, 7)),
        "index": ("int32", (5, 7)),
        "attention_mask": ("int64", (5, 7)),
        "flag": ("bool", (5,)),
    }
    assert set(np.unique(batch["index"]).tolist()) == {0, 1}
    assert batch["attention_mask"].all()
    assert abs(float(batch["x"].astype(np.float32).mean())) < 0.5
    assert first_values(samples) == first_values(again) != first_values(other)


def test_random_images_are_of_the_size_that_preprocessing_gives(tmp_path: Path) -> None:
    model = images(tmp_path, InputSpec("pixel_values", "float32", ("batch", "channels", "height", "width")), **VIT)
    assert random_samples(model, 2).inputs["pixel_values"][0].shape == (3, 24, 24)
    (tmp_path / "preprocessor_config.json").unlink()
    assert random_samples(model, 1).inputs["pixel_values"][0].shape == (3, 224, 224)


def test_text_and_dtypes_that_numpy_lacks_cannot_be_made_up() -> None:
    with pytest.raises(DataError, match="takes text, which cannot be made up"):
        synthetic_samples((InputSpec("x", "string", ("n",)),), 1)
    with pytest.raises(DataError, match="of dtype bfloat16, for which no data can be read"):
        synthetic_samples((InputSpec("x", "bfloat16", ("n",)),), 1)
