"""Evidence about images: bill of materials, provenance and signature, attached as what refers to an image."""

from __future__ import annotations

from stages.image.evidence.about import About
from stages.image.evidence.attach import attach, attached
from stages.image.evidence.provenance import PROVENANCE, provenance, subjects
from stages.image.evidence.sbom import SBOM, sbom
from stages.image.evidence.signature import SIGNATURE, holds, sign

__all__ = [
    "PROVENANCE",
    "SBOM",
    "SIGNATURE",
    "About",
    "attach",
    "attached",
    "holds",
    "provenance",
    "sbom",
    "sign",
    "subjects",
]
