"""Makes the schemas in `schemas/` from what packages hold of them. Run by hand when one of the projects moves on:

    pip download --no-deps kubernetes-validate==1.37.0 kserve==0.21.0
    npm pack @kubernetes-models/gateway-api@2.0.0 @kubernetes-models/argo-rollouts@2.0.0
    npm pack @kubernetes-models/traefik@1.0.1
    python -m stages.deploy.trim_schemas FOLDER

`FOLDER` is where the commands left the packages. The Compose specification's schema is in `check-jsonschema`, which
the tests need anyway. What is taken away: descriptions, formats, `x-kubernetes-*` marks once they are read, the status
(no manifest has one). What is added: objects take no fields but those they know, and pods are Kubernetes' own.
"""

from __future__ import annotations

import json
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from stages.deploy.compiled_schemas import read_compiled
from stages.deploy.model_schemas import read_models

__all__ = ["main"]

_COMPOSE = "compose-spec/compose-spec, as check-jsonschema 0.39.0 has it, licence Apache-2.0"
_KUBERNETES = (
    "kubernetes/kubernetes, OpenAPI definitions of v1.37, as kubernetes-validate 1.37.0 has them, licence Apache-2.0"
)
_KSERVE = "kserve/kserve (licence Apache-2.0), types of the Python package kserve 0.21.0, licence Apache-2.0"
_COMPILED = {
    # file: package, where its types come from, what their names begin with, kinds
    "gateway-api.json": (
        "kubernetes-models-gateway-api-2.0.0.tgz",
        "kubernetes-sigs/gateway-api (licence Apache-2.0), its Go types as the npm package "
        "@kubernetes-models/gateway-api 2.0.0 has compiled them, licence MIT",
        "IoK8sSigsGatewayApiApis",
        ("V1HTTPRoute",),
    ),
    "argo-rollouts.json": (
        "kubernetes-models-argo-rollouts-2.0.0.tgz",
        "argoproj/argo-rollouts (licence Apache-2.0), its Go types as the npm package "
        "@kubernetes-models/argo-rollouts 2.0.0 has compiled them, licence MIT",
        "ComGithubArgoprojArgoRolloutsPkgApisRollouts",
        ("V1alpha1Rollout", "V1alpha1AnalysisTemplate"),
    ),
    "traefik.json": (
        "kubernetes-models-traefik-1.0.1.tgz",
        "traefik/traefik-helm-chart v39.0.8 (licence Apache-2.0), its CRDs as the npm package "
        "@kubernetes-models/traefik 1.0.1 has compiled them, licence MIT",
        "TraefikIo",
        ("V1alpha1IngressRoute", "V1alpha1Middleware", "V1alpha1TraefikService"),
    ),
}
_KINDS = {
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Service": "io.k8s.api.core.v1.Service",
    "HorizontalPodAutoscaler": "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    "PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
}
_ELSEWHERE = "schema:kubernetes.json#/$defs/"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def main() -> None:
    """Write the schemas beside this file."""
    folder, out = Path(sys.argv[1]), Path(__file__).parent / "schemas"
    out.mkdir(exist_ok=True)
    packaged = resources.files("check_jsonschema").joinpath("builtin_schemas", "vendor", "compose-spec.json")
    _write(out / "compose.json", _COMPOSE, _plain(json.loads(packaged.read_text())))

    local = "kubernetes_validate/kubernetes-json-schema/v1.37.0-local"
    wheel = _texts(folder / "kubernetes_validate-1.37.0-py3-none-any.whl", local)
    every: dict[str, Any] = json.loads(wheel["_definitions"])["$defs"]
    custom = {"kserve.json": (_KSERVE, _inference_service(folder, every))}
    for file, (package, source, prefix, kinds) in _COMPILED.items():
        custom[file] = (source, _compiled(folder / package, prefix, kinds, every))
    needed: set[str] = set()
    for file, (source, schema) in custom.items():
        _write(out / file, source, schema)
        needed |= {part.split('"')[0] for part in json.dumps(schema).split(_ELSEWHERE)[1:]}
    _write(out / "kubernetes.json", _KUBERNETES, _definitions(every, needed))
    licence = _texts(folder / "kubernetes-models-traefik-1.0.1.tgz", "package", "LICENSE")["LICENSE"]
    (out / "LICENSE.kubernetes-models").write_text(licence)


