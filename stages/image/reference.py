"""What an image is called: `oci:DIR[:name]` in a layout, `registry/name[:tag]` in a registry, each with `@sha256:…`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from stages.errors import InputError
from stages.image.documents import DIGEST

__all__ = ["LayoutReference", "Reference", "RegistryReference", "is_layout", "parse_reference"]

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_HOST = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")
_LAYOUT = "oci:"


@dataclass(frozen=True)
class LayoutReference:
    """An image in an OCI layout."""

    path: Path
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        return (
            f"{_LAYOUT}{self.path}" + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")
        )

    def at(self, digest: str) -> LayoutReference:
        """The image of this digest at the same place."""
        return replace(self, tag=None, digest=digest)

    def tagged(self, tag: str) -> LayoutReference:
        """The image of this name at the same place."""
        return replace(self, tag=tag, digest=None)


@dataclass(frozen=True)
class RegistryReference:
    """An image in a registry. `host` has the port, if there is one."""

    host: str
    name: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        place = f"{self.host}/{self.name}"
        return place + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def at(self, digest: str) -> RegistryReference:
        """The image of this digest at the same place."""
        return replace(self, tag=None, digest=digest)

    def tagged(self, tag: str) -> RegistryReference:
        """The image of this tag at the same place."""
        return replace(self, tag=tag, digest=None)


Reference = LayoutReference | RegistryReference


def is_layout(text: str) -> bool:
    """Whether a reference means an OCI layout."""
    return text.startswith(_LAYOUT)


def parse_reference(text: str) -> Reference:
    """Read a reference. Raises `InputError` if it is none."""
    rest, _, digest = text.partition("@")
    if "@" in text and not DIGEST.fullmatch(digest):
        raise InputError(f"{text!r}: what follows '@' is sha256: and 64 hexadecimal digits")
    if is_layout(text):
        return _layout(text, rest.removeprefix(_LAYOUT), digest or None)
    host, slash, rest = rest.partition("/")
    if not slash or not _HOST.fullmatch(host) or not ("." in host or ":" in host or host == "localhost"):
        raise InputError(
            f"{text!r} is no place for an image: write oci:DIR, or registry/name:tag with the registry's host "
            "(docker.io/library/busybox:1.37, localhost:5000/minilm:v1)"
        )
    name, _, tag = rest.partition(":")
    if not _NAME.fullmatch(name) or (":" in rest and not _TAG.fullmatch(tag)):
        raise InputError(
            f"{text!r}: a name has small letters, digits, '.', '_', '-' and '/', a tag up to 128 characters"
        )
    return RegistryReference(host, name, tag or None, digest or None)


def _layout(text: str, place: str, digest: str | None) -> LayoutReference:
    path, colon, tag = place.rpartition(":")
    if not colon or "/" in tag:
        path, tag = place, ""
    if not path or (tag and not _TAG.fullmatch(tag)):
        raise InputError(f"{text!r}: write oci:DIR or oci:DIR:name")
    return LayoutReference(Path(path), tag or None, digest)
