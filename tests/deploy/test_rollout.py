"""Rollouts that decide by themselves, with real servers, a real front door and clients that never see an error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from front import MODEL, Load, Stack, address, make_repository, stack

from model_repository.environment import ServerEnvironment
from model_repository.server import Server
from pipeline.rollout import CanaryOptions, ShadowOptions, rollout
from pipeline.rollout.document import RolloutResult
from pipeline.rollout.shadow import relative_error
from stages.deploy.deployment import DEPLOYMENT
from stages.errors import InputError, RequirementError, StageError

QUICK = CanaryOptions(steps=(30, 60), slack_ms=20.0, max_errors=0.05, spacing_ms=0, step_at_least_s=0, step_s=300)
"""Wide margins, so that a busy machine decides with few requests."""


def test_a_candidate_that_is_no_worse_is_promoted(versions: dict[str, str], tmp_path: Path) -> None:
    with stack(tmp_path / "s", versions["stable"], versions["twin"]) as door, Load(door.port) as load:
        result = rollout(door.folder, canary=QUICK)
        assert door.weights() == (0, 100)
        load.wait_for(100)
    assert (result.status, result.exit_code, result.candidate_percent) == ("promoted", 0, 100)
    assert [(step.candidate_percent, step.verdict) for step in result.steps] == [(30, "not_worse"), (60, "not_worse")]
    assert {measure.name for measure in result.steps[0].measures} == {"error_rate", "latency_p50_ms", "latency_p95_ms"}
    assert set(load.answers) == {"200"}


def test_a_slow_candidate_is_rolled_back_by_itself(versions: dict[str, str], tmp_path: Path) -> None:
    with stack(tmp_path / "s", versions["stable"], versions["slow"]) as door, Load(door.port, clients=4) as load:
        result = rollout(door.folder, canary=QUICK)
        assert door.weights() == (100, 0)
        load.wait_for(100)
    assert (result.status, result.exit_code, result.candidate_percent) == ("rolled_back", 3, 0)
    assert len(result.steps) == 1 and result.steps[0].verdict == "worse"
    assert "latency_p50_ms" in result.reason
    median = next(measure for measure in result.steps[0].measures if measure.name == "latency_p50_ms")
    assert median.candidate.value > median.stable.value + 20
    assert set(load.answers) == {"200"}


def test_a_seldom_asked_version_is_given_some_slack(versions: dict[str, str], tmp_path: Path) -> None:
    options = CanaryOptions(slack_ms=1.0, cold_slack_ms=10.0)
    assert [options.margins(percent).slack_ms for percent in (5, 39, 40, 50, 95)] == [10.0, 10.0, 1.0, 1.0, 1.0]
    assert options.margins(5).alpha == pytest.approx(0.05 / 3)
    patient = QUICK.model_copy(update={"steps": (10,), "slack_ms": 0.0, "max_slower": 0.0, "cold_slack_ms": 400.0})
    with stack(tmp_path / "s", versions["stable"], versions["slow"]) as door, Load(door.port, clients=4):
        assert rollout(door.folder, canary=patient).status == "promoted"


def test_a_step_takes_its_time_unless_clients_fail(versions: dict[str, str], tmp_path: Path) -> None:
    waiting = QUICK.model_copy(update={"steps": (50,), "step_at_least_s": 3.0})
    with stack(tmp_path / "a", versions["stable"], versions["twin"]) as door, Load(door.port, pause_s=0.002):
        assert rollout(door.folder, canary=waiting).steps[0].seconds >= 3
    waiting = QUICK.model_copy(update={"step_at_least_s": 600.0, "step_s": 900.0})
    with stack(tmp_path / "b", versions["stable"], versions["refusing"]) as door, Load(door.port, pause_s=0.002):
        assert rollout(door.folder, canary=waiting).status == "rolled_back"


def test_a_candidate_that_fails_is_rolled_back(versions: dict[str, str], tmp_path: Path) -> None:
    """It is up, and refuses what the stable version answers: another version of the model, with other inputs."""
    with stack(tmp_path / "s", versions["stable"], versions["refusing"]) as door, Load(door.port) as load:
        result = rollout(door.folder, canary=QUICK)
        assert door.weights() == (100, 0)
    assert result.status == "rolled_back" and "error_rate" in result.reason
    assert load.answers["400"] >= result.steps[0].errors["candidate"] > 0
    assert set(load.answers) == {"200", "400"}


def test_a_candidate_that_is_not_there_gets_no_request(versions: dict[str, str], tmp_path: Path) -> None:
    options = QUICK.model_copy(update={"healthy_within_s": 0.0})
    with stack(tmp_path / "s", versions["stable"], "127.0.0.1:9") as door, Load(door.port, pause_s=0.01) as load:
        _until(lambda: not door.socket.servers()["candidate"].up)
        result = rollout(door.folder, canary=options)
    assert result.status == "rolled_back" and "not healthy" in result.reason
    assert result.steps == [] and set(load.answers) == {"200"}


def test_a_step_without_traffic_is_undecided_and_goes_back(versions: dict[str, str], tmp_path: Path) -> None:
    options = QUICK.model_copy(update={"step_s": 0.1})
    with stack(tmp_path / "s", versions["stable"], versions["twin"]) as door:
        result = rollout(door.folder, canary=options)
        assert door.weights() == (100, 0)
        held = rollout(door.folder, canary=options.model_copy(update={"if_undecided": "promote"}))
        assert door.weights() == (0, 100)
    assert result.status == "rolled_back" and "did not show" in result.reason
    assert held.status == "promoted" and [step.verdict for step in held.steps] == ["undecided", "undecided"]


def test_a_front_door_that_goes_in_the_middle(versions: dict[str, str], tmp_path: Path) -> None:
    """It is not the candidate's fault, and nothing can be given back: that is said, with what to do."""

    class Killing:
        def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
            door.process.kill()
            door.process.wait()

    with (
        stack(tmp_path / "s", versions["stable"], versions["twin"]) as door,
        pytest.raises(StageError, match="--mode roll-back at once"),
    ):
        rollout(door.folder, canary=QUICK, progress=Killing())


