"""A bill of materials: the model, the data that judged it, the software that made it, what the image stands on.

Format: CycloneDX 1.6, JSON. The same image gives the same bytes.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

from stages.artifact import canonical_json
from stages.errors import RequirementError
from stages.image.evidence.about import About, section

__all__ = ["SBOM", "sbom"]

SBOM = "application/vnd.cyclonedx+json"
_NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")  # RFC 4122's for names that are OIDs


def sbom(about: About) -> bytes:
    """The bill of materials of an image. Raises `RequirementError` if cyclonedx-python-lib is not installed."""
    try:
        from cyclonedx.model import HashAlgorithm, HashType, Property
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ImportError as error:
        raise RequirementError(
            "cyclonedx-python-lib is not installed: `pip install 'optimize-pipeline[images]'`, or make the image "
            "without evidence"
        ) from error

    def hashed(digest: object) -> list[HashType]:
        text = str(digest).removeprefix("sha256:")
        return [HashType(alg=HashAlgorithm.SHA_256, content=text)] if len(text) == 64 else []

    release, provenance = about.release, about.release.provenance
    variant = section(provenance, "variant")
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=release.model,
        version=str(release.version),
        bom_ref="model",
        hashes=hashed(release.digest),
        properties=[Property(name="optimize:variant", value=str(variant["name"]))] if "name" in variant else [],
        components=[
            Component(type=ComponentType.FILE, name=name, bom_ref=f"file:{name}", hashes=hashed(digest))
            for name, digest in release.files.items()
        ],
    )
    components = [model]
    for item in provenance.get("data") or []:
        components.append(
            Component(
                type=ComponentType.DATA,
                name=str(item.get("name")),
                bom_ref=f"data:{item.get('role')}",
                description=str(item.get("role")),
                hashes=hashed(item.get("digest")),
            )
        )
    for name, version in section(provenance, "libraries").items():
        purl = PackageURL("pypi", name=name, version=version)
        components.append(
            Component(type=ComponentType.LIBRARY, name=name, version=version, purl=purl, bom_ref=f"library:{name}")
        )
    if about.base_name:
        components.append(
            Component(
                type=ComponentType.CONTAINER, name=about.base_name, bom_ref="base", hashes=hashed(about.base_digest)
            )
        )
    subject = Component(
        type=ComponentType.CONTAINER,
        name=f"{release.model}-{about.kind}",
        version=str(release.version),
        bom_ref="image",
        hashes=hashed(about.image.digest),
    )
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, about.image.digest),
        metadata=BomMetaData(timestamp=datetime.fromtimestamp(about.created_s, UTC), component=subject),
        components=components,
    )
    bom.register_dependency(subject, components)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library lists every component there once more, most of them with nothing said of it.
    document["dependencies"] = [item for item in document["dependencies"] if item.get("dependsOn")]
    return canonical_json(document).encode()
