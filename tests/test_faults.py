"""Faults in the middle of a run: a clear message, the documented exit code, and nothing lost or half done."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from workplace import Classifier, Finished, Workplace

from model_repository import Repository


def quick(classifier: Classifier, *more: object) -> list[object]:
    return ["run", classifier.model, "--name", "digits", "--evaluation", classifier.evaluation, "--max-drop", "10%",
            "--batch-sizes", "1", "--budget", "1s", "--fuse", "never", *more]  # fmt: skip


def overflowing_model(path: Path) -> Path:
    """Right in fp32 for inputs of any size; quantising values whose range is beyond a float's gives NaN."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32) * np.float32(1e-30)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "overflow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_variant_with_nan_outputs_fails_and_the_run_goes_on(workplace: Workplace) -> None:
    model = overflowing_model(workplace.path / "overflow.onnx")
    x = np.random.default_rng(1).normal(size=(80, 64)).astype(np.float32)
    x[7, :2] = [3e38, -3e38]
    np.savez(workplace.path / "x.npz", x=x)
    ended = workplace.optimize(
        "run", model, "--evaluation", "x.npz", "--variants", "int8-dynamic", "--fuse", "never",
        "--budget", "1s", "--batch-sizes", "1", "--no-verify", "--no-record", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    int8 = next(variant for variant in ended.json["variants"] if variant["name"] == "int8-dynamic")
    assert int8["verdict"] == "error"
    assert "NaN" in int8["reason"]
    assert ended.json["release"]["variant"] == "fp32"


def test_a_step_that_takes_too_long_is_stopped(workplace: Workplace, classifier: Classifier) -> None:
    recipe = workplace.path / "recipe.yaml"
    recipe.write_text(f"model: {classifier.model}\nstep_timeout: 10ms\n")
    ended = workplace.optimize("run", recipe, "--no-record")
    assert ended.code == 4
    assert "convert: no result after" in ended.err
    assert not workplace.repository.exists()


@pytest.fixture(scope="module")
def straight(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, float]:
    """A run that nothing disturbs, and its seconds."""
    started = time.monotonic()
    ended = Workplace(tmp_path_factory.mktemp("whole")).optimize(*quick(classifier, "--no-verify", "--json"))
    assert ended.code == 0, ended.err
    return ended, time.monotonic() - started


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_the_same_command_goes_on(
    workplace: Workplace, classifier: Classifier, seed: int, straight: tuple[Finished, float]
) -> None:
    command = quick(classifier, "--no-verify", "--json")
    undisturbed, seconds = straight
    for delay in sorted(random.Random(seed).uniform(0.05, 1.0) * seconds for _ in range(3)):
        run = workplace.start(*command)
        try:
            run.wait(delay)
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)
        run.communicate()
    resumed = workplace.optimize(*command)
    assert resumed.code == 0, resumed.err
    digests = {variant["name"]: variant["digest"] for variant in undisturbed.json["variants"]}
    assert {variant["name"]: variant["digest"] for variant in resumed.json["variants"]} == digests
    infos = Repository(workplace.repository).versions("digits")
    assert [info.version for info in infos if info.current] == [infos[-1].version]
    for info in infos:
        Repository(workplace.repository).verify("digits", info.version)
    assert list((workplace.store / "scratch").iterdir()) == []


def test_two_runs_at_once_share_the_work_and_publish_once(workplace: Workplace, classifier: Classifier) -> None:
    command = quick(classifier, "--no-verify", "--json")
    runs = [workplace.start(*command) for _ in range(2)]
    for run in runs:
        _, errors = run.communicate()
        assert run.returncode == 0, errors
    infos = Repository(workplace.repository).versions("digits")
    assert [info.version for info in infos] == [1]
    import mlflow

    client = mlflow.MlflowClient(workplace.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    jobs = client.search_runs(experiments, "tags.`optimize.role` = 'job'")
    assert len(jobs) == 1


def test_ctrl_c_ends_everything_and_keeps_what_is_finished(workplace: Workplace, classifier: Classifier) -> None:
    run = workplace.start(*quick(classifier, "--no-verify", "--budget", "60s"))
    steps = workplace.store / "steps"
    while not (steps.is_dir() and len(list(steps.iterdir())) >= 3):
        assert run.poll() is None
        time.sleep(0.05)
    family = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate()
    assert run.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert list((workplace.store / "scratch").iterdir()) == []
    assert not workplace.repository.exists()


def test_a_full_store_stops_the_run_cleanly(workplace: Workplace, minilm_checkpoint: Path, small_disk: Path) -> None:
    ended = workplace.optimize(
        "run", minilm_checkpoint, "--store", small_disk / "store", "--no-verify", "--no-record", "--budget", "1s"
    )
    assert ended.code == 4
    assert "no space left" in ended.err
    assert not workplace.repository.exists()


def test_a_full_repository_is_never_half_published(
    workplace: Workplace, minilm_checkpoint: Path, small_disk: Path
) -> None:
    ended = workplace.optimize(
        "run", minilm_checkpoint, "--name", "minilm", "--repository", small_disk / "repository", "--variants", "fp16",
        "--fuse", "never", "--no-verify", "--no-record", "--budget", "1s", "--batch-sizes", "1",
    )  # fmt: skip
    assert ended.code == 4, ended.err
    assert "no space is left for" in ended.err
    assert not [
        path for path in (small_disk / "repository").rglob("*") if path.is_file() and path.stat().st_size > 4096
    ]


def test_a_release_that_changed_in_the_store_is_not_published(workplace: Workplace, classifier: Classifier) -> None:
    command = quick(classifier, "--no-verify", "--no-record")
    assert workplace.optimize(*command).code == 0
    (config,) = workplace.store.glob("steps/*/artifact/config.pbtxt")
    with config.open("r+b") as stream:
        stream.write(b"N")
    ended = workplace.optimize(*command, "--repository", workplace.path / "another")
    assert ended.code == 4
    assert "config.pbtxt has changed since it was written" in ended.err
    assert not (workplace.path / "another").exists()


def test_a_tracking_server_that_is_away_costs_nothing(workplace: Workplace, classifier: Classifier) -> None:
    ended = workplace.optimize(*quick(classifier, "--no-verify", "--json", "--tracking-uri", "http://127.0.0.1:9"))
    assert ended.code == 0, ended.err
    assert ended.json["release"]["version"] == 1
    assert ended.json["mlflow"]["run_id"] is None
    assert ended.json["mlflow"]["spooled"]
    assert "optimize records sync" in ended.err
    still = workplace.optimize("records", "sync", "--store", workplace.store)
    assert still.code == 5
    assert "still waits" in still.err


def test_a_port_that_is_taken_is_named(workplace: Workplace, classifier: Classifier) -> None:
    assert workplace.optimize(*quick(classifier, "--no-verify", "--no-record")).code == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = workplace.optimize("serve", workplace.repository, "--http-port", port, "--grpc-port", 0)
    if ended.code == 5:
        pytest.skip(f"this machine cannot have the server: {ended.err}")
    assert ended.code == 4
    assert str(port) in ended.err
