"""Images from a request as the command line has it: finds the release, the places and the base, and calls the stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from model_repository import ServerError
from stages.errors import InputError, RequirementError
from stages.image.build import Built, build_images
from stages.image.containerfile import containerfile as containerfile_text
from stages.image.contents import read_release
from stages.image.evidence.cosign import cosign_sign
from stages.image.options import BUSYBOX_BASE, TRITON, ImageOptions, Kind
from stages.image.reference import parse_reference
from stages.image.registry import Access

__all__ = ["LOCAL", "ImageRequest", "make_images"]

LOCAL = "local"
"""The base of a serving image that is made on this machine."""


@dataclass(frozen=True)
class ImageRequest:
    """What is asked for. `model` may have its version behind an `@`; `base` is `local`, an image, or None for NVIDIA's.

    `cache` is where known layers and the local base are kept, by default the user's cache directory.
    """

    repository: Path
    model: str
    to: str
    kinds: tuple[Kind, ...] = ("model",)
    base: str | None = None
    model_base: str = BUSYBOX_BASE
    platform: str = "linux/amd64"
    source_date_epoch: int = 0
    modelpack: bool = False
    mount_from: tuple[str, ...] = ()
    sign_key: Path | None = None
    cosign_key: str | None = None
    evidence: bool = True
    containerfile: Path | None = None
    cache: Path | None = None
    access: Access = field(default_factory=Access)


class _Notes:
    """Progress as lines."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
        self._note(note)


def make_images(request: ImageRequest, note: Callable[[str], None] = lambda text: None) -> list[Built]:
    """Make the images that are asked for. Raises what `build_images`, `read_release` and `local_base` raise."""
    model, at, version = request.model.partition("@")
    if at and not version.isdigit():
        raise InputError(f"{request.model!r}: what follows '@' is the number of a version")
    to = parse_reference(request.to)
    cache = _cache(request.cache)
    release = read_release(request.repository, model, int(version) if at else None)
    serving_base = request.base or TRITON
    if serving_base == LOCAL and "serving" in request.kinds:
        serving_base = _local(cache, note)
    options = ImageOptions(
        kinds=request.kinds,
        platform=request.platform,
        model_base=request.model_base,
        serving_base=serving_base,
        source_date_epoch=request.source_date_epoch,
        modelpack=request.modelpack,
        mount_from=request.mount_from,
        sign_key=request.sign_key,
        evidence=request.evidence,
    )
    built = build_images(
        release=release,
        to=to,
        options=options,
        access=request.access,
        layer_cache=cache / "layers",
        progress=_Notes(note),
    )
    if request.cosign_key:
        for one in built:
            cosign_sign(to.at(one.digest), request.cosign_key)
    if request.containerfile:
        kind = request.kinds[-1]
        base = serving_base if kind == "serving" else request.model_base
        text = containerfile_text(release, kind, base)
        request.containerfile.write_text(text, encoding="utf-8")
    return built


def _cache(cache: Path | None) -> Path:
    if cache is not None:
        return cache
    import platformdirs

    return platformdirs.user_cache_path("optimize") / "images"


def _local(cache: Path, note: Callable[[str], None]) -> str:
    from model_repository.environment import server_environment
    from stages.image.local_base import local_base

    try:
        environment = server_environment(progress=note)
    except ServerError as error:
        raise RequirementError(str(error)) from error
    return str(local_base(environment, cache, note))
