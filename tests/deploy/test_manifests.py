"""What is rendered from releases: it fits the schemas, and says what the release needs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from front import MODEL, make_repository
from pydantic import ValidationError

from model_repository import Repository
from pipeline.cli import optimize
from stages.deploy.deployment import Deployment
from stages.deploy.keys import key_digests
from stages.deploy.options import DeployOptions
from stages.deploy.release import Baseline, Deployed, read_deployed, split_version
from stages.deploy.render import Rendered, deploy
from stages.deploy.validate import check_compose, check_haproxy, check_objects, check_rules
from stages.errors import InputError, StageError

GIB = 1024**3
IMAGE, OTHER, SERVER = (
    f"registry.example/{name}@sha256:{digit * 64}" for name, digit in zip(("m", "m", "s"), "abc", strict=True)
)
STABLE = Deployed("MiniLM_x", 3, "d" * 64, "int8", "onnxruntime", 0, 2 * GIB, True, Baseline(1.25, 1.5, 2.5), 300.0)
CANDIDATE = replace(STABLE, version=4, variant="fp16-trt", backend="tensorrt", gpus=2, baseline=Baseline(0.5, 0.7, 0.9))
KINDS = [
    (to, strategy)
    for to in ("compose", "kubernetes", "kserve", "argo", "traefik")
    for strategy in ("canary", "blue-green", "shadow")
    if strategy != "shadow" or to not in ("kserve", "argo")
]


def render(path: Path, to: str, strategy: str = "canary", *, two: bool = True, **options: Any) -> Rendered:
    given = {"to": to, "strategy": strategy, "image": IMAGE, "candidate_image": OTHER if two else None, **options}
    return deploy(STABLE, CANDIDATE if two else None, DeployOptions.model_validate(given), path)


def objects(rendered: Rendered, name: str) -> dict[str, dict[str, Any]]:
    """The objects of a file by `Kind/name`."""
    documents = yaml.safe_load_all((rendered.folder / name).read_text())
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in documents}


@pytest.mark.parametrize(("to", "strategy"), KINDS)
def test_every_target_has_its_steps(to: str, strategy: str, tmp_path: Path) -> None:
    rendered = render(tmp_path / "two", to, strategy)
    written = sorted(
        file.relative_to(tmp_path / "two").as_posix() for file in (tmp_path / "two").rglob("*") if file.is_file()
    )
    assert list(rendered.files) == written
    readme = (tmp_path / "two" / "README.md").read_text()
    assert "**Promote:**" in readme and "**Roll back:**" in readme and "## What was checked" in readme
    for name in rendered.files:
        assert name.endswith(".md") or "latest" not in (tmp_path / "two" / name).read_text()
    for named in [word.strip("`.,;:") for word in readme.split() if word.strip("`.,;:").endswith(".yaml")]:
        assert (tmp_path / "two" / named).is_file(), named
    assert Deployment.read(tmp_path / "two") == rendered.deployment

    again = render(tmp_path / "again", to, strategy)
    assert _bytes(tmp_path / "two") == _bytes(tmp_path / "again") and again.files == rendered.files
    alone = render(tmp_path / "alone", to, strategy, two=False)
    assert alone.deployment.candidate is None and "--candidate" in (tmp_path / "alone" / "README.md").read_text()


def _bytes(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_compose_is_closed_to_the_outside(tmp_path: Path) -> None:
    rendered = render(tmp_path / "c", "compose", keys=("0" * 64,))
    document = yaml.safe_load((rendered.folder / "compose.yaml").read_text())
    services = document["services"]
    assert list(services) == ["stable", "candidate", "front-door", "prometheus", "grafana"]
    for name in ("stable", "candidate"):
        assert "ports" not in services[name]
        assert services[name]["networks"] == ["inside"]
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"]
        assert "--model-control-mode=none" in services[name]["command"]
    assert document["networks"]["inside"] == {"internal": True}
    assert services["front-door"]["ports"] == ["8443:8443"]
    assert all(port.startswith("127.0.0.1:") for name in ("prometheus", "grafana") for port in services[name]["ports"])
    assert services["stable"]["image"] == IMAGE and services["candidate"]["image"] == OTHER
    assert (rendered.folder / "keys.sha256").read_text() == "0" * 64 + "\n"
    proxy = (rendered.folder / "haproxy.cfg").read_text()
    assert "server stable stable:8000 weight 100" in proxy and "server candidate candidate:8000 weight 0" in proxy


def test_gpus_are_asked_for_where_they_are_needed(tmp_path: Path) -> None:
    services = yaml.safe_load((render(tmp_path / "c", "compose").folder / "compose.yaml").read_text())["services"]
    assert "reservations" not in services["stable"]["deploy"]["resources"]
    devices = services["candidate"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}]
    rendered = render(tmp_path / "k", "kubernetes")
    limits = [
        objects(rendered, f"{track}.yaml")[f"Deployment/minilm-x-v{version}"]["spec"]["template"]["spec"]["containers"][
            0
        ]["resources"]["limits"]
        for track, version in (("stable", 3), ("candidate", 4))
    ]
    assert limits == [{"memory": "2048Mi"}, {"memory": "2048Mi", "nvidia.com/gpu": 2}]


def test_a_pod_has_probes_rights_and_its_model(tmp_path: Path) -> None:
    rendered = render(tmp_path / "k", "kubernetes", server_image=SERVER, namespace="ml")
    found = objects(rendered, "stable.yaml")
    assert [name.partition("/")[0] for name in found] == [
        "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget",
    ]  # fmt: skip
    assert all(item["metadata"]["namespace"] == "ml" for item in found.values())
    deployment = found["Deployment/minilm-x-v3"]["spec"]
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]
    pod = deployment["template"]["spec"]
    container = pod["containers"][0]
    assert {
        name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")
    } == {
        "startupProbe": "/v2/health/ready",
        "readinessProbe": "/v2/health/ready",
        "livenessProbe": "/v2/health/live",
    }
    assert container["image"] == SERVER
    assert {"name": "model", "image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}} in pod["volumes"]
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    assert found["Service/minilm-x-v3"]["spec"]["selector"] == deployment["selector"]["matchLabels"]


def test_routes_of_the_gateway_api(tmp_path: Path) -> None:
    def rule(rendered: Rendered, name: str) -> dict[str, Any]:
        return objects(rendered, name)["HTTPRoute/minilm-x"]["spec"]["rules"][0]

    def weights(rendered: Rendered, name: str) -> dict[str, int]:
        return {backend["name"]: backend["weight"] for backend in rule(rendered, name)["backendRefs"]}

    canary = render(tmp_path / "canary", "kubernetes", share_percent=10)
    assert weights(canary, "route-stable.yaml") == {"minilm-x-v3": 100}
    assert weights(canary, "route-canary.yaml") == {"minilm-x-v3": 90, "minilm-x-v4": 10}
    assert weights(canary, "route-50-percent.yaml") == {"minilm-x-v3": 50, "minilm-x-v4": 50}
    assert weights(canary, "route-promoted.yaml") == {"minilm-x-v4": 100}
    shadow = rule(render(tmp_path / "shadow", "kubernetes", "shadow"), "route-shadow.yaml")
    assert [backend["name"] for backend in shadow["backendRefs"]] == ["minilm-x-v3"]
    mirror = shadow["filters"][0]["requestMirror"]
    assert (mirror["backendRef"]["name"], mirror["percent"]) == ("minilm-x-v4", 10)
    assert all("repository" not in match["path"]["value"] for match in shadow["matches"])
    green = render(tmp_path / "green", "kubernetes", "blue-green")
    selected = [
        objects(green, name)["Service/minilm-x"]["spec"]["selector"]["optimize.model/version"]
        for name in ("route-stable.yaml", "route-promoted.yaml")
    ]
    assert selected == ["3", "4"]


def test_kserve_says_which_server_and_needs_revisions_for_shares(tmp_path: Path) -> None:
    rendered = render(tmp_path / "k", "kserve", share_percent=20)
    name = "InferenceService/minilm-x"
    stable, candidate = (objects(rendered, f"{track}.yaml")[name] for track in ("stable", "candidate"))
    assert candidate["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    assert candidate["spec"]["predictor"]["canaryTrafficPercent"] == 20
    assert "canaryTrafficPercent" not in stable["spec"]["predictor"]
    model = stable["spec"]["predictor"]["model"]
    assert (model["storageUri"], model["runtimeVersion"]) == (f"oci://{IMAGE}", "26.07-py3")
    alone = objects(render(tmp_path / "one", "kserve", two=False), "stable.yaml")[name]
    assert alone["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    with pytest.raises(InputError, match="mirrors no traffic"):
        render(tmp_path / "shadow", "kserve", "shadow")
    with pytest.raises(InputError, match="model image"):
        render(tmp_path / "server", "kserve", server_image=SERVER)


def test_argo_and_traefik(tmp_path: Path) -> None:
    rollout = objects(render(tmp_path / "a", "argo"), "candidate.yaml")
    strategy = rollout["Rollout/minilm-x"]["spec"]["strategy"]["canary"]
    assert [step["setWeight"] for step in strategy["steps"] if "setWeight" in step] == [5, 25, 50]
    assert rollout["Rollout/minilm-x"]["spec"]["template"]["spec"]["containers"][0]["image"] == OTHER
    latency = rollout["AnalysisTemplate/minilm-x"]["spec"]["metrics"][1]
    assert "<= 5" in latency["successCondition"]  # twice the stable version's recorded p99
    green = objects(render(tmp_path / "g", "argo", "blue-green"), "stable.yaml")
    assert green["Rollout/minilm-x"]["spec"]["strategy"]["blueGreen"]["autoPromotionEnabled"] is False
    with pytest.raises(InputError, match="Istio only"):
        render(tmp_path / "s", "argo", "shadow")

    weighted = objects(render(tmp_path / "t", "traefik"), "route-canary.yaml")["TraefikService/minilm-x"]
    assert [item["weight"] for item in weighted["spec"]["weighted"]["services"]] == [95, 5]
    mirrored = objects(render(tmp_path / "m", "traefik", "shadow"), "route-shadow.yaml")["TraefikService/minilm-x"]
    assert mirrored["spec"]["mirroring"]["mirrors"][0]["percent"] == 10


_FREE = (
    "labels", "annotations", "matchLabels", "selector", "limits", "requests", "plugins", "argoproj-labs/gatewayAPI",
    "services", "networks", "volumes", "environment", "options",
)  # fmt: skip
"""Mappings whose keys are names of one's own, or another program's."""


def _planted(document: Any, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The document with the first field of a mapping misspelt, for one mapping after another; and where that is."""
    if isinstance(document, dict):
        if document and not (above and above[-1] in _FREE):
            name = next(iter(document))
            yield (*above, name), {f"{name}x" if key == name else key: value for key, value in document.items()}
        for key, value in document.items():
            for where, planted in _planted(value, *above, key):
                yield where, {**document, key: planted}
    elif isinstance(document, list):
        for place, value in enumerate(document):
            for where, planted in _planted(value, *above, str(place)):
                yield where, [*document[:place], planted, *document[place + 1 :]]


