"""Where an image comes from: an in-toto statement about its digest, with SLSA's provenance as its content.

Formats: in-toto Attestation Framework, Statement v1; SLSA 1.0, build provenance. Paths of the machine that made the
release are left out; data and sources are named by their digests.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from stages.artifact import canonical_json
from stages.errors import StageError
from stages.image.documents import read_json
from stages.image.evidence.about import About, section

__all__ = ["PROVENANCE", "provenance", "subjects"]

PROVENANCE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://slsa.dev/provenance/v1"
_BUILD_TYPE = "urn:optimize-pipeline:image:1"
_BUILDER = "urn:optimize-pipeline"
_OURS = ("optimize-pipeline", "zstandard")


def provenance(about: About) -> bytes:
    """The statement about an image, tied to the MLflow run of its release."""
    release, recorded = about.release, about.release.provenance
    run = section(recorded, "mlflow")
    dependencies: list[dict[str, Any]] = [{"name": "release", "digest": {"sha256": release.digest}}]
    if about.base_digest:
        dependencies.append({"uri": about.base_name, "digest": _sha256(about.base_digest)})
    source = section(recorded, "source")
    if source.get("digest"):
        name = PurePath(str(source.get("reference", "source"))).name
        dependencies.append({"name": f"source {name}", "digest": _sha256(source["digest"])})
    for item in recorded.get("data") or []:
        dependencies.append({"name": f"{item.get('role')} {item.get('name')}", "digest": _sha256(item.get("digest"))})
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": f"{release.model}-{about.kind}", "digest": {"sha256": about.hex}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {
                    "model": release.model,
                    "version": release.version,
                    "image": about.kind,
                    "platform": about.platform,
                    "sourceDateEpoch": about.created_s,
                },
                "internalParameters": {
                    "job": recorded.get("job_id"),
                    "variant": section(recorded, "variant").get("name"),
                },
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": _BUILDER, "version": {name: _version(name) for name in _OURS}},
                "metadata": {"invocationId": run.get("run_id") or recorded.get("job_id") or release.digest},
                "byproducts": [
                    {
                        "name": "MLflow run",
                        "annotations": {
                            "experiment": run.get("experiment"),
                            "run_id": run.get("run_id"),
                            "tracking_uri": _public(run.get("tracking_uri")),
                        },
                    }
                ],
            },
        },
    }
    return canonical_json(statement).encode()


def subjects(content: bytes) -> set[str]:
    """The digests (`sha256:<hex>`) that a statement is about. Raises `StageError` if it is no provenance."""
    statement = read_json(content, "the provenance")
    if (statement.get("_type"), statement.get("predicateType")) != (_STATEMENT, _PREDICATE):
        raise StageError("the provenance is no in-toto statement with SLSA's provenance")
    try:
        return {f"sha256:{item['digest']['sha256']}" for item in statement["subject"]}
    except (KeyError, TypeError) as error:
        raise StageError(f"the provenance names no SHA-256 of what it is about ({error!r})") from error


def _sha256(digest: object) -> dict[str, str]:
    return {"sha256": str(digest).removeprefix("sha256:")}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _public(address: object) -> str | None:
    """The address of a tracking server, without a password. A database or a folder is nobody else's business."""
    parts = urlsplit(str(address))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