def test_two_rollouts_do_not_drive_one_deployment(versions: dict[str, str], tmp_path: Path) -> None:
    """But the traffic can be taken back from under a canary, which then ends."""
    with stack(tmp_path / "s", versions["stable"], versions["twin"]) as door:
        running = _command(door, "--steps", "50", "--no-record", "--json")
        _until(lambda: door.weights() == (50, 50))
        with pytest.raises(InputError, match="another rollout drives"):
            rollout(door.folder, mode="promote")
        assert rollout(door.folder, mode="roll-back").candidate_percent == 0
        answer, _ = running.communicate(timeout=300)
        assert door.weights() == (100, 0)
    assert running.returncode == 3 and "somebody else" in json.loads(answer)["reason"]


def test_a_candidate_that_dies_in_the_middle_is_rolled_back(
    versions: dict[str, str], triton: ServerEnvironment, tmp_path: Path
) -> None:
    options = QUICK.model_copy(
        update={"slack_ms": 0.0, "cold_slack_ms": 0.0, "max_slower": 0.0}
    )  # equals stay undecided
    with (
        Server(make_repository(tmp_path / "dying"), triton, grace_s=0) as dying,
        stack(tmp_path / "s", versions["stable"], address(dying)) as door,
    ):

        class Stopping:
            def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
                dying.stop()

        result = rollout(door.folder, canary=options, progress=Stopping())
        assert door.weights() == (100, 0)
    assert result.status == "rolled_back" and "not healthy any more" in result.reason


def test_blue_green_is_all_at_once_and_back(versions: dict[str, str], tmp_path: Path) -> None:
    with (
        stack(tmp_path / "s", versions["stable"], versions["twin"], strategy="blue-green") as door,
        Load(door.port) as load,
    ):
        load.wait_for(100)
        assert rollout(door.folder).status == "promoted" and door.weights() == (0, 100)
        load.wait_for(100)
        back = rollout(door.folder, mode="roll-back")
        assert door.weights() == (100, 0)
        load.wait_for(100)
    assert (back.status, back.exit_code) == ("rolled_back", 0)
    assert set(load.answers) == {"200"}


def test_a_wrong_candidate_is_caught_in_shadow(versions: dict[str, str], tmp_path: Path) -> None:
    with (
        stack(tmp_path / "s", versions["stable"], versions["wrong"], strategy="shadow", sampled_percent=20) as door,
        Load(door.port) as load,
    ):
        result = rollout(door.folder)
        assert door.weights() == (100, 0)
    assert (result.status, result.exit_code, result.candidate_percent) == ("refused", 3, 0)
    assert result.agreement is not None
    assert result.agreement.differing == result.agreement.samples > 0
    assert result.agreement.worst == pytest.approx(0.25)
    assert "y: relative error 0.25" in result.agreement.examples
    assert set(load.answers) == {"200"}


def test_a_shadow_agrees_with_its_like(versions: dict[str, str], tmp_path: Path) -> None:
    with (
        stack(tmp_path / "s", versions["stable"], versions["twin"], strategy="shadow", sampled_percent=50) as door,
        Load(door.port),
    ):
        result = rollout(door.folder, shadow=ShadowOptions(max_differing=0.05))
    assert (result.status, result.exit_code) == ("agreed", 0)
    assert result.agreement is not None and result.agreement.differing == 0 and result.agreement.worst == 0


def test_a_shadow_asks_both_versions_samples_of_a_file(versions: dict[str, str], tmp_path: Path) -> None:
    data = tmp_path / "samples.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32), labels=np.zeros(300))
    shadow = ShadowOptions(max_differing=0.05, data=data)
    with stack(tmp_path / "a", versions["stable"], versions["twin"], strategy="shadow") as door:
        assert rollout(door.folder, shadow=shadow).status == "agreed"
        few = shadow.model_copy(update={"samples": 10})
        undecided = rollout(door.folder, shadow=few)
    with stack(tmp_path / "b", versions["stable"], versions["wrong"], strategy="shadow") as door:
        assert rollout(door.folder, shadow=shadow).status == "refused"
    assert undecided.status == "refused" and "too few to know" in undecided.reason


