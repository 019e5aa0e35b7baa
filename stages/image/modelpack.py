"""A release as a CNCF ModelPack artifact, made of the layers that its images have.

Format: ModelPack specification (cncf/model-spec), manifest and config. It is for tools that fetch
models; it does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.image.contents import Part, Release
from stages.image.documents import LAYER_ZSTD, Descriptor, described, manifest, timestamp
from stages.image.evidence.about import section
from stages.image.layers import Brought
from stages.image.place import Place

__all__ = ["modelpack"]

_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG = "application/vnd.cncf.model.config.v1+json"
_WEIGHT = "application/vnd.cncf.model.weight.v1.tar"
_OTHER = "application/vnd.cncf.model.weight.config.v1.tar+zstd"
_FILE_PATH = "org.cncf.model.filepath"


def modelpack(
    place: Place, release: Release, brought: Sequence[Brought], content: Sequence[Part], created_s: int
) -> tuple[Descriptor, bytes]:
    """Store the configuration and return the manifest."""
    variant = section(release.provenance, "variant")
    about: dict[str, Any] = {"format": "triton"}
    if section(release.provenance, "measured").get("precision"):
        about["precision"] = release.provenance["measured"]["precision"]
    if variant.get("name") and variant["name"] != "fp32":
        about["quantization"] = variant["name"]
    config, written = described(
        {
            "descriptor": {"name": release.model, "version": str(release.version), "createdAt": timestamp(created_s)},
            "config": about,
            "modelfs": {"type": "layers", "diffIds": [one.layer.diff_id for one in brought]},
        },
        _CONFIG,
    )
    place.put(config, written)
    layers = [
        Descriptor(
            _OTHER if one.layer.descriptor.media_type == LAYER_ZSTD else _WEIGHT,
            one.layer.descriptor.digest,
            one.layer.descriptor.size,
            {_FILE_PATH: part.name},
        )
        for one, part in zip(brought, content, strict=True)
    ]
    return manifest(config, layers, {}, artifact_type=_ARTIFACT)