@pytest.mark.parametrize(("to", "strategy"), KINDS)
def test_a_misspelt_field_is_found_wherever_it_stands(to: str, strategy: str, tmp_path: Path) -> None:
    rendered = render(tmp_path / "d", to, strategy, server_image=None if to == "kserve" else SERVER)
    tried = 0
    for name in [name for name in rendered.files if name.endswith(".yaml")]:
        for item in yaml.safe_load_all((rendered.folder / name).read_text()):
            for where, planted in _planted(item):
                tried += 1
                with pytest.raises(StageError):
                    check_compose(name, planted) if to == "compose" else check_objects(name, [planted])
                    pytest.fail(f"{name} {where} is taken for right")
    assert tried > 10


def test_wrong_types_are_found(tmp_path: Path) -> None:
    rendered = render(tmp_path / "k", "kubernetes")
    deployment = next(one for one in objects(rendered, "stable.yaml").values() if one["kind"] == "Deployment")
    wrong = copy.deepcopy(deployment)
    wrong["spec"]["replicas"] = "2"
    with pytest.raises(StageError, match=r"x.yaml \(Deployment .*\) does not fit its schema at .*replicas"):
        check_objects("x.yaml", [wrong])
    with pytest.raises(StageError, match="does not fit"):
        check_objects("x.yaml", [{**deployment, "apiVersion": "apps/v1beta9"}])


