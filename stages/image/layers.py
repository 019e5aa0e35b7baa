"""Brings the layers of an image to where it goes: known there, mounted, made, or fetched, in this order."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.image.base import Base
from stages.image.contents import Part
from stages.image.documents import Layer
from stages.image.incoming import incoming
from stages.image.layer import build_layer
from stages.image.layer_cache import LayerCache
from stages.image.layout import Layout
from stages.image.place import Place
from stages.image.registry import RegistryRepository
from stages.progress import Progress

__all__ = ["Brought", "Carrier"]


@dataclass(frozen=True)
class Brought:
    """A layer that is in its place, and how it came there."""

    name: str
    layer: Layer
    how: Literal["there", "mounted", "made", "fetched"]


class Carrier:
    """Brings layers to one place. Blobs on their way to a registry lie in a folder below `scratch` for that time."""

    def __init__(
        self,
        place: Place,
        cache: LayerCache,
        scratch: Path | None,
        mtime_s: int,
        mount_from: Sequence[str],
        progress: Progress,
    ) -> None:
        self._place = place
        self._cache = cache
        self._scratch = scratch
        self._mtime_s = mtime_s
        self._mount_from = mount_from
        self._progress = progress

    def release(self, parts: Sequence[Part]) -> list[Brought]:
        """The layers of a release."""
        return [self._part(part) for part in parts]

    def base(self, base: Base) -> list[Brought]:
        """The layers of a base."""
        return [self._base_layer(base, number, layer) for number, layer in enumerate(base.layers, 1)]

    def _part(self, part: Part) -> Brought:
        known = self._cache.find(part.entries, part.compression, self._mtime_s)
        if known is not None:
            if self._place.has(known.descriptor):
                return Brought(part.name, known, "there")
            if self._mounted(known, self._mount_from):
                return Brought(part.name, known, "mounted")
        self._progress.update(f"packing {part.name}")
        if isinstance(self._place, Layout):
            made = build_layer(part.entries, self._place.blobs, compression=part.compression, mtime_s=self._mtime_s)
        else:
            with tempfile.TemporaryDirectory(prefix="optimize-image-", dir=self._scratch) as name:
                made = build_layer(part.entries, Path(name), compression=part.compression, mtime_s=self._mtime_s)
                self._progress.update(f"sending {part.name}")
                self._place.put(made.descriptor, Path(name) / made.descriptor.digest.removeprefix("sha256:"))
        self._cache.remember(part.entries, part.compression, self._mtime_s, made)
        return Brought(part.name, made, "made")

    def _base_layer(self, base: Base, number: int, layer: Layer) -> Brought:
        name, descriptor = f"base, layer {number}", layer.descriptor
        if self._place.has(descriptor):
            return Brought(name, layer, "there")
        if base.mountable and self._mounted(layer, [base.mountable[1]], base.mountable[0]):
            return Brought(name, layer, "mounted")
        self._progress.update(f"fetching layer {number} of {base.name}")
        assert base.place is not None
        if isinstance(base.place, Layout):
            for _ in base.place.stream(descriptor):  # what is handed on is what its digest says
                pass
            self._place.put(descriptor, base.place.blob(descriptor))
        elif isinstance(self._place, Layout):
            self._fetch(base, layer, self._place.blobs)
        else:
            with tempfile.TemporaryDirectory(prefix="optimize-image-", dir=self._scratch) as folder:
                self._place.put(descriptor, self._fetch(base, layer, Path(folder)))
        return Brought(name, layer, "fetched")

    def _mounted(self, layer: Layer, names: Sequence[str], host: str | None = None) -> bool:
        """Whether the registry could take a layer over from another of its repositories."""
        if not isinstance(self._place, RegistryRepository) or host not in (None, self._place.host):
            return False
        return any(self._place.mount(layer.descriptor, name) for name in names)

    def _fetch(self, base: Base, layer: Layer, folder: Path) -> Path:
        assert base.place is not None
        target = folder / layer.descriptor.digest.removeprefix("sha256:")
        with incoming(folder) as out:
            for piece in base.place.stream(layer.descriptor):
                out.write(piece)
            out.keep(target)
        return target
