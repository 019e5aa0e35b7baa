"""Holding what is emitted against its own rules before it is written, without a network or a cluster.

Compose files go by the Compose specification's schema, objects of Kubernetes and custom resources by the schemas of
their projects (`schemas/`, trimmed; each says where it comes from). Schemas know fields, types and values: whether a
cluster has an ingress of that name they do not. HAProxy and Prometheus check their own files, where the programs
`haproxy` and `promtool` are installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from stages.errors import StageError

__all__ = ["check_compose", "check_haproxy", "check_objects", "check_rules"]

_CUSTOM = {
    "argoproj.io": "argo-rollouts.json",
    "gateway.networking.k8s.io": "gateway-api.json",
    "serving.kserve.io": "kserve.json",
    "traefik.io": "traefik.json",
}
"""Where the schemas of an API group are; Kubernetes' own groups are all in one file."""
_ASIDE = "/usr/sbin:/sbin:/usr/local/sbin"
"""Where servers are installed that are not on everybody's path."""


def check_compose(name: str, document: Mapping[str, Any]) -> None:
    """Raises `StageError` if `document` is no Compose file; `name` is the file's."""
    _check(name, document, _validator("compose.json"))


def check_objects(name: str, objects: Iterable[Mapping[str, Any]]) -> None:
    """Raises `StageError` if one of `objects` is not what its API version and kind say, or if there is no schema of it;
    `name` is the file's.
    """
    for item in objects:
        api, kind = str(item.get("apiVersion")), str(item.get("kind"))
        where = f"{name} ({kind} {item.get('metadata', {}).get('name', 'without a name')})"
        file = _CUSTOM.get(api.rpartition("/")[0], "kubernetes.json")
        if kind not in _schema(file)["$defs"]:
            raise StageError(f"{where} cannot be checked: stages/deploy/schemas has no schema of {kind} ({api})")
        _check(where, item, _validator(file, f"#/$defs/{kind}"))


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
        if words == ["parse-resolv-conf"] and not Path("/etc/resolv.conf").exists():
            continue  # the container will have one; this machine has none that could be read for the check
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

    names = [file, "kubernetes.json"]  # custom resources refer to Kubernetes' types
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
