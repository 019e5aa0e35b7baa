"""The configuration of a checkpoint, as the installed transformers reads it; what it would misread is refused.

transformers passes over what it does not know. A setting that a newer release keeps under another name then silently
falls to its default: the model still answers, only worse, and so does everything that is made from it and compared
with it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.errors import InputError
from stages.language.runtime.silence import silence
from stages.source.huggingface import read_json
from stages.source.task import architecture_of

__all__ = ["load_configuration"]

_ROPE = re.compile(r"(^|_)(rope|rotary)(_|$)")
_ELSEWHERE = frozenset({"model_type", "auto_map", "torch_dtype", "quantization_config"})
"""Keys of `config.json` that are no fields of a configuration and are read all the same."""


def load_configuration(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of the checkpoint in `folder`, as an object of transformers (`PretrainedConfig`).

    Raises `InputError` if it is missing or damaged, of a model that transformers does not know, takes code that was not
    trusted, is quantised already, or holds settings that this transformers does not read.
    """
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise InputError(f"{folder / 'config.json'} does not say which model it is of: model_type is missing")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "a method that it does not name")
        raise InputError(f"{folder} is quantised already (by {method}): start from the original checkpoint")

    from stages.language.runtime.preload import transformers

    own_code = bool(raw.get("auto_map")) and trust_remote_code
    if not own_code:
        _refuse_unknown(raw, folder)
    try:
        with silence():
            config = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InputError(
            f"{folder / 'config.json'} cannot be read by transformers {transformers.__version__}: {_first_line(error)}"
        ) from error
    if not own_code:  # what classes of their own read, only they know
        with silence():
            _refuse_unread(raw, config, folder)
    return config


def _refuse_unknown(raw: Mapping[str, Any], folder: Path) -> None:
    """Raises `InputError` for a model that transformers would not load, or would load as another class."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from stages.language.runtime.preload import transformers

    model_type, architecture = raw["model_type"], architecture_of(raw)
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    classes = (known,) if isinstance(known, str) else tuple(known or ())
    if classes and architecture in (None, *classes):
        return
    version = f"transformers {transformers.__version__}"
    if raw.get("auto_map"):
        raise InputError(
            f"{folder} brings code of its own, which is not run unless you trust it: read its *.py files, then give "
            f"--trust-remote-code ({version} has no {architecture or model_type} itself)"
        )
    saved = raw.get("transformers_version")
    remedy = f"it was saved by {saved}: install that version or a newer one" if _newer(raw) else "is it misspelt?"
    if model_type not in CONFIG_MAPPING:
        raise InputError(f"{folder}: model_type {model_type!r} is not known to {version}; {remedy}")
    if not classes:
        raise InputError(f"{folder}: {version} has no causal language model of the type {model_type!r}; {remedy}")
    raise InputError(
        f"{folder}: {architecture} is not known to {version}, which has {' and '.join(classes)} for the type "
        f"{model_type!r}; {remedy}"
    )


def _refuse_unread(raw: Mapping[str, Any], config: Any, folder: Path) -> None:
    """Raises `InputError` for settings that have no place in the configuration that was read.

    Of positions (RoPE) in every case. Anything else only if a newer transformers wrote it: older files hold many a key
    that means nothing. A setting that is off (null, false, 0, nothing) is off here, too.
    """
    from stages.language.runtime.preload import transformers

    version, saved = transformers.__version__, raw.get("transformers_version")
    fields = _fields(config)
    rope = _rope_values(config)
    unread = [
        (path, value)
        for path, value in _rope_settings(raw)
        if (path[0] not in fields or path[0] == "rope_parameters")
        and not any(value == known for known in rope)
        and not _follows(raw, config, path[0])
    ]
    newer = f"It was saved by transformers {saved}: install that version or a newer one" if _newer(raw) else ""
    if unread:
        path, value = unread[0]
        became = getattr(config, "rope_parameters", None)
        raise InputError(
            f"{folder / 'config.json'} sets {'.'.join(path)} to {value}, which transformers {version} does not read: "
            f"its positions would be computed with {became or 'its defaults'}, and its answers be wrong. "
            + (newer or "Write the setting as this version's classes do (`rope_parameters`)")
        )
    if not newer:
        return
    ignored = _ELSEWHERE | transformers.GenerationConfig().to_dict().keys()
    unknown = sorted(
        key
        for key, value in raw.items()
        if value
        and key not in fields | ignored
        and not key.startswith("_")
        and not _ROPE.search(key)
        and not _follows(raw, config, key)
    )
    if unknown:
        raise InputError(
            f"{folder / 'config.json'} holds {', '.join(unknown)}, which transformers {version} does not read, so the "
            f"model might be computed otherwise than it was meant. {newer}, or remove what is of no meaning"
        )


def _fields(config: Any) -> set[str]:
    """The settings that the configuration's class declares, under all their names. Other keys of the file become
    attributes that nothing reads."""
    declared = {field.name for field in dataclasses.fields(config)}
    aliases = type(config).attribute_map
    return declared | set(aliases) | set(aliases.values())


def _follows(raw: Mapping[str, Any], config: Any, key: str) -> bool:
    """Whether the configuration's class comes to the same value of a key by itself, from the other settings."""
    without = type(config).from_dict({name: value for name, value in raw.items() if name != key})
    return bool(json.loads(without.to_json_string(use_diff=False)).get(key) == raw[key])


def _rope_settings(
    value: Any, path: tuple[str, ...] = (), within: bool = False
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Numbers, names and lists under keys about rotary positions, with where they stand."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _rope_settings(inner, (*path, key), within or bool(_ROPE.search(key)))
    elif within and value is not None and not isinstance(value, bool):
        yield path, value


def _rope_values(config: Any) -> list[Any]:
    """What the model computes its positions from. A base under another name than `rope_theta` is kept, not used."""
    known = "rope_parameters" in _fields(config) or hasattr(type(config), "rope_parameters")
    settings = getattr(config, "rope_parameters", None) if known else None
    found = _rope_settings(settings or {}, within=True)
    return [value for path, value in found if path[-1] == "rope_theta" or not re.search("theta|base", path[-1])]


def _newer(raw: Mapping[str, Any]) -> bool:
    """Whether the file says that a newer transformers than the installed one wrote it."""
    from stages.language.runtime.preload import transformers

    return _release(raw.get("transformers_version")) > _release(transformers.__version__)


def _release(version: object) -> tuple[int, ...]:
    """The numbers of a version's release: (5, 17, 0) of `5.17.0.dev0`; nothing of what is no version."""
    found = re.match(r"\d+(\.\d+)*", str(version))
    return tuple(map(int, found.group().split("."))) if found else ()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
