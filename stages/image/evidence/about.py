"""What evidence is about: one image that was made from one release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.image.contents import Release
from stages.image.documents import Descriptor

__all__ = ["About", "section"]


@dataclass(frozen=True)
class About:
    """An image with the release and the base that it was made from. `created_s`: seconds since 1970."""

    image: Descriptor
    kind: str
    release: Release
    platform: str
    created_s: int
    base_name: str | None
    base_digest: str | None

    @property
    def hex(self) -> str:
        """The image's SHA-256, in hexadecimal."""
        return self.image.digest.removeprefix("sha256:")


def section(provenance: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a release's provenance. Releases that others published may lack it."""
    found = provenance.get(name)
    return found if isinstance(found, Mapping) else {}
