"""A Hugging Face directory (also one of sentence-transformers), and how one comes from the hub."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from stages.errors import InputError, RequirementError
from stages.model import Task
from stages.source.pickles import refuse_pickle
from stages.source.task import architecture_of, infer_task

__all__ = ["ASSET_NAMES", "check_safetensors", "describe", "download", "read_json"]

ASSET_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "tiktoken.model",
    "tekken.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""Tokenizer, preprocessor and configuration files: what travels with a model beside its weights."""

_CHAT_TEMPLATES = ("chat_template*", "additional_chat_templates/*.jinja")
"""Templates of chats that have other names: of older releases (`chat_template.json`), and all that there are beside the
usual one."""


def describe(directory: Path, task: Task | None, allow_pickle: bool) -> tuple[list[str], dict[str, Any]]:
    """The names of the files that matter, relative to `directory`, and the metadata of the source artifact.

    Raises `InputError` naming the file that is missing, damaged, or a pickle that was not allowed.
    """
    modules = read_json(directory / "modules.json") if (directory / "modules.json").is_file() else []
    folders = [module["path"] for module in modules]
    for folder in folders:
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            raise InputError(f"{directory / 'modules.json'}: the path {folder!r} leaves the model's folder")
    transformer = directory / next((module["path"] for module in modules if _is(module, "Transformer")), "")
    if not (transformer / "config.json").is_file():
        raise InputError(f"{transformer} is not a Hugging Face model: it has no config.json")
    config = read_json(transformer / "config.json")

    names = {name for name in ASSET_NAMES if (directory / name).is_file()}
    names |= {
        file.relative_to(directory).as_posix()
        for pattern in _CHAT_TEMPLATES
        for file in directory.glob(pattern)
        if file.is_file()
    }
    names |= _adapters(directory)
    weights: list[str] = []
    for folder in dict.fromkeys(["", *folders]):
        part = directory / folder
        prefix = f"{PurePosixPath(folder).as_posix()}/" if folder else ""
        names |= {prefix + name for name in ASSET_NAMES if (part / name).is_file()}
        if part == transformer:
            found = _weights(part, allow_pickle)
            if not found:
                raise InputError(f"{part} has no weights: expected model.safetensors, or its index with its shards")
            weights += [prefix + name for name in found]
        elif folder and part.is_dir():
            weights += [prefix + name for name in _weights(part, allow_pickle)]
    if config.get("auto_map"):
        names |= {file.relative_to(directory).as_posix() for file in transformer.glob("*.py")}
    for name in weights:
        if name.endswith(".safetensors"):
            check_safetensors(directory / name)

    pooled = any(_is(module, "Pooling") for module in modules)
    metadata: dict[str, Any] = {
        "type": "huggingface",
        "task": task or infer_task(config, pooled=pooled, vision=_vision(transformer, config)),
        "architecture": architecture_of(config),
        "files": sorted({*names, *weights}),
    }
    return metadata["files"], metadata


def download(repository: str, revision: str | None, allow_pickle: bool, trust_remote_code: bool) -> Path:
    """The files of a hub repository, in the hub's own cache on this machine.

    Raises `InputError` if there is no such repository, `RequirementError` if the hub cannot be reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise RequirementError("huggingface_hub is not installed: `pip install huggingface_hub`") from error
    wanted = [*ASSET_NAMES, *_CHAT_TEMPLATES, "*/config.json", "*.safetensors", "*.safetensors.index.json"]
    wanted += ["*.py"] if trust_remote_code else []
    wanted += ["pytorch_model*.bin", "*/pytorch_model.bin", "pytorch_model.bin.index.json"] if allow_pickle else []
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=wanted, ignore_patterns=["onnx/*", "openvino/*"]
            )
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"{repository!r} is neither a file or folder here nor a model on the Hugging Face hub"
            + (f" at revision {revision!r}" if revision else "")
            + f" ({_first_line(error)})"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise RequirementError(
            f"{repository!r} is not a file or folder here, and the Hugging Face hub cannot be reached "
            f"({_first_line(error)}). Download the model where there is a network (`hf download {repository} "
            "--local-dir DIR`) and give that directory; unset HF_HUB_OFFLINE if it is set by mistake"
        ) from error


def check_safetensors(path: Path) -> None:
    """Raises `InputError` if the file is cut short or its header is not that of a safetensors file."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = path.stat().st_size
            if length > size - 8:
                raise ValueError("the file ends inside its header")
            header = json.loads(stream.read(length))
        ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
        if size != expected:
            raise ValueError(f"it has {size} bytes where its header says {expected}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}. Fetch it again") from error


def read_json(path: Path) -> Any:
    """The document in a JSON file. Raises `InputError` naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _weights(directory: Path, allow_pickle: bool) -> list[str]:
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        found = [name for name in (single, index) if (directory / name).is_file()]
        if not found:
            continue
        if single.endswith(".bin") and not allow_pickle:
            raise refuse_pickle(
                str(directory / found[0]),
                "save the model again with `save_pretrained`, which writes safetensors",
            )
        return [single] if found[0] == single else [index, *_shards(directory, index)]
    return []


def _shards(directory: Path, index: str) -> list[str]:
    shards = sorted(set(read_json(directory / index).get("weight_map", {}).values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise InputError(f"{directory / index}: the shard {shard!r} lies outside the model's folder")
        if not (directory / shard).is_file():
            raise InputError(f"{directory / shard} is missing: {index} names it")
    return shards


def _adapters(directory: Path) -> set[str]:
    """The LoRA adapters that lie in the model's folder and are named in its `multi_lora.json`, and that file."""
    if not (directory / "multi_lora.json").is_file():
        return set()
    named = read_json(directory / "multi_lora.json")
    folders = [PurePosixPath(str(folder)) for folder in (named.values() if isinstance(named, dict) else ())]
    inside = [directory / folder for folder in folders if not folder.is_absolute() and ".." not in folder.parts]
    files = [file for folder in inside for file in folder.rglob("*") if file.is_file()]
    return {"multi_lora.json", *(file.relative_to(directory).as_posix() for file in files)}


def _is(module: dict[str, Any], kind: str) -> bool:
    return bool(module["type"].rsplit(".", 1)[-1] == kind)


def _vision(directory: Path, config: dict[str, Any]) -> bool:
    if "vocab_size" in config:
        return False
    return "num_channels" in config or (directory / "preprocessor_config.json").is_file()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