def _texts(package: Path, below: str, ending: str = "") -> dict[str, str]:
    """The texts of the files in one folder of a wheel or an npm package, by name without the ending."""
    found: dict[str, str] = {}
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            for name in wheel.namelist():
                path = PurePosixPath(name)
                if str(path.parent) == below and name.endswith(ending):
                    found[path.stem] = wheel.read(name).decode()
        return found
    with tarfile.open(package) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if str(path.parent) == below and member.name.endswith(ending) and (file := archive.extractfile(member)):
                found[path.stem] = file.read().decode()
    return found


def _compiled(package: Path, prefix: str, kinds: Iterable[str], every: dict[str, Any]) -> dict[str, Any]:
    """The kinds of an npm package, with short names."""
    files = _texts(package, "package/_schemas", ".js")
    dotted = {"".join(part[0].upper() + part[1:] for part in name.split(".")): name for name in every}
    read = read_compiled(files, [prefix + kind for kind in kinds])
    for kind in kinds:
        read[prefix + kind]["properties"].pop("status", None)
    text = json.dumps(_reachable(read, [prefix + kind for kind in kinds]))
    for camel in {part.split('"')[0] for part in text.split('"$ref": "Io')[1:]}:
        text = text.replace(f'"$ref": "Io{camel}"', f'"$ref": "{_ELSEWHERE}{dotted["Io" + camel]}"')
    defined = _closed(json.loads(text.replace(prefix, "")))
    return {"$defs": defined | {_kind(defined[kind]): {"$ref": f"#/$defs/{kind}"} for kind in kinds}}


def _kind(schema: dict[str, Any]) -> str:
    (kind,) = schema["properties"]["kind"]["enum"]
    return str(kind)


def _reachable(read: dict[str, Any], roots: Iterable[str]) -> dict[str, Any]:
    """What the roots are made of, once embedded types and statuses are out."""
    wanted, kept = list(roots), dict[str, Any]()
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = read[name]
            wanted += [part.split('"')[0] for part in json.dumps(kept[name]).split("#/$defs/")[1:]]
    return kept


def _inference_service(folder: Path, every: dict[str, Any]) -> dict[str, Any]:
    """KServe's kind, of the classes of its Python package."""

    def elsewhere(name: str) -> str:
        short = name.removeprefix("V1")
        grouped = name.removeprefix("K8sIoApi").replace("V1", ".v1.").replace("V2", ".v2.")
        candidates = [f"io.k8s.api.core.v1.{short}", f"io.k8s.apimachinery.pkg.apis.meta.v1.{short}"]
        candidates.append(f"io.k8s.api.{grouped[0].lower()}{grouped[1:]}")
        if name in ("ResourceQuantity", "V1beta1MetricQuantity"):
            candidates = [_QUANTITY]
        return _ELSEWHERE + next(candidate for candidate in candidates if candidate in every)

    texts = _texts(folder / "kserve-0.21.0-py3-none-any.whl", "kserve/models", ".py")
    kind = "V1beta1InferenceService"
    read = read_models(texts.values(), kind, elsewhere)
    read[kind]["properties"] |= {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
    }
    read[kind]["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return {"$defs": _closed(read) | {"InferenceService": {"$ref": f"#/$defs/{kind}"}}}


def _definitions(every: dict[str, Any], needed: Iterable[str]) -> dict[str, Any]:
    """The kinds that are emitted, what custom resources need of Kubernetes, and what these are made of."""
    wanted, kept = [*_KINDS.values(), *needed], dict[str, Any]()
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


def _write(file: Path, source: str, schema: dict[str, Any]) -> None:
    head = {"$comment": f"From {source}; trimmed (stages/deploy/trim_schemas.py)."}
    file.write_text(json.dumps(head | schema, sort_keys=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
