"""Holding what is emitted against its own rules before it is written, without a network or a cluster.

Compose files go by the Compose specification's schema, objects of Kubernetes by the API's own (`schemas/`, trimmed;
each says where it comes from). No schemas of custom resources are here: what is emitted of them is told as not checked.
Schemas know fields and types: whether a cluster has an ingress of that name they do not. HAProxy and Prometheus check
their own files, where the programs `haproxy` and `promtool` are installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from stages.errors import StageError

__all__ = ["check_compose", "check_haproxy", "check_objects", "check_rules"]

_BUILT_IN = ("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget")
_POD = "io.k8s.api.core.v1.PodTemplateSpec"
_ASIDE = "/usr/sbin:/sbin:/usr/local/sbin"
"""Where servers are installed that are not on everybody's path."""


def check_compose(name: str, document: Mapping[str, Any]) -> None:
    """Raises `StageError` if `document` is no Compose file; `name` is the file's."""
    _check(name, document, _validator("compose.json"))


def check_objects(name: str, objects: list[dict[str, Any]]) -> str | None:
    """Why some of `objects` were not checked; None if all were. Raises `StageError` if one is not what its kind says.

    Of a custom resource the metadata is checked, and the pods that it is made of, which are Kubernetes' own.
    """
    custom = []
    for item in objects:
        kind = item["kind"]
        where = f"{name} ({kind} {item['metadata']['name']})"
        if kind in _BUILT_IN:
            _check(where, item, _validator("kubernetes.json", f"#/$defs/{kind}"))
            continue
        custom.append(f"{kind} ({item['apiVersion']})")
        _check(where, item["metadata"], _validator("kubernetes.json", "#/$defs/metadata"))
        if (template := item.get("spec", {}).get("template")) is not None:
            _check(where, template, _validator("kubernetes.json", f"#/$defs/{_POD}"))
    if not custom:
        return None
    kinds = ", ".join(dict.fromkeys(custom))
    return f"no schema of {kinds} is here; a cluster that has it checks it: `kubectl apply --dry-run=server -f {name}`"


def check_haproxy(text: str) -> str | None:
    """Why the configuration was not checked; None if it was. Raises `StageError` if HAProxy refuses it.

    Files that it names are not there yet; the names are checked, with empty files in their places.
    """
    program = _program("haproxy")
    if program is None:
        return "haproxy is not installed here; `haproxy -c -f haproxy.cfg` checks it"
    with tempfile.TemporaryDirectory() as folder:
        stands_in = _with_files(text, Path(folder))
        file = Path(folder) / "haproxy.cfg"
        file.write_text(stands_in)
        checked = _run(program, "-c", "-q", "-f", str(file))
    if checked.returncode:
        raise StageError(f"haproxy.cfg is refused by HAProxy: {checked.stderr.strip()}")
    return None


def check_rules(files: Mapping[str, str]) -> str | None:
    """Why Prometheus' files were not checked; None if they were. `files`: `rules.yml`, and `prometheus.yml` if it is
    there. Raises `StageError` if promtool refuses them.
    """
    program = _program("promtool")
    if program is None:
        return "promtool is not installed here; `promtool check rules rules.yml` checks them"
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        kind, name = ("config", "prometheus.yml") if "prometheus.yml" in files else ("rules", "rules.yml")
        checked = _run(program, "check", kind, str(Path(folder) / name))
    if checked.returncode:
        raise StageError(f"{name} is refused by promtool: {(checked.stdout + checked.stderr).strip()}")
    return None


def _with_files(text: str, folder: Path) -> str:
    """The configuration with paths of files that exist: a self-made certificate is more than a check is worth, so that
    the line is checked without it."""
    (folder / "keys").touch()
    lines = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["bind"] and "crt" in words:
            place = words.index("crt")
            words = words[: place - 1]  # `ssl crt FILE alpn …` end the line
            line = f"    {' '.join(words)}"
        if " -f " in line:
            before, _, after = line.partition(" -f ")
            line = f"{before} -f {folder / 'keys'} {after.partition(' ')[2]}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_ASIDE)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def _check(where: str, document: Mapping[str, Any], validator: Any) -> None:
    from jsonschema.exceptions import best_match

    error = best_match(validator.iter_errors(document))
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "the top"
        raise StageError(f"{where} does not fit its schema at {place}: {error.message[:400]}")


@lru_cache(maxsize=32)
def _validator(file: str, reference: str = "#") -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    names = [file, "kubernetes.json"]
    registry: Registry[Any] = Registry().with_contents(
        [(f"schema:{name}", _schema(name)) for name in names], default_specification=DRAFT202012
    )
    return Draft202012Validator({"$ref": f"schema:{file}{reference}"}, registry=registry)


@lru_cache(maxsize=32)
def _schema(file: str) -> Any:
    document = json.loads(resources.files("stages.deploy").joinpath("schemas", file).read_text())
    document.pop("$id", None)
    document.pop("$schema", None)
    return document
