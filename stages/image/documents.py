"""The small JSON documents of an image: descriptors, manifests, indexes and configurations.

Formats: OCI Image Format Specification 1.1 (descriptor, manifest, image-index, config). Every document is canonical
JSON, so that the same image has the same digest wherever and whenever it is built.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from stages.artifact import canonical_json
from stages.errors import StageError

__all__ = [
    "CONFIG", "DIGEST", "EMPTY", "EMPTY_CONTENT", "INDEX", "INDEX_TYPES", "LAYER_TAR", "LAYER_ZSTD", "MANIFEST",
    "MANIFEST_TYPES", "SMALL_BYTES", "Descriptor", "Layer", "described", "digest_of", "ensure_small", "index",
    "manifest", "read_json", "timestamp",
]  # fmt: skip

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_CONTENT = b"{}"

MANIFEST_TYPES = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
INDEX_TYPES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")

SMALL_BYTES = 32 * 1024 * 1024
"""What is read into memory at once: configurations and evidence, which are a thousand times smaller."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Descriptor:
    """What a document says of a blob: its type, its digest (`sha256:<hex>`) and its size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str | None = None
    platform: Mapping[str, str] | None = None

    def json(self) -> dict[str, Any]:
        """The descriptor as it stands in a document."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        if self.platform:
            found["platform"] = dict(self.platform)
        return found

    @classmethod
    def read(cls, given: Any, place: str) -> Descriptor:
        """Read one from a document that was found at `place`. Raises `StageError` if it is none."""
        try:
            found = cls(
                given["mediaType"],
                given["digest"],
                given["size"],
                dict(given.get("annotations") or {}),
                given.get("artifactType"),
                given.get("platform"),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StageError(f"{place} holds a damaged descriptor: {given!r}") from error
        right = isinstance(found.media_type, str) and isinstance(found.digest, str) and type(found.size) is int
        if not right or not DIGEST.fullmatch(found.digest) or found.size < 0:
            raise StageError(f"{place} holds a descriptor that is not of a SHA-256 blob: {given!r}")
        return found

    def plain(self) -> Descriptor:
        """Type, digest and size alone."""
        return Descriptor(self.media_type, self.digest, self.size)

    def with_annotations(self, annotations: Mapping[str, str]) -> Descriptor:
        """The same with these annotations instead of its own."""
        return replace(self, annotations=dict(annotations))


@dataclass(frozen=True)
class Layer:
    """A layer: the blob as it is stored, and the digest of its uncompressed tar."""

    descriptor: Descriptor
    diff_id: str


def ensure_small(descriptor: Descriptor) -> None:
    """Raise `StageError` for a blob that is too large to be a document."""
    if descriptor.size > SMALL_BYTES:
        raise StageError(f"{descriptor.digest} has {descriptor.size} bytes, which is no document; it was not read")


def digest_of(content: bytes) -> str:
    """`sha256:<hex>` of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def described(document: Mapping[str, Any], media_type: str) -> tuple[Descriptor, bytes]:
    """The bytes of a document and their descriptor."""
    content = canonical_json(document).encode()
    return Descriptor(media_type, digest_of(content), len(content)), content


def manifest(
    config: Descriptor,
    layers: Sequence[Descriptor],
    annotations: Mapping[str, str],
    *,
    artifact_type: str | None = None,
    subject: Descriptor | None = None,
) -> tuple[Descriptor, bytes]:
    """An image manifest; with `artifact_type` and `subject` one of something that refers to an image."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.json(),
        "layers": [layer.json() for layer in layers],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    if artifact_type:
        document["artifactType"] = artifact_type
    if subject:
        document["subject"] = subject.plain().json()
    return described(document, MANIFEST)


def index(manifests: Sequence[Descriptor]) -> tuple[Descriptor, bytes]:
    """An image index."""
    return described({"schemaVersion": 2, "mediaType": INDEX, "manifests": [item.json() for item in manifests]}, INDEX)


def read_json(content: bytes, place: str) -> dict[str, Any]:
    """A document's content. Raises `StageError` naming `place` if it is no JSON object."""
    try:
        found = json.loads(content)
    except ValueError as error:
        raise StageError(f"{place} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise StageError(f"{place} is not a JSON object")
    return found


def timestamp(epoch_s: int) -> str:
    """Seconds since 1970 as RFC 3339, in UTC."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
