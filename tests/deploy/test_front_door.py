"""HAProxy with the emitted configuration, before real servers: who gets in, and where requests go."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from front import BODY, KEY, MODEL, PATH, Load, stack

from pipeline.rollout.runtime_socket import FrontDoorSocket
from stages.deploy.front_door import FrontDoor, Limits, Upstream, haproxy_configuration
from stages.errors import InputError, RequirementError


def test_a_tenth_of_the_requests_goes_to_a_canary_of_ten_percent(versions: dict[str, str], tmp_path: Path) -> None:
    with stack(tmp_path / "s", versions["stable"], versions["twin"], share=10) as door:
        stream = door.socket.stream()
        while not stream.take():  # the front door begins to tell when it has read that it shall
            door.ask()
            time.sleep(0.02)
        with Load(door.port, most=5000) as load:
            load.join()
        lines = []
        while len(lines) < 5000:
            lines += [line for line in stream.take() if line["asked"] == "1"]
            time.sleep(0.02)
        stream.close()
    assert load.answers == {"200": 5000}
    candidate = sum(line["server"] == "candidate" for line in lines)
    assert abs(candidate / len(lines) - 0.10) <= 0.01
    assert all(int(line["us"]) > 0 for line in lines)


def test_promoting_and_rolling_back_under_load_fails_no_request(versions: dict[str, str], tmp_path: Path) -> None:
    with stack(tmp_path / "s", versions["stable"], versions["twin"]) as door, Load(door.port) as load:
        for share in (10, 50, 100, 0, 100, 0):
            load.wait_for(300)
            door.socket.shift(share)
            assert door.weights() == (100 - share, share)
        load.wait_for(300)
    assert set(load.answers) == {"200"}
    assert load.answers.total() >= 2100


def test_what_was_shifted_survives_a_restart(versions: dict[str, str], tmp_path: Path) -> None:
    with stack(tmp_path / "s", versions["stable"], versions["twin"]) as door:
        door.socket.shift(100)
        door.restart()
        assert door.weights() == (0, 100)
        assert door.ask()[0] == 200


def test_only_what_is_listed_is_open(versions: dict[str, str], tmp_path: Path) -> None:
    closed = [
        "/v2/repository/index",
        f"/v2/repository/models/{MODEL}/unload",
        f"/v2/repository/models/{MODEL}/load",
        "/v2/logging",
        "/v2/trace/setting",
        f"/v2/models/{MODEL}/trace/setting",
        "/v2/systemsharedmemory/status",
        "/v2/systemsharedmemory/region/x/register",
        "/v2/cudasharedmemory/status",
        "/v2/models/stats",
        f"/v2/models/{MODEL}/stats",
        f"/v2/models/{MODEL}/versions/1/infer",
        "/v2/models/another/infer",
        "/metrics",
        "//v2/repository/index",
        "/v2/models/../repository/index",
        f"/v2/models/{MODEL}/../../repository/index",
        "/v2/health/%2e%2e/repository/index",
        "/",
    ]
    with stack(tmp_path / "s", versions["stable"], versions["twin"], keyed=True) as door:
        for path in closed:
            for method in ("GET", "POST"):
                assert door.ask(method, path, x_api_key=KEY)[0] == 403, (method, path)
        for method in ("PUT", "DELETE", "OPTIONS"):
            assert door.ask(method, PATH, x_api_key=KEY)[0] == 403
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/ready"):
            assert door.ask("GET", path, x_api_key=KEY)[0] == 200, path
        status, answer = door.ask(x_api_key=KEY)
    assert status == 200
    assert json.loads(answer)["outputs"][0]["data"] == [2.0, 4.0, -6.0, 8.0]


def test_the_servers_themselves_would_have_answered(versions: dict[str, str]) -> None:
    """What the front door closes is open behind it: else the test above would show nothing."""
    host, _, port = versions["stable"].partition(":")
    for path in ("/v2/logging", f"/v2/models/{MODEL}/stats", "/v2/systemsharedmemory/status"):
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("GET", path)
        assert connection.getresponse().status == 200, path
        connection.close()


def test_a_key_is_needed(versions: dict[str, str], tmp_path: Path) -> None:
    with stack(tmp_path / "s", versions["stable"], versions["twin"], keyed=True) as door:
        assert door.ask()[0] == 401
        assert door.ask(x_api_key="another")[0] == 401
        assert door.ask(x_api_key="")[0] == 401
        assert door.ask(authorization="Bearer another")[0] == 401
        assert door.ask("GET", "/v2/health/ready")[0] == 401
        assert door.ask(x_api_key=KEY)[0] == 200
        assert door.ask(authorization=f"Bearer {KEY}")[0] == 200
        # What the file holds is no key.
        digest = (door.folder / "keys.sha256").read_text().strip()
        assert door.ask(x_api_key=digest)[0] == 401


def test_a_large_body_is_refused_and_a_body_of_unknown_length(versions: dict[str, str], tmp_path: Path) -> None:
    limits = Limits(requests_per_10s=1000, body_bytes=1000)
    with stack(tmp_path / "s", versions["stable"], versions["twin"], limits=limits) as door:
        assert door.ask(body=BODY)[0] == 200
        assert door.ask(body=BODY + b" " * 1000)[0] == 413
        connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=10)
        connection.putrequest("POST", PATH)
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        assert connection.getresponse().status == 411
        connection.close()


def test_one_key_is_limited_in_its_rate(versions: dict[str, str], tmp_path: Path) -> None:
    limits = Limits(requests_per_10s=20)
    with stack(tmp_path / "s", versions["stable"], versions["twin"], keyed=True, limits=limits) as door:
        statuses = [door.ask(x_api_key=KEY)[0] for _ in range(30)]
        assert statuses[:20] == [200] * 20
        assert set(statuses[20:]) == {429}
        assert door.ask(x_api_key="another")[0] == 401  # who has no key cannot use up somebody's rate


def test_tls(versions: dict[str, str], tmp_path: Path) -> None:
    certificate = tmp_path / "front.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    out = ["-keyout", str(tmp_path / "key"), "-out", str(certificate)]
    subprocess.run([*make.split(), *out], check=True, capture_output=True)
    trusted = ssl.create_default_context(cafile=str(certificate))
    certificate.write_text(certificate.read_text() + (tmp_path / "key").read_text())
    with stack(tmp_path / "s", versions["stable"], versions["twin"], keyed=True, certificate=str(certificate)) as door:
        connection = http.client.HTTPSConnection("127.0.0.1", door.port, timeout=10, context=trusted)
        connection.request("POST", PATH, body=BODY, headers={"x-api-key": KEY})
        assert connection.getresponse().status == 200
        assert connection.sock.version() in ("TLSv1.2", "TLSv1.3")
        connection.close()
        with pytest.raises((OSError, http.client.HTTPException)):
            door.ask(x_api_key=KEY)  # without TLS


def test_a_configuration_without_any_weight_is_refused() -> None:
    with pytest.raises(InputError, match="no request would be answered"):
        haproxy_configuration(FrontDoor(MODEL, Upstream("a:1", 0), Upstream("b:1", 0)))


def test_a_front_door_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match="no front door answers at"):
        FrontDoorSocket(tmp_path).servers()
