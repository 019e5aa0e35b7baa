"""Makes the schemas in `schemas/` from what the projects publish. Run by hand when one of them moves on:

    python -m stages.deploy.trim_schemas KUBERNETES

The Compose specification's comes with the package `check-jsonschema`; `KUBERNETES` is the file of OpenAPI definitions
(v1.37) in the package `kubernetes-validate`. What is taken away: descriptions, `x-kubernetes-*` marks once they are
read, the status (no manifest has one). What is added: objects take no fields but those they know.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["main"]

_COMPOSE = ("compose-spec/compose-spec", "as check-jsonschema 0.39.0 has it", "Apache-2.0")
_KUBERNETES = (
    "kubernetes/kubernetes",
    "OpenAPI definitions of v1.37, as kubernetes-validate 1.37.0 has them",
    "Apache-2.0",
)
_KINDS = {
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Service": "io.k8s.api.core.v1.Service",
    "HorizontalPodAutoscaler": "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    "PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
}


def main() -> None:
    """Write the schemas beside this file."""
    out = Path(__file__).parent / "schemas"
    out.mkdir(exist_ok=True)
    packaged = resources.files("check_jsonschema").joinpath("builtin_schemas", "vendor", "compose-spec.json")
    _write(out / "compose.json", _COMPOSE, _plain(json.loads(packaged.read_text())))
    _write(out / "kubernetes.json", _KUBERNETES, _definitions(json.loads(Path(sys.argv[1]).read_text())))


def _definitions(document: dict[str, Any]) -> dict[str, Any]:
    """The kinds that are emitted, and what they are made of."""
    every: dict[str, Any] = document["$defs"]
    wanted, kept = [*_KINDS.values(), "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"], dict[str, Any]()
    while wanted:
        name = wanted.pop()
        if name in kept:
            continue
        kept[name] = _closed(_plain(every[name], ("status",) if name in _KINDS.values() else ()))
        text = json.dumps(kept[name])
        wanted += [part.split('"')[0] for part in text.split("#/$defs/")[1:]]
    for kind, name in _KINDS.items():
        group, _, version = name.removeprefix("io.k8s.api.").rpartition(".")[0].rpartition(".")
        api = version if group == "core" else f"{group}/{version}"
        kept[name]["properties"] |= {"apiVersion": {"const": api}, "kind": {"const": kind}}
        kept[kind] = {"$ref": f"#/$defs/{name}"}
    kept["metadata"] = {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    return {"$defs": dict(sorted(kept.items()))}


def _plain(schema: Any, left_out: tuple[str, ...] = ()) -> Any:
    """The schema without what is said to people, and without these properties."""
    if isinstance(schema, list):
        return [_plain(item, left_out) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "definitions", "$defs") and isinstance(value, dict):
            kept[key] = {name: _plain(item, left_out) for name, item in value.items() if name not in left_out}
        elif key == "x-kubernetes-preserve-unknown-fields" and value:
            kept["additionalProperties"] = True
        elif key in ("description", "default", "format", "title", "example") or key.startswith("x-kubernetes"):
            continue
        else:
            kept[key] = _plain(value, left_out)
    return kept


def _closed(schema: Any) -> Any:
    """The schema with objects that take only what they know."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: {name: _closed(item) for name, item in value.items()} if key == "properties" else _closed(value)
        for key, value in schema.items()
    }
    if "properties" in closed and "additionalProperties" not in closed:
        closed["additionalProperties"] = False
    return closed


def _write(file: Path, source: tuple[str, str, str], schema: dict[str, Any]) -> None:
    project, version, licence = source
    head = {"$comment": f"From {project}, {version}, licence {licence}; trimmed (stages/deploy/trim_schemas.py)."}
    file.write_text(json.dumps(head | schema, sort_keys=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
