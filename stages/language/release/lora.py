"""LoRA adapters that travel with a checkpoint: as files, untouched, and by name in `multi_lora.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from model_repository import RepositoryError
from model_repository.layout import tree_digest, tree_files
from stages.artifact import Artifact
from stages.errors import InputError

__all__ = ["MULTI_LORA", "Adapters", "LoraAdapter", "adapter_names", "gather_adapters"]

MULTI_LORA = "multi_lora.json"
"""Where Triton's vLLM backend looks for the adapters: a folder, by name."""
_ADAPTERS = "adapters"
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # MaxLoRARanks, vllm/config/lora.py


class LoraAdapter(BaseModel):
    """A folder with an adapter as PEFT saves it, and the name by which requests ask for it.

    `digest` is found where it is not given: another adapter in the same place makes another release.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    path: Path
    digest: str = Field(default_factory=lambda data: _digest_of(data.get("path")))


@dataclass(frozen=True)
class Adapters:
    """The adapters of a release.

    `files`: what lies where in it, each with the file that it is. `folders`: those that `multi_lora.json` names, as it
    names them; `table`: its text where there was none. `largest_rank`: of the adapters in the release, 0 if there are
    none.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    table: str | None = None
    largest_rank: int = 0

    def arguments(self) -> dict[str, Any]:
        """vLLM's engine arguments for them. Raises `InputError` if an adapter's rank is more than vLLM takes."""
        if not self.folders:
            return {}
        arguments: dict[str, Any] = {"enable_lora": True, "max_loras": len(self.folders)}
        if self.largest_rank:
            rank = next((rank for rank in _RANKS if rank >= self.largest_rank), None)
            if rank is None:
                raise InputError(f"an adapter has the rank {self.largest_rank}; vLLM takes at most {_RANKS[-1]}")
            arguments["max_lora_rank"] = rank
        return arguments


def adapter_names(artifact: Artifact) -> set[str]:
    """The files of a checkpoint that are of its adapters: `multi_lora.json`, and folders with an `adapter_config.json`.

    None without that table: such folders are then a part of the checkpoint like any other.
    """
    if MULTI_LORA not in artifact.files:
        return set()
    folders = {path.parent for path in map(PurePosixPath, artifact.files) if path.name == _CONFIG} - {PurePosixPath()}
    return {MULTI_LORA} | {name for name in artifact.files if folders.intersection(PurePosixPath(name).parents)}


def gather_adapters(origin: Artifact, wanted: tuple[LoraAdapter, ...]) -> Adapters:
    """The adapters of a checkpoint or source, where they lie there and untouched, or those that were asked for.

    Raises `InputError` if both are there, a folder is no adapter or holds its weights as a pickle only, or
    `multi_lora.json` is damaged or names a folder outside the release.
    """
    files = {name: origin.path / name for name in sorted(adapter_names(origin))}
    if not wanted:
        folders = _read_table(origin.path / MULTI_LORA, files) if files else {}
        return Adapters(files, folders, None, _largest_rank(files))
    if files:
        raise InputError(f"{origin.path} has a {MULTI_LORA} of its own; name all adapters there, or none")
    files, folders = {}, {}
    for adapter in wanted:
        if adapter.name in folders:
            raise InputError(f"two adapters are called {adapter.name}")
        if not (adapter.path / _CONFIG).is_file() or not (adapter.path / _WEIGHTS).is_file():
            raise InputError(f"{adapter.path} is no LoRA adapter: it lacks {_CONFIG} or {_WEIGHTS}")
        if _digest_of(adapter.path) != adapter.digest:
            raise InputError(f"the adapter in {adapter.path} has changed since it was named; start again")
        folders[adapter.name] = f"{_ADAPTERS}/{adapter.name}"
        files |= {f"{folders[adapter.name]}/{name}": adapter.path / name for name in tree_files(adapter.path)}
    return Adapters(files, folders, json.dumps(folders, indent=1, sort_keys=True) + "\n", _largest_rank(files))


def _read_table(file: Path, files: Mapping[str, Path]) -> dict[str, str]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error})") from error
    if not isinstance(table, dict) or not all(isinstance(place, str) for place in table.values()):
        raise InputError(f"{file} does not give a place for each name of an adapter")
    for name, place in table.items():
        path = PurePosixPath(place)
        if ".." in path.parts:
            raise InputError(f"{file}: {name} is at {place!r}, outside of the checkpoint's own folder")
        if not path.is_absolute() and (file.parent / place).is_dir() and f"{path}/{_CONFIG}" not in files:
            raise InputError(f"{file}: {name} is at {place!r}, which is no LoRA adapter: it has no {_CONFIG}")
    return table


def _largest_rank(files: Mapping[str, Path]) -> int:
    ranks = [0]
    for name, file in files.items():
        if PurePosixPath(name).name == _CONFIG:
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
                ranks += [int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())]
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{file} does not give the adapter's rank ({error!r})") from error
        elif PurePosixPath(name).name == "adapter_model.bin":
            raise InputError(f"{file} is a pickle, which can run any code; save the adapter as {_WEIGHTS}")
    return max(ranks)


def _digest_of(path: Path | None) -> str:
    if path is None:  # it was refused
        return ""
    try:
        return tree_digest(tree_files(path))
    except RepositoryError as error:
        raise InputError(f"{path} is no LoRA adapter: {error}") from error
