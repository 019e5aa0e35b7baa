"""The shipped schemas: they know what is emitted, refuse what is not so, and say where they are from."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_manifests import KINDS, render

from stages.deploy.compiled_schemas import read_compiled
from stages.deploy.model_schemas import read_models
from stages.deploy.validate import check_objects
from stages.errors import StageError

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "stages" / "deploy" / "schemas"
MISSING = object()


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """All objects that any target and strategy gives, by API version and kind."""
    found: dict[str, list[dict[str, Any]]] = {}
    for to, strategy in KINDS:
        if to == "compose":
            continue
        rendered = render(tmp_path_factory.mktemp("all") / "d", to, strategy)
        assert not [name for name in rendered.deployment.not_validated if name.endswith(".yaml")]
        for name in (name for name in rendered.files if name.endswith(".yaml")):
            for item in yaml.safe_load_all((rendered.folder / name).read_text()):
                found.setdefault(f"{item['apiVersion']} {item['kind']}", []).append(item)
    return found


def test_every_kind_that_is_emitted_has_a_schema(emitted: dict[str, list[dict[str, Any]]]) -> None:
    assert sorted(emitted) == [
        "apps/v1 Deployment",
        "argoproj.io/v1alpha1 AnalysisTemplate",
        "argoproj.io/v1alpha1 Rollout",
        "autoscaling/v2 HorizontalPodAutoscaler",
        "gateway.networking.k8s.io/v1 HTTPRoute",
        "policy/v1 PodDisruptionBudget",
        "serving.kserve.io/v1beta1 InferenceService",
        "traefik.io/v1alpha1 IngressRoute",
        "traefik.io/v1alpha1 Middleware",
        "traefik.io/v1alpha1 TraefikService",
        "v1 Service",
    ]
    for items in emitted.values():
        check_objects("x.yaml", items)


BREAKS: list[tuple[str, str, Any]] = [
    # kind, where, what is put there
    ("HTTPRoute", "spec.rules.0.backendRef", []),
    ("HTTPRoute", "spec.rules.0.backendRefs.0.weight", "5"),
    ("HTTPRoute", "spec.rules.0.backendRefs.0.weight", -1),
    ("HTTPRoute", "spec.rules.0.backendRefs.0.name", MISSING),
    ("HTTPRoute", "spec.rules.0.matches.0.method", "INFER"),
    ("HTTPRoute", "spec.rules.0.timeouts.request", "30 seconds"),
    ("HTTPRoute", "spec.hostnames.0", "UPPER.example.com"),
    ("InferenceService", "spec.predictor.model.storageURI", "oci://x"),
    ("InferenceService", "spec.predictor.minReplicas", "2"),
    ("InferenceService", "spec.predictor.model.modelFormat", MISSING),
    ("InferenceService", "spec.predictor", MISSING),
    ("InferenceService", "spec", MISSING),
    ("InferenceService", "spec.predictor.model.resources.limit", {}),
    ("Rollout", "spec.strategy.canary.steps.0.setweight", 5),
    ("Rollout", "spec.strategy.canary.steps.0.setWeight", "5"),
    ("Rollout", "spec.strategy.canary.analysis.templates", {}),
    ("Rollout", "spec", MISSING),
    ("Rollout", "spec.template.spec.containers.0.name", MISSING),
    ("Rollout", "spec.template.spec.containers.0.imagePolicy", "Always"),
    ("AnalysisTemplate", "spec.metrics.0.successCriterion", "true"),
    ("AnalysisTemplate", "spec.metrics.0.provider.prometheus.query", 1),
    ("AnalysisTemplate", "spec.metrics.0.provider", MISSING),
    ("AnalysisTemplate", "spec.metrics.0.name", MISSING),
    ("IngressRoute", "spec.routes.0.matches", "Host(`x`)"),
    ("IngressRoute", "spec.entryPoints", "websecure"),
    ("IngressRoute", "spec.routes.0.match", MISSING),
    ("IngressRoute", "spec.routes.0.services.0.kind", "Deployment"),
    ("Middleware", "spec.ratelimit", {}),
    ("Middleware", "spec.rateLimit.average", "many"),
    ("Middleware", "spec.rateLimit.average", -1),
    ("Middleware", "spec", MISSING),
    ("TraefikService", "spec.weighted.service", []),
    ("TraefikService", "spec.weighted.services.0.weight", "95"),
    ("TraefikService", "spec.weighted.services.0.name", MISSING),
    *((kind, "status", {}) for kind in ("HTTPRoute", "InferenceService", "Rollout", "IngressRoute")),
    *((kind, "metadata.nmae", "x") for kind in ("HTTPRoute", "InferenceService", "AnalysisTemplate", "Middleware")),
]


@pytest.mark.parametrize(("kind", "where", "value"), BREAKS)
def test_what_is_not_so_is_refused(kind: str, where: str, value: Any, emitted: dict[str, list[dict[str, Any]]]) -> None:
    *path, last = where.split(".")
    (items,) = [items for name, items in emitted.items() if name.endswith(f" {kind}")]
    tried = 0
    for item in items:
        broken = copy.deepcopy(item)
        place: Any = broken
        try:
            for step in path:
                place = place[int(step)] if isinstance(place, list) else place[step]
        except KeyError:
            continue  # another strategy's, or another middleware
        if isinstance(place, list):
            place[int(last)] = value
        elif value is MISSING:
            place.pop(last, None)
        else:
            place[last] = value
        tried += 1
        with pytest.raises(StageError, match=rf"x\.yaml \({kind} .*does not fit its schema at "):
            check_objects("x.yaml", [broken])
    assert tried


@pytest.mark.parametrize(
    ("api", "kind", "told"),
    [
        ("gateway.networking.k8s.io/v1", "TCPRoute", "no schema of TCPRoute"),
        ("gateway.networking.k8s.io/v1", "V1HTTPRoute.", "no schema"),
        ("gateway.networking.k8s.io/v1beta9", "HTTPRoute", "does not fit"),
        ("serving.kserve.io/v1", "InferenceService", "does not fit"),
        ("networking.istio.io/v1", "VirtualService", "no schema of VirtualService"),
        ("apps/v1", "Rollout", "no schema of Rollout"),
    ],
)
def test_nothing_goes_by_without_a_schema(api: str, kind: str, told: str) -> None:
    item = {"apiVersion": api, "kind": kind, "metadata": {"name": "a"}, "spec": {}}
    with pytest.raises(StageError, match=told):
        check_objects("x.yaml", [item])


def test_schemas_say_where_they_are_from() -> None:
    files = sorted(SCHEMAS.glob("*.json"))
    assert [file.stem for file in files] == [
        "argo-rollouts", "compose", "gateway-api", "kserve", "kubernetes", "traefik",
    ]  # fmt: skip
    documented = (ROOT / "docs" / "deploy.md").read_text()
    for file in files:
        told = json.loads(file.read_text())["$comment"]
        assert re.search(r"licence (MIT|Apache-2\.0);", told) and "trim_schemas.py" in told
        package = re.search(r"(@?[\w/-]+) (\d+\.\d+\.\d+)", told)
        assert package is not None, file
        assert f"`{package[1]}` {package[2]}" in documented, file
        assert "description" not in _keywords(json.loads(file.read_text())["$defs"])
    assert "Permission is hereby granted" in (SCHEMAS / "LICENSE.kubernetes-models").read_text()


def _keywords(schema: Any) -> set[str]:
    """The words of JSON Schema itself, not the names of fields."""
    if isinstance(schema, list):
        return {word for item in schema for word in _keywords(item)}
    if not isinstance(schema, dict):
        return set()
    named = [value for key, value in schema.items() if key in ("properties", "patternProperties", "$defs")]
    parts = [item for names in named for item in names.values()]
    parts += [value for key, value in schema.items() if key not in ("properties", "patternProperties", "$defs")]
    return {*schema, *(word for part in parts for word in _keywords(part))}


def test_the_schemas_are_in_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip(
        "setuptools", minversion="77", reason="setuptools 77 or later is needed: pip install -U setuptools"
    )
    source = tmp_path / "source"
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        (source / file).write_bytes((ROOT / file).read_bytes())
    for file in [*SCHEMAS.iterdir(), SCHEMAS.parent / "__init__.py", ROOT / "stages" / "__init__.py"]:
        copied = source / file.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(file.read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.rpartition("/")[2] for name in archive.namelist() if name.startswith("stages/deploy/schemas/")}
    assert packed == {file.name for file in SCHEMAS.iterdir()}


HEAD = 'data,{instancePath="",parentData,parentDataProperty,rootData=data}={}'
PASSED = "instancePath,parentData,parentDataProperty,rootData}"


def _compiled(body: str, name: str = "validate0") -> str:
    return f"function {name}({HEAD}){{let vErrors=null,errors=0;{body}return {name}.errors=vErrors,0===errors}}"


def _error(keyword: str, told: str) -> str:
    error = f'{{instancePath,schemaPath:"#/{keyword}",keyword:"{keyword}",params:{{{told}}}}}'
    return f"let err0={error};null===vErrors?vErrors=[err0]:vErrors.push(err0),errors++"


def test_schemas_are_read_back_from_compiled_validators() -> None:
    integer, limited = _error("type", 'type:"integer"'), _error("maximum", 'comparison:"<=",limit:1e6')
    is_object, must = _error("type", 'type:"object"'), _error("required", 'missingProperty:"name"')
    weight = _compiled(
        f'if("number"!=typeof data){{{integer}}}if("number"==typeof data&&data>1e6){{{limited}}}', "validate1"
    )
    calls = f"validate1(data.weight,{{{PASSED});validate2(data,{{{PASSED});"
    own = _compiled(f"if(void 0===data.name){{{must}}}{calls}else{{{is_object}}}")
    base = _compiled(f"validate1(data.port,{{{PASSED});else{{{is_object}}}")
    started = "export const validate=validate0;"
    files = {
        "Own": f'{started}import{{validate as validate2}}from"./Base.js";{weight}{own}',
        "Base": f"{started}{weight}{base}",
        "Unused": "this is not read",
    }
    number = {"type": "integer", "maximum": 1_000_000}
    read = read_compiled(files, ["Own"])
    assert read["Own"] == {
        "type": "object", "required": ["name"], "properties": {"port": number, "weight": number},
    }  # fmt: skip
    for text, told in [
        (files["Own"].replace("function validate0(", "function validate0 ("), "is not compiled as"),
        (files["Own"].replace('keyword:"maximum"', 'keyword:"multipleOf"'), "checks multipleOf"),
        (files["Own"].replace("null===vErrors?", "vErrors?"), "errors that are not known"),
        (files["Own"].replace("validate1(data.weight,", "validate1(data.weight[0],"), "parts that are not known"),
    ]:
        with pytest.raises(ValueError, match=told):
            read_compiled(files | {"Own": text}, ["Own"])


def test_schemas_are_read_from_generated_classes() -> None:
    def written(name: str, types: dict[str, str], must: str = "") -> str:
        names = {field: re.sub(r"_(\w)", lambda match: match[1].upper(), field) for field in types}
        refused = f"def f(self): raise ValueError('Invalid value for `{must}`, must not be `None`')"
        return f"class {name}:\n  openapi_types = {types}\n  attribute_map = {names}\n  {refused}\n"

    own = written("Own", {"max_size": "int", "parts": "list[dict(str, Part)]", "pod": "V1Pod", "status": "S"}, "parts")
    read = read_models([own, written("Part", {"is_on": "bool"})], "Own", "elsewhere#{}".format)
    parts = {"type": "object", "additionalProperties": {"$ref": "#/$defs/Part"}}
    assert read == {
        "Own": {
            "type": "object",
            "required": ["parts"],
            "properties": {
                "maxSize": {"type": "integer"},
                "parts": {"type": "array", "items": parts},
                "pod": {"$ref": "elsewhere#V1Pod"},
            },
        },
        "Part": {"type": "object", "properties": {"isOn": {"type": "boolean"}}},
    }  # fmt: skip
    with pytest.raises(ValueError, match="was not written by OpenAPI Generator"):
        read_models(["class Own: pass"], "Own", str)
