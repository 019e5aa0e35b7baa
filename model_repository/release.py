"""What is asked of a tree before it is published, and the provenance written beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repository.config import MODEL_FILES, label_files, read, validate
from model_repository.errors import RepositoryError
from model_repository.layout import CONFIG

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

__all__ = ["provenance_json", "servable"]

_OURS = ("release", "published_at")


def servable(model: str, tree: Path) -> ModelConfig:
    """The configuration of a tree. Raises `RepositoryError` if Triton could not serve the tree as `model`."""
    config = read(tree / CONFIG)
    try:
        validate(config)
    except RepositoryError as error:
        raise RepositoryError(f"{tree}: {error}") from error
    if config.name not in ("", model):
        raise RepositoryError(f"{tree / CONFIG} is for the model {config.name!r}; it cannot be published as {model!r}")
    plans = config.cc_model_filenames.values()
    for name in (config.default_model_filename or MODEL_FILES.get(config.backend, ""), *plans, *label_files(config)):
        if name and not (tree / name).exists():
            raise RepositoryError(f"{tree} has no {name}, which its {CONFIG} needs")
    for warmup in config.model_warmup:
        if any(given.WhichOneof("input_data_type") == "input_data_file" for given in warmup.inputs.values()):
            raise RepositoryError(
                f"{tree / CONFIG}: model_warmup[{warmup.name!r}] reads a file outside the version's directory, which "
                "could not be brought back with it; use zero_data"
            )
    return config


def provenance_json(given: Mapping[str, Any], **ours: Any) -> bytes:
    """The bytes of `provenance.json`. Raises `RepositoryError` if `given` is no JSON or claims what is not its own."""
    if claimed := [name for name in _OURS if name in given]:
        raise RepositoryError(f"the repository itself writes {' and '.join(claimed)} into the provenance; leave it out")
    try:
        return (json.dumps({**given, **ours}, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise RepositoryError(f"the provenance cannot be written as JSON: {error}") from error
