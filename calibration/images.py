"""Images as the inputs of a model, through the checkpoint's own preprocessing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from calibration.inputs import InputSpec, common_shape, fitted
from calibration.labels import row_labels
from calibration.rows import Rows
from calibration.samples import Samples

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PREPROCESSOR_FILE", "image_samples", "image_size", "load_image"]

PREPROCESSOR_FILE = "preprocessor_config.json"

# Pillow converts 16-bit integers and floats by clipping at 255, which turns most of them white, and CIE L*a*b* not at
# all or by rules of its own.
_CONVERTIBLE = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def load_image(value: Any, channels: int, where: str) -> Image:
    """An image in `channels` channels of 8 bits (1: grey, 3: RGB, 4: RGBA), turned as its EXIF orientation says.

    `value` is a `Path`, the bytes of a file, a `PIL.Image.Image`, or `{"bytes": …}` as Hugging Face keeps images in
    tables. Colours become grey by their luma (ITU-R 601-2); opaque alpha is left out.

    Raises `DataError` naming the row for what cannot be read, and what cannot be converted without a guess: pixels of
    more than 8 bits, and transparent ones for a model without an alpha channel. A path in a table is refused, too: the
    file would be no part of the data set's digest.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        raise DataError(
            f"{where}: 'image' names a file ({value}), which is no part of this data set: give a folder of images with "
            "a labels.csv, or a table that holds the bytes of the files"
        )
    try:
        if isinstance(value, Path):
            image: Image.Image = Image.open(value)
        elif isinstance(value, bytes):
            image = Image.open(io.BytesIO(value))
        elif isinstance(value, Image.Image):
            image = value
        else:
            raise DataError(f"{where}: 'image' is a {type(value).__name__}, not an image, its bytes or its path")
        image.load()
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: the image cannot be read: {error}") from error
    mode = _MODES[channels]
    if image.mode not in _CONVERTIBLE:
        raise DataError(
            f"{where}: an image of mode {image.mode!r} cannot be converted to {mode} without knowing its range: save "
            "it as RGB or grey with 8 bits a channel, or give the model's inputs as arrays in an .npz"
        )
    if mode != "RGBA" and _is_transparent(image):
        raise DataError(
            f"{where}: the image (mode {image.mode!r}) is transparent in places, and the model takes {mode}: what lies "
            "behind it is not known, so put it on the background that the model was trained with"
        )
    return image if image.mode == mode else image.convert(mode)


def _is_transparent(image: Image) -> bool:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return False
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return bool((alpha < 255).any())


def image_samples(rows: Rows, assets: Path, specs: Sequence[InputSpec], labels: Sequence[str] = ()) -> Samples:
    """Images (`image`) with their `label`, if there is one, as [channels, height, width] of the input's dtype.

    With a `preprocessor_config.json` among the `assets`, the checkpoint's own processor of transformers makes the
    arrays, in its Pillow form (torchvision is not needed). Without one, an image is resized to the input's height and
    width (bilinear) and divided by 255, or left as it is for an input of integers; an input whose last axis counts the
    channels gets [height, width, channels].

    Raises `DataError` for an image that cannot be read or converted (see `load_image`), a model that takes anything
    else than images, and results that do not fit the input.
    """
    if len(specs) != 1 or len(specs[0].shape) != 4:
        shown = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)
        raise DataError(f"images make one input of 4 axes, the model takes {shown}: give its inputs in an .npz")
    spec = specs[0]
    channels = _channels(spec)
    prepare = _processor(assets) if (assets / PREPROCESSOR_FILE).is_file() else _plain(spec)
    images = rows.column("image")
    places = [_where(rows, index, image) for index, image in enumerate(images)]
    arrays = [
        fitted(_prepared(prepare, load_image(image, channels, where), where), spec, where)
        for image, where in zip(images, places, strict=True)
    ]
    common_shape(arrays, spec, places, f"resize the images to one size, or put a {PREPROCESSOR_FILE} beside the model")
    found = row_labels(rows, labels)
    return Samples({spec.name: arrays}, {}, None if found is None else {"kind": "label", "label": found})


def _where(rows: Rows, index: int, image: Any) -> str:
    where = rows.where(index)
    return f"{where} ({image})" if isinstance(image, Path) else where


def _prepared(prepare: Callable[[Image], NDArray[Any]], image: Image, where: str) -> NDArray[Any]:
    try:
        return prepare(image)
    except ValueError as error:
        raise DataError(f"{where}: the checkpoint's preprocessing refuses the image: {error}") from error


def _channels_last(spec: InputSpec) -> bool:
    return spec.shape[3] in _MODES and spec.shape[1] not in _MODES


def _channels(spec: InputSpec) -> int:
    channels = spec.shape[3] if _channels_last(spec) else spec.shape[1]
    if isinstance(channels, str):
        return 3
    if channels not in _MODES:
        raise DataError(
            f"input {spec.name!r} {list(spec.shape)} has {channels} channels; images have 1, 3 or 4: give an .npz"
        )
    return channels


def _processor(assets: Path) -> Callable[[Image], NDArray[Any]]:
    # The public name of this class asks for torchvision even where the Pillow form of a processor is wanted.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            assets, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"{assets / PREPROCESSOR_FILE} cannot be used: {error}. Give the model's inputs as arrays in an .npz"
        ) from error
    return lambda image: np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0])


def _plain(spec: InputSpec) -> Callable[[Image], NDArray[Any]]:
    from PIL import Image

    last = _channels_last(spec)
    height, width = (spec.shape[1:3]) if last else (spec.shape[2:4])

    def prepare(image: Image.Image) -> NDArray[Any]:
        size = (width if isinstance(width, int) else image.width, height if isinstance(height, int) else image.height)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if spec.floating:
            pixels = pixels.astype(np.float32) / np.float32(255)
        return pixels if last else pixels.transpose(2, 0, 1)

    return prepare


def image_size(assets: Path) -> tuple[int, int] | None:
    """Height and width that a checkpoint's preprocessing gives, from its files; none if they do not say."""
    for name in (PREPROCESSOR_FILE, "config.json"):
        if not (assets / name).is_file():
            continue
        try:
            settings = json.loads((assets / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{assets / name} is not JSON: {error}") from error
        cropped = settings.get("crop_size") if settings.get("do_center_crop", True) else None
        for size in (cropped, settings.get("size"), settings.get("image_size")):
            if isinstance(size, int):
                return size, size
            if isinstance(size, Mapping) and "height" in size and "width" in size:
                return int(size["height"]), int(size["width"])
            if isinstance(size, Mapping) and "shortest_edge" in size:
                return int(size["shortest_edge"]), int(size["shortest_edge"])
    return None
