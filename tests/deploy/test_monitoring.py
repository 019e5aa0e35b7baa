"""Rules and dashboard: promtool's own unit tests, and a real Prometheus over real servers."""

from __future__ import annotations

import http.client
import json
import math
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from front import BODY, MODEL, PATH, make_repository
from loopback import unused_ports

from model_repository.environment import ServerEnvironment
from model_repository.server import Server
from stages.deploy.container import Version, server_arguments
from stages.deploy.grafana import dashboard
from stages.deploy.options import DeployOptions
from stages.deploy.prometheus import alert_rules, latency_query, scrape_configuration
from stages.deploy.release import Baseline, Deployed

IMAGE = f"registry.example/m@sha256:{'a' * 64}"
RELEASE = Deployed(MODEL, 1, None, None, "onnxruntime", 0, 1 << 30, True, Baseline(1.25, 1.5, 2.5), None)
VERSIONS = [Version("stable", RELEASE, IMAGE, None)]
OPTIONS = DeployOptions(to="compose", image=IMAGE)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install --no-install-recommends prometheus")
    return found


def _series(name: str, values: str, **labels: str) -> dict[str, str]:
    given = {"model": MODEL, "track": "stable", "version": "1", **labels}
    labelled = ",".join(f'{key}="{value}"' for key, value in given.items())
    return {"series": f"{name}{{{labelled}}}", "values": values}


CASES = {
    # values: minutes; what fires after 20 minutes
    "calm": (
        [
            _series("nv_inference_request_summary_us", "4000x20", quantile="0.99"),
            _series("nv_inference_request_success", "0+6000x20"),
            _series("nv_inference_request_failure", "0+30x20"),
            _series("nv_inference_queue_duration_us", "0+6000000x20"),
        ],
        set(),
    ),
    "slow": ([_series("nv_inference_request_summary_us", "5100x20", quantile="0.99")], {"TritonSlow"}),
    "slow in the median only": ([_series("nv_inference_request_summary_us", "9000x20", quantile="0.5")], set()),
    "slow for a moment": (
        [_series("nv_inference_request_summary_us", "4000x16 9000x3", quantile="0.99")],
        set(),
    ),
    "failing": (
        [
            _series("nv_inference_request_success", "0+6000x20"),
            _series("nv_inference_request_failure", "0+120x20"),
        ],
        {"TritonErrors"},
    ),
    "queueing": (
        [
            _series("nv_inference_request_success", "0+6000x20"),
            _series("nv_inference_queue_duration_us", "0+360000000x20"),
        ],
        {"TritonQueue"},
    ),
    "restarted": ([_series("nv_inference_request_success", "0+6000x14 0+6000x5")], {"TritonRestarted"}),
    "down": ([{"series": 'up{job="triton",track="stable",version="1"}', "values": "1x10 0x10"}], {"TritonDown"}),
}


@pytest.mark.parametrize("case", CASES)
def test_rules_fire_when_they_should(case: str, tmp_path: Path) -> None:
    promtool = program("promtool")
    series, wanted = CASES[case]
    rules = alert_rules(VERSIONS, OPTIONS)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    every = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}
    assert set(every) == {"TritonSlow", "TritonErrors", "TritonQueue", "TritonRestarted", "TritonDown"}
    labels = {"track": "stable", "version": "1"}
    checks = []
    for name, rule in every.items():
        more = {"job": "triton"} if name == "TritonDown" else {}
        fired = [{"exp_labels": {**rule["labels"], **labels, **more}, "exp_annotations": rule["annotations"]}]
        checks.append({"eval_time": "20m", "alertname": name, "exp_alerts": fired if name in wanted else []})
    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": checks}],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    told = subprocess.run([promtool, "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_recorded_latency_is_a_line_beside_the_live_one() -> None:
    shown = dashboard(VERSIONS)
    median, slow = shown["panels"][:2]
    assert [target["expr"] for target in median["targets"]] == [latency_query(MODEL, "0.5"), "vector(1.25)"]
    assert [target["expr"] for target in slow["targets"]] == [latency_query(MODEL, "0.99"), "vector(2.5)"]
    assert slow["targets"][1]["legendFormat"] == slow["fieldConfig"]["overrides"][0]["matcher"]["options"]
    bare = [Version("stable", Deployed(MODEL, 1, None, None, "", 0, 1, False, None, None), IMAGE, None)]
    assert len(dashboard(bare)["panels"][0]["targets"]) == 1
    names = [rule["alert"] for rule in alert_rules(bare, OPTIONS)["groups"][0]["rules"]]
    assert "TritonSlow" not in names


