"""Paths in what Triton's vLLM backend reads: relative in a tree, absolute in a release.

The backend hands `model.json` to vLLM as it is (`src/model.py` of triton-inference-server/vllm_backend), and vLLM takes
a relative path as relative to the directory that `tritonserver` was started in. Where a version lies is known only when
it is published; where servers see the repository, the tree says in its configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repository.errors import RepositoryError

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

__all__ = ["MOUNT", "located"]

MOUNT = "MODEL_REPOSITORY"
"""The parameter of a configuration that says where servers see the repository. The backend itself passes over it."""
_ENGINE = ("model", "tokenizer")
_FILES = ("model.json", "multi_lora.json")


def located(config: ModelConfig, tree: Path, model: str, version: int) -> dict[str, bytes]:
    """The files of `tree` in which the paths of what lies in it become absolute, by name, as a release has them.

    None without the parameter `MODEL_REPOSITORY`, or for another backend. Raises `RepositoryError` if one is damaged.
    """
    mount = config.parameters[MOUNT].string_value if MOUNT in config.parameters else ""
    if config.backend != "vllm" or not mount:
        return {}
    home = f"{mount.rstrip('/')}/{model}/{version}"
    files: dict[str, bytes] = {}
    for name in _FILES:
        if not (tree / name).is_file():
            continue
        try:
            given: dict[str, Any] = json.loads((tree / name).read_bytes())
            keys = [key for key in (_ENGINE if name == "model.json" else given) if key in given]
            inside = {key: given[key] for key in keys if _lies_in(tree, Path(given[key]))}
        except (ValueError, TypeError, AttributeError) as error:
            raise RepositoryError(f"{tree / name} is damaged ({error!r})") from error
        if inside:
            absolute = {key: f"{home}/{path}" for key, path in inside.items()}
            files[name] = (json.dumps({**given, **absolute}, indent=1) + "\n").encode()
    return files


def _lies_in(tree: Path, path: Path) -> bool:
    return not path.is_absolute() and ".." not in path.parts and (tree / path).is_dir()