def test_programs_check_their_own_files(tmp_path: Path) -> None:
    rendered = render(tmp_path / "c", "compose")
    proxy = (rendered.folder / "haproxy.cfg").read_text()
    if (reason := check_haproxy(proxy)) is not None:
        pytest.skip(reason)
    with pytest.raises(StageError, match="refused by HAProxy"):
        check_haproxy(proxy.replace("balance roundrobin", "balance roundrobbin"))
    rules = (rendered.folder / "rules.yml").read_text()
    if (reason := check_rules({"rules.yml": rules})) is not None:
        pytest.skip(reason)
    with pytest.raises(StageError, match="refused by promtool"):
        check_rules({"rules.yml": rules.replace("rate(", "rate((")})


def test_images_are_named_by_digest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a tag may mean another image tomorrow"):
        render(tmp_path / "x", "compose", image="registry.example/m:v3")
    with pytest.raises(InputError, match="servers pull from a registry"):
        render(tmp_path / "x", "compose", image=f"oci:layout@sha256:{'a' * 64}")
    with pytest.raises(InputError, match="give both --candidate and --candidate-image"):
        render(tmp_path / "x", "compose", candidate_image=None)
    with pytest.raises(InputError, match="from one version of a model to another"):
        deploy(STABLE, STABLE, DeployOptions(to="compose", image=IMAGE, candidate_image=OTHER), tmp_path / "x")
    with pytest.raises(ValidationError, match="smaller than replicas"):
        DeployOptions(to="kubernetes", image=IMAGE, replicas=5, max_replicas=2)
    assert not (tmp_path / "x").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "of.yaml").touch()
    with pytest.raises(InputError, match="is not empty"):
        render(tmp_path / "full", "compose")