class _Told(Server):
    """A server with the metrics that a deployment's servers are told to keep."""

    def _command(self) -> list[str]:
        return [*super()._command(), *(word for word in server_arguments() if word.startswith("--metrics-config"))]


@pytest.fixture
def measured(triton: ServerEnvironment, tmp_path: Path) -> Iterator[Server]:
    with _Told(make_repository(tmp_path / "measured"), triton, grace_s=0) as server:
        yield server


def _ask(server: Server, times: int) -> None:
    host, _, port = server.http_address.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    for _ in range(times):
        connection.request("POST", PATH, body=BODY)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.read()
    connection.close()


def test_a_real_prometheus_finds_what_rules_and_dashboard_ask_for(measured: Server, tmp_path: Path) -> None:
    prometheus = program("prometheus")
    configuration = scrape_configuration(VERSIONS)
    where = measured.metrics_address.removeprefix("http://").removesuffix("/metrics")
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [where]
    configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(alert_rules(VERSIONS, OPTIONS)))
    (port,) = unused_ports(1)
    command = [prometheus, f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={tmp_path / 'data'}",
               f"--config.file={tmp_path / 'prometheus.yml'}"]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for asked_before in (0, 50, 100, 150):  # rates need requests between two scrapes
            _ask(measured, 50)
            _value(port, f"nv_inference_request_success > {asked_before}")
        asked = [target["expr"] for panel in dashboard(VERSIONS)["panels"] for target in panel["targets"]]
        values = {expression: _value(port, expression) for expression in asked}
        rules = _evaluated(port)
    finally:
        running.terminate()
        running.wait(20)
    assert len(values) == 8
    assert 0 < values[latency_query(MODEL, "0.5")]["value"] <= values[latency_query(MODEL, "0.99")]["value"]
    assert values[latency_query(MODEL, "0.99")]["labels"] == {"track": "stable", "version": "1"}
    assert values["vector(2.5)"]["value"] == 2.5
    assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys(
        ("TritonSlow", "TritonErrors", "TritonQueue", "TritonRestarted", "TritonDown"), "ok"
    )


def _value(port: int, expression: str) -> dict[str, Any]:
    """The one value of an expression, as soon as there is one."""
    for _ in range(1800):
        try:
            found = _get(port, "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))["result"]
        except OSError:
            found = []
        if found and not math.isnan(float(found[0]["value"][1])):
            assert len(found) == 1, found
            return {"value": float(found[0]["value"][1]), "labels": found[0]["metric"]}
        time.sleep(0.1)
    raise AssertionError(f"Prometheus knows nothing of {expression}")


def _evaluated(port: int) -> list[dict[str, Any]]:
    """The rules, once each has been evaluated."""
    for _ in range(1800):
        rules: list[dict[str, Any]] = _get(port, "/api/v1/rules")["groups"][0]["rules"]
        if all(rule["health"] != "unknown" for rule in rules):
            return rules
        time.sleep(0.1)
    raise AssertionError("Prometheus does not evaluate the rules")


def _get(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        told = response.read()
        if response.status == 503:  # it listens before it is ready
            raise ConnectionError(told.decode())
        return json.loads(told)["data"]
    finally:
        connection.close()
