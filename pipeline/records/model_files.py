"""The files that a logged model holds: those of the release, or those of a variant as it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from model_repository import Repository
from model_repository.errors import RepositoryError
from model_repository.layout import CONFIG, PROVENANCE
from pipeline.figures import chosen_name
from pipeline.result import Release, RunResult
from stages.artifact import MANIFEST, Artifact, file_digest
from stages.errors import InputError

__all__ = ["Files", "Models", "model_files", "release_files"]

Models = Literal["published", "all", "none"]
"""Of which variants the files are kept in MLflow too."""

Files = Mapping[str, tuple[Path, str]]
"""Where a file lies, and its SHA-256, by its path in the logged model."""


def model_files(result: RunResult, models: Models, steps: Path) -> Mapping[str, Files]:
    """The files of the logged models by variant. `steps`: the store's finished steps.

    The published variant has those of its release; with `all` the others have those of their artifacts, as far as the
    store still has them.
    """
    found: dict[str, Files] = {}
    if models == "none":
        return found
    if result.release is not None:
        found[result.release.variant] = release_files(result.release)
    if models == "all":
        made = _artifacts(result, steps)
        for variant in result.variants:
            if variant.name != chosen_name(result) and variant.digest in made:
                artifact = made[variant.digest]
                named = {**artifact.files, MANIFEST: file_digest(artifact.path / MANIFEST)}
                found[variant.name] = {name: (artifact.path / name, digest) for name, digest in named.items()}
    return {variant: files for variant, files in found.items() if files}


def release_files(release: Release) -> Files:
    """A model repository with this one release in it, which Triton serves as it is: what its provenance names, the
    provenance, and the model's configuration. Empty where the repository no longer holds it.

    The digests are those of the provenance: the files were hashed when they were published.
    """
    repository = Repository(release.repository)
    try:
        found = [info for info in repository.versions(release.model) if info.version == release.version]
    except RepositoryError:  # the model was removed since it was published: there is nothing left to keep
        return {}
    if not found or found[0].digest != release.digest:
        return {}
    home = repository.directory(release.model, release.version)
    digests: dict[str, str] = dict(found[0].provenance["release"]["files"])
    digests[PROVENANCE] = file_digest(home / PROVENANCE)
    place = f"{release.model}/{release.version}"
    files = {f"{place}/{name}": (home / name, digest) for name, digest in sorted(digests.items())}
    return {f"{release.model}/{CONFIG}": (home / CONFIG, digests[CONFIG]), **files}


def _artifacts(result: RunResult, steps: Path) -> dict[str, Artifact]:
    artifacts = {}
    for stage in result.stages:
        try:
            artifact = Artifact.read(steps / stage.key / "artifact")
        except InputError:  # it was removed from the store
            continue
        artifacts[artifact.digest] = artifact
    return artifacts