def test_keys_are_kept_as_digests(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# clients\nabcdefghijklmnop\n\n  0123456789abcdef  \n")
    assert key_digests(file) == tuple(
        hashlib.sha256(key.encode()).hexdigest() for key in ("abcdefghijklmnop", "0123456789abcdef")
    )
    file.write_text("abcdefghijklmnop\nshort-secret\n")
    with pytest.raises(InputError, match="line 2: a key has 16") as raised:
        key_digests(file)
    assert "short-secret" not in str(raised.value)
    with pytest.raises(InputError, match="cannot be read"):
        key_digests(tmp_path / "none")


def test_what_a_release_needs_is_read_from_it(tmp_path: Path) -> None:
    assert split_version("m") == ("m", None) and split_version("m@12") == ("m", 12)
    with pytest.raises(InputError, match="MODEL@VERSION"):
        split_version("m@latest")
    repository = make_repository(tmp_path)
    published = Repository(tmp_path / "measured")
    measured = {
        "peak_memory_bytes": 100 * 1024**2,
        "latency_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0},
        "cold_start_ms": 9.0,
    }
    published.publish(MODEL, tmp_path / "release", {"measured": measured, "variant": {"name": "fp32"}})
    found = read_deployed(published, MODEL)
    assert (found.version, found.variant, found.gpus, found.backend) == (1, "fp32", 0, "onnxruntime")
    assert found.memory_measured and found.memory_bytes == 1152 * 1024**2  # 1 GiB + 100 MiB, in steps of 64 MiB
    assert found.baseline == Baseline(1.0, 2.0, 3.0) and found.cold_start_ms == 9.0
    unmeasured = read_deployed(Repository(repository), MODEL)
    assert not unmeasured.memory_measured and unmeasured.baseline is None

    for name, change, gpus in (
        ("plan", ('backend: "onnxruntime"', 'backend: "tensorrt"'), 1),
        ("kind", ("kind: KIND_CPU", "kind: KIND_GPU gpus: [0, 1]"), 2),
    ):
        home = tmp_path / name / MODEL
        (home / "1").mkdir(parents=True)
        text = (tmp_path / "release" / "config.pbtxt").read_text()
        assert change[0] in text
        (home / "config.pbtxt").write_text(text.replace(*change))
        assert read_deployed(Repository(tmp_path / name), MODEL).gpus == gpus
    language = tmp_path / "language" / MODEL
    (language / "1").mkdir(parents=True)
    (language / "config.pbtxt").write_text('backend: "vllm"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]\n')
    (language / "1" / "model.json").write_text(json.dumps({"model": "x", "tensor_parallel_size": 4}))
    assert read_deployed(Repository(tmp_path / "language"), MODEL).gpus == 4


def test_the_command_writes_and_tells(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n")
    command = ["deploy", str(repository), MODEL, "--to", "compose", "--image", IMAGE, "--api-keys", str(keys), "--json"]
    finished = CliRunner().invoke(optimize, [*command, "--out", str(tmp_path / "out")])
    assert finished.exit_code == 0, finished.output
    document = json.loads(finished.stdout)
    assert document["stable"]["version"] == 1 and "compose.yaml" in document["files"]
    assert "0123456789abcdef" not in "".join(text.decode() for text in _bytes(tmp_path / "out").values())
    for option, value in (("share-percent", "0"), ("host", "a..b"), ("host", "-a.example.com"), ("namespace", "a.b")):
        wrong = CliRunner().invoke(optimize, [*command, "--out", str(tmp_path / "o2"), f"--{option}", value])
        assert wrong.exit_code == 2 and option.replace("-", "_") in wrong.output
