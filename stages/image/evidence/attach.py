"""Evidence as manifests that refer to an image (OCI Image Specification 1.1, "Guidelines for artifact usage")."""

from __future__ import annotations

from stages.image.documents import EMPTY, EMPTY_CONTENT, Descriptor, digest_of, manifest, read_json
from stages.image.place import Place

__all__ = ["attach", "attached"]


def attach(place: Place, subject: Descriptor, media_type: str, content: bytes) -> Descriptor:
    """Store `content` beside an image, and a manifest of type `media_type` that refers to the image."""
    empty = Descriptor(EMPTY, digest_of(EMPTY_CONTENT), len(EMPTY_CONTENT))
    blob = Descriptor(media_type, digest_of(content), len(content))
    place.put(empty, EMPTY_CONTENT)
    place.put(blob, content)
    about, document = manifest(empty, [blob], {}, artifact_type=media_type, subject=subject)
    listed = Descriptor(about.media_type, about.digest, about.size, artifact_type=media_type)
    place.refer(listed, document, subject)
    return listed


def attached(place: Place, subject: Descriptor, media_types: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """What is attached to an image, of these types: type and content, each held against its digest."""
    found = []
    for item in place.referrers(subject):
        if item.artifact_type not in media_types:
            continue
        document = read_json(place.fetch_manifest(item), f"the referrer {item.digest}")
        about = document.get("subject") or {}
        if about.get("digest") != subject.digest:
            continue  # listed, but about something else
        for layer in document.get("layers") or []:
            found.append((str(item.artifact_type), place.read(Descriptor.read(layer, f"the referrer {item.digest}"))))
    return found
