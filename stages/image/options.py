"""What kind of images are made, on what, and for which platform."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from stages.image.base import BUSYBOX

__all__ = ["BUSYBOX_BASE", "SCRATCH", "TRITON", "ImageOptions", "Kind"]

Kind = Literal["model", "serving"]

SCRATCH = "scratch"
BUSYBOX_BASE = "busybox"
TRITON = "nvcr.io/nvidia/tritonserver:26.07-py3"
"""The base of a serving image unless another one is named. It is fetched when a serving image is made, never before."""


class ImageOptions(BaseModel):
    """Options of `build_images`.

    `kinds`: `model` holds the release below `/models`; `serving` holds a Triton server too.
    `platform`: of bases and images.
    `model_base`: `busybox`, `scratch`, or an image. `serving_base`: an image (`oci:DIR` or one in a registry).
    `source_date_epoch` (s): the time of everything in the images.
    `weights_from_bytes`: a file this large gets a layer of its own, uncompressed.
    `mount_from`: other repositories of the same registry that may have the release's layers.
    `evidence`: attach a bill of materials and a provenance. `modelpack`: make a CNCF ModelPack manifest too.
    `sign_key`: sign with this private key (PEM). `busybox`: the static program that the base `busybox` is made of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[Kind, ...] = Field(("model",), min_length=1)
    platform: str = "linux/amd64"
    model_base: str = BUSYBOX_BASE
    serving_base: str = TRITON
    source_date_epoch: NonNegativeInt = 0
    weights_from_bytes: PositiveInt = 1024 * 1024
    mount_from: tuple[str, ...] = ()
    evidence: bool = True
    modelpack: bool = False
    sign_key: Path | None = None
    busybox: Path = BUSYBOX