def test_how_far_answers_are_apart() -> None:
    one = np.array([3.0, 4.0], np.float32)
    assert relative_error(one, one.copy()) == 0
    assert relative_error(one, one + np.float32(0.5)) == pytest.approx(0.5**0.5 / 5)
    assert relative_error(one, one.astype(np.float64)) == float("inf")
    assert relative_error(one, one[:1]) == float("inf")
    assert relative_error(one, np.array([np.nan, 4], np.float32)) == float("inf")
    assert relative_error(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])) == 0
    assert relative_error(np.array([np.inf, 1.0]), np.array([np.inf, 1.5])) == pytest.approx(0.5)
    assert relative_error(np.zeros(2), np.array([0.0, 1e-9])) == float("inf")
    assert relative_error(np.array([b"a"], object), np.array([b"b"], object)) == float("inf")
    assert relative_error(np.array([1, 2]), np.array([1, 2])) == 0


def test_the_command_records_what_it_did(versions: dict[str, str], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with stack(tmp_path / "s", versions["stable"], versions["slow"]) as door, Load(door.port, clients=4):
        arguments = ["--store", str(tmp_path / "store"), "--tracking-uri", uri]
        arguments += ["--steps", "40", "--slack-ms", "20", "--spacing-ms", "0", "--step-at-least", "0"]
        finished = _command(door, *arguments, "--json")
        answer, _ = finished.communicate(timeout=300)
    assert finished.returncode == 3
    result = RolloutResult.model_validate_json(answer)
    assert result.status == "rolled_back" and result.mlflow is not None and result.mlflow.run_id is not None

    from mlflow import MlflowClient

    run = MlflowClient(uri).get_run(result.mlflow.run_id)
    assert run.data.tags["optimize.role"] == "rollout"
    assert run.data.tags["optimize.status"] == "rolled_back"
    assert run.data.metrics["rollout/promoted"] == 0
    assert run.data.metrics["rollout/latency_p50_ms/candidate"] > run.data.metrics["rollout/latency_p50_ms/stable"]
    file = MlflowClient(uri).download_artifacts(run.info.run_id, "rollout.json", str(tmp_path))
    assert json.loads(Path(file).read_text())["reason"] == result.reason


def test_ctrl_c_gives_the_traffic_back(versions: dict[str, str], tmp_path: Path) -> None:
    with stack(tmp_path / "s", versions["stable"], versions["twin"]) as door:
        running = _command(door, "--steps", "50", "--no-record", "--json")
        _until(lambda: door.weights() == (50, 50))
        os.kill(running.pid, signal.SIGINT)
        answer, said = running.communicate(timeout=300)
        assert door.weights() == (100, 0)
    assert running.returncode == 3
    assert "interrupted: the stable version has all of the traffic again" in said
    assert json.loads(answer)["interrupted"] is True


def test_a_killing_signal_gives_the_traffic_back_too(versions: dict[str, str], tmp_path: Path) -> None:
    with stack(tmp_path / "s", versions["stable"], versions["twin"]) as door:
        running = _command(door, "--steps", "50", "--no-record")
        _until(lambda: door.weights() == (50, 50))
        running.terminate()
        running.communicate(timeout=300)
        assert door.weights() == (100, 0)
    assert running.returncode == 128 + signal.SIGTERM


def test_what_cannot_be_driven(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no deployment.json"):
        rollout(tmp_path)
    version = {"version": 1, "digest": None, "variant": None, "image": "x"}
    document = {"model": MODEL, "target": "compose", "strategy": "canary", "stable": version, "run": "run"}
    (tmp_path / DEPLOYMENT).write_text(json.dumps(document))
    with pytest.raises(InputError, match="has no candidate"):
        rollout(tmp_path)
    (tmp_path / DEPLOYMENT).write_text(json.dumps(document | {"candidate": version | {"version": 2}}))
    with pytest.raises(RequirementError, match="no front door answers"):
        rollout(tmp_path)
    (tmp_path / DEPLOYMENT).write_text(json.dumps(document | {"target": "kserve", "run": None}))
    with pytest.raises(InputError, match=r"README\.md"):
        rollout(tmp_path)
    (tmp_path / DEPLOYMENT).write_text("{}")
    with pytest.raises(InputError, match="is not a deployment"):
        rollout(tmp_path)


def _command(door: Stack, *arguments: str) -> subprocess.Popen[str]:
    """`optimize rollout` in a process of its own, which has SIGINT's usual meaning even where a script ignores it."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pipeline.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, "rollout", str(door.folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _until(condition) -> None:
    for _ in range(1800):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to that")
