"""Holds an image against its digest, its signature and its provenance, and refuses it if any of them does not fit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import InputError, StageError
from stages.image.documents import INDEX_TYPES, MANIFEST_TYPES, Descriptor, read_json
from stages.image.evidence import PROVENANCE, SBOM, SIGNATURE, attached, holds, subjects
from stages.image.place import Place, open_place
from stages.image.reference import Reference
from stages.image.registry import Access
from stages.progress import SILENT, Progress

__all__ = ["Verified", "verify_image"]


@dataclass(frozen=True)
class Verified:
    """An image that is what its key's owner signed. `provenance` is the predicate, `size_bytes` that of all layers."""

    reference: str
    digest: str
    size_bytes: int
    layers: int
    provenance: dict[str, Any]
    sbom: bool

    def json(self) -> dict[str, Any]:
        """As one JSON object."""
        return {**vars(self)}


def verify_image(
    reference: Reference, key: Path, access: Access | None = None, progress: Progress = SILENT
) -> Verified:
    """Verify an image with a public key (PEM).

    Every blob is read and hashed; at least one signature must be right for the key, and cover this manifest and a
    provenance whose subject is its digest. Memory does not grow with the image. Raises `StageError` saying what does
    not fit, and `InputError` if there is no such image or key.
    """
    if not key.is_file():
        raise InputError(f"there is no key {key}")
    with open_place(reference, access or Access()) as place:
        image, content = place.resolve(reference.digest or reference.tag)
        if image.media_type in INDEX_TYPES:
            raise InputError(f"{reference} is an index of several images; name one of them by digest")
        if image.media_type not in MANIFEST_TYPES:
            raise InputError(f"{reference} is no image: its type is {image.media_type!r}")
        signed = _signed(place, reference, image, content, key)
        statement = _statement(signed, image)
        document = read_json(content, str(reference))
        layers = [Descriptor.read(item, str(reference)) for item in document.get("layers") or []]
        config = Descriptor.read(document.get("config"), str(reference))
        for done, blob in enumerate((config, *layers)):
            progress.update(f"reading {blob.digest[:19]}", done, len(layers) + 1)
            for _ in place.stream(blob):
                pass
    size = sum(layer.size for layer in layers)
    return Verified(str(reference.at(image.digest)), image.digest, size, len(layers), statement, "sbom.json" in signed)


def _signed(place: Place, reference: Reference, image: Descriptor, content: bytes, key: Path) -> dict[str, bytes]:
    """The files of the first signature that is right for the key and covers this manifest."""
    evidence = attached(place, image, (SBOM, PROVENANCE, SIGNATURE))
    known = {hashlib.sha256(one).hexdigest(): one for one in (content, *(blob for _, blob in evidence))}
    bundles = [blob for kind, blob in evidence if kind == SIGNATURE]
    if not bundles:
        raise StageError(f"{reference} is not signed: nothing of the type {SIGNATURE} refers to {image.digest}")
    problems = []
    for bundle in bundles:
        try:
            files = holds(bundle, known, key)
        except StageError as error:
            problems.append(str(error))
            continue
        if files.get("manifest.json") == content:
            return files
        problems.append("it is about another image")
    raise StageError(f"{reference} is refused: no signature is right for {key} ({'; '.join(problems)})")


def _statement(signed: dict[str, bytes], image: Descriptor) -> dict[str, Any]:
    if "provenance.json" not in signed:
        raise StageError(f"{image.digest} is refused: its signature covers no provenance")
    about = subjects(signed["provenance.json"])
    if about != {image.digest}:
        raise StageError(f"{image.digest} is refused: its provenance is about {', '.join(sorted(about)) or 'nothing'}")
    predicate: dict[str, Any] = read_json(signed["provenance.json"], "the provenance")["predicate"]
    return predicate
