"""The real Triton on this machine: it answers rightly, says why it does not start, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from released import FIXED, Release, Released, Served

from model_repository import Repository, ServerError, server, supervisor
from model_repository.environment import ServerEnvironment
from model_repository.server import Server, serve
from stages.errors import InputError, RequirementError, StageError
from stages.runtime import RuntimeOptions, open_session
from stages.runtime.openvino import capabilities
from stages.runtime.triton import TritonSession

SHARED_MEMORY = Path("/dev/shm")


def regions() -> dict[str, int]:
    """The shared-memory regions of our servers, each with the number of its supervisor."""
    return {entry.name: int(entry.name.split("-")[2]) for entry in SHARED_MEMORY.glob("optimize-[0-9]*-[0-9]*-*")}


def orphans() -> list[str]:
    return [name for name, owner in regions().items() if not psutil.pid_exists(owner)]


def tree(process: int) -> list[psutil.Process]:
    found = psutil.Process(process)
    return [found, *found.children(recursive=True)]


def assert_ended(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def triton_options(address: str) -> RuntimeOptions:
    return RuntimeOptions(name="triton", address=address)


@contextmanager
def repository_of(tmp_path: Path, *releases: Released) -> Iterator[Path]:
    repository = Repository(tmp_path / "repository")
    for item in releases:
        repository.publish(item.release.metadata["name"], item.release.path, {})
    yield repository.path


@pytest.fixture
def small(tmp_path: Path, digits: Released) -> Path:
    """A repository with one small model."""
    with repository_of(tmp_path, digits) as path:
        return path


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("name", ["digits", "digits-bf16"])
def test_the_server_answers_as_the_model_does_in_this_process(served: Served, name: str, protocol: str) -> None:
    address = served.server.http_address if protocol == "http" else served.server.grpc_address
    item = served.releases[name]
    batch = {"x": np.random.default_rng(0).random((5, 64), dtype=np.float32)}
    with (
        open_session(item.release, triton_options(address)) as remote,
        open_session(item.model, RuntimeOptions(threads=1)) as local,
    ):
        np.testing.assert_allclose(remote(batch)["logits"], local(batch)["logits"], rtol=1e-6)
        assert [tensor.shape for tensor in remote.signature.inputs] == [("batch", 64)]
        assert remote.signature.outputs == local.signature.outputs


def test_openvino_is_served_in_the_precision_of_its_own_choice(served: Served) -> None:
    """As by the compiled backend, which cannot be asked for FP32."""
    item = served.releases["digits-fp32"]
    chosen = replace(item.model, metadata={**item.model.metadata, "arithmetic": "bf16"})
    batch = {"x": np.random.default_rng(0).random((5, 64), dtype=np.float32)}
    with TritonSession(served.server.grpc_address, "digits-fp32") as session:
        answer = session(batch)["logits"]
    with open_session(chosen, RuntimeOptions(threads=1)) as local, open_session(item.model) as fp32:
        np.testing.assert_array_equal(answer, local(batch)["logits"])
        assert np.array_equal(answer, fp32(batch)["logits"]) == ("BF16" not in capabilities())


@pytest.mark.parametrize("samples", [1, 20])
def test_openvino_takes_batches_of_any_size(served: Served, samples: int) -> None:
    batch = {"x": np.random.default_rng(0).random((samples, 64), dtype=np.float32)}
    with TritonSession(served.server.grpc_address, "digits-bf16") as session:
        together = session(batch)["logits"]
        alone = [session({"x": row[None]})["logits"] for row in batch["x"]]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-6)


def test_a_request_that_openvino_cannot_answer_leaves_the_others(served: Served) -> None:
    ones = np.ones((2, 3), np.float32)
    with TritonSession(served.server.grpc_address, "sum") as session:
        good, bad = {"a": ones, "b": ones}, {"a": ones, "b": np.ones((2, 4), np.float32)}
        asked = [(index % 3, session.submit(bad if index % 3 == 1 else good)) for index in range(30)]
        for kind, future in asked:
            if kind == 1:
                with pytest.raises(StageError, match=r"openvino: .*dim index: 1 mismatch"):
                    future.result()
            else:
                np.testing.assert_array_equal(future.result()["total"], 2 * ones)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_text_and_one_value_a_sample_go_there_and_back(served: Served, protocol: str) -> None:
    address = served.server.http_address if protocol == "http" else served.server.grpc_address
    with open_session(served.releases["words"].release, triton_options(address)) as session:
        words = np.array(["naïve", "", "日本"], dtype=object)
        # One value a sample goes over the wire as an axis of length 1, which the server takes off again.
        assert session({"word": words[:, None]})["same"].ravel().tolist() == words.tolist()


def test_a_model_without_a_batch_axis_is_served_as_it_is(served: Served) -> None:
    with open_session(served.releases["fixed"].release, triton_options(served.server.grpc_address)) as session:
        answer = session({"x": np.array([[-1, 2, -3, 4]], np.float32)})
    assert answer["y"].tolist() == [[0, 2, 0, 4]]
    assert session.signature.inputs[0].shape == (1, 4)


def test_requests_of_one_execution_do_not_disturb_each_other(served: Served) -> None:
    """Of different lengths, of different numbers of rows, and some that the model cannot answer."""
    generator = np.random.default_rng(1)
    before = served.server.metrics()
    with TritonSession(served.server.grpc_address, "table") as session:
        asked: list[tuple[np.ndarray[Any, Any], Future[Any]]] = []
        for index in range(120):
            ids = generator.integers(0, 4, (1 + index % 3, 2 + index // 6 % 2))  # Triton joins neighbours of one shape
            if index % 10 == 0:
                ids[0, 0] = 99
            asked.append((ids, session.submit({"ids": ids})))
        for ids, future in asked:
            if ids.max() < 4:
                np.testing.assert_array_equal(future.result()["values"], 10 + 10.0 * ids)
            else:
                with pytest.raises(StageError, match="out of data bounds"):
                    future.result()
    after = served.server.metrics()
    counted = {
        name: after.total(name, model="table") - before.total(name, model="table")
        for name in ("nv_inference_request_success", "nv_inference_exec_count")
    }
    assert counted["nv_inference_exec_count"] < counted["nv_inference_request_success"]


def test_the_server_says_what_it_does_not_accept(served: Served) -> None:
    with TritonSession(served.server.grpc_address, "digits") as session:
        with pytest.raises(StageError, match="batch-size must be <= 8"):
            session({"x": np.zeros((9, 64), np.float32)})
        with pytest.raises(InputError, match="x is float64, digits takes float32"):
            session({"x": np.zeros((1, 64))})
        with pytest.raises(InputError, match="the batch has y; digits takes x"):
            session({"y": np.zeros((1, 64), np.float32)})


def test_a_session_needs_a_server_and_a_model_that_it_serves(served: Served, digits: Released) -> None:
    with pytest.raises(InputError, match="is not the address of a Triton server"):
        open_session(digits.release, triton_options("localhost:8000"))
    for address in (served.server.http_address, served.server.grpc_address):
        with pytest.raises(InputError, match="does not serve 'nothing'"):
            TritonSession(f"{address}/v2/models/nothing")
        with pytest.raises(InputError, match="does not serve 'digits'"):
            TritonSession(f"{address}/v2/models/digits/versions/7")
        with pytest.raises(InputError, match="no model is named"):
            open_session(digits.model, triton_options(address))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for scheme in ("http", "grpc"):
            with pytest.raises(RequirementError, match="no Triton server answers"):
                TritonSession(f"{scheme}://127.0.0.1:{unused.getsockname()[1]}", "digits")


WRONG = {
    "dims": ("dims: 10", "dims: 11", "output 'logits': .* do not fit the graph's"),
    "dtype": ("TYPE_FP32", "TYPE_FP16", "input 'x' is TYPE_FP16 in the configuration, TYPE_FP32 in the graph"),
    "tensor": ('"logits"', '"logit"', "unexpected output 'logit'; the graph has logits"),
    "backend": ('"onnxruntime"', '"onnxruntimes"', "unable to find backend library for backend 'onnxruntimes'"),
    "mode": (
        "parameters",
        'parameters { key: "execution_mode" value { string_value: "2" } }\nparameters',
        "execution_mode is '2'",
    ),
}


def test_a_server_that_cannot_load_its_models_quotes_the_reasons(
    small: Path, released: Release, triton: ServerEnvironment
) -> None:
    text = (small / "digits" / "config.pbtxt").read_text()
    graph = small / "digits" / "1" / "model.onnx"
    for name, (right, wrong, _) in WRONG.items():
        (small / name / "1").mkdir(parents=True)
        os.link(graph, small / name / "1" / "model.onnx")
        assert right in text
        (small / name / "config.pbtxt").write_text(text.replace('"digits"', f'"{name}"').replace(right, wrong))
    fixed = released("fixed", FIXED).release.path
    (small / "batched" / "1").mkdir(parents=True)
    os.link(fixed / "model.onnx", small / "batched" / "1" / "model.onnx")
    (small / "batched" / "config.pbtxt").write_text(
        (fixed / "config.pbtxt").read_text().replace('"fixed"', '"batched" max_batch_size: 4').replace("dims: 1\n", "")
    )
    with pytest.raises(ServerError) as caught, Server(small, triton):
        pass
    message = str(caught.value)
    for name, (_, _, reason) in WRONG.items():
        assert re.search(f"failed to load '{name}' version 1: [^;]*{reason}", message), message
    assert re.search("failed to load 'batched'.* has no dynamic first axis", message)
    assert "At:" not in message and "\\n" not in message and "CudaDriverHelper" not in message
    assert not orphans()


WRONG_FOR_OPENVINO = {
    "dims": ("dims: 10", "dims: 11", r"output 'logits': .* \[-1, 11\] do not fit the graph's \[-1, 10\]"),
    "batched": ("instance_group", "max_batch_size: 8\ninstance_group", "max_batch_size is 8: .* no batching"),
}
WRONG_PARAMETERS_FOR_OPENVINO = {
    "threads": ("INFERENCE_NUM_THREADS", "many", "INFERENCE_NUM_THREADS is 'MANY'; it must be a non-negative number"),
    "device": ("TARGET_DEVICE", "GPU", "TARGET_DEVICE is 'GPU'; it must be CPU"),
    "misspelt": ("NUM_STREAM", "1", "the openvino backend has no parameter NUM_STREAM"),
}


def with_parameters(text: str, **parameters: str) -> str:
    """The configuration with parameters added, or replaced: of a key that occurs twice the last is taken."""
    added = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    return "\n".join([text, *added])


def test_wrong_configurations_for_openvino_are_refused_with_the_reasons(
    tmp_path: Path, digits_fp32: Released, triton: ServerEnvironment
) -> None:
    with repository_of(tmp_path, digits_fp32) as path:
        text = (path / "digits-fp32" / "config.pbtxt").read_text()
        graph = path / "digits-fp32" / "1" / "model.xml"
    reasons = {"torn": "openvino: .*Empty weights data in bin file or bin file cannot be found!"}
    configs = {"torn": text}
    for name, (right, wrong, reasons[name]) in WRONG_FOR_OPENVINO.items():
        assert right in text
        configs[name] = text.replace(right, wrong)
    for name, (key, value, reasons[name]) in WRONG_PARAMETERS_FOR_OPENVINO.items():
        configs[name] = with_parameters(text, **{key: value})
    for name, config in configs.items():
        (path / name / "1").mkdir(parents=True)
        for file in [graph] if name == "torn" else [graph, graph.with_suffix(".bin")]:
            os.link(file, path / name / "1" / file.name)
        (path / name / "config.pbtxt").write_text(config.replace('"digits-fp32"', f'"{name}"'))
    with pytest.raises(ServerError) as caught, Server(path, triton):
        pass
    message = str(caught.value)
    for name, reason in reasons.items():
        assert re.search(f"failed to load '{name}' version 1: Internal: TritonModelException: {reason}", message), (
            message
        )
    assert "'digits-fp32'" not in message


def test_parameters_that_the_compiled_openvino_backend_reads_are_read(
    tmp_path: Path, digits_fp32: Released, triton: ServerEnvironment
) -> None:
    with repository_of(tmp_path, digits_fp32) as path:
        config = path / "digits-fp32" / "config.pbtxt"
    text = with_parameters(
        config.read_text(), HINT_BF16="yes", TARGET_DEVICE="cpu", ENABLE_BATCH_PADDING="YES",
        SKIP_OV_DYNAMIC_BATCHSIZE="NO", NUM_STREAMS="auto", PERFORMANCE_HINT="throughput",
    )  # fmt: skip
    config.write_text(text)
    with Server(path, triton, grace_s=0) as server, TritonSession(server.http_address, "digits-fp32") as session:
        assert session({"x": np.zeros((1, 64), np.float32)})["logits"].shape == (1, 10)


def test_modules_in_the_working_directory_are_not_the_servers(
    small: Path, triton: ServerEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    for name in ("numpy", "onnxruntime", "json"):
        (tmp_path / "here" / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    monkeypatch.chdir(tmp_path / "here")
    with Server(small, triton, grace_s=0) as server, TritonSession(server.http_address, "digits") as session:
        assert session({"x": np.zeros((1, 64), np.float32)})["logits"].shape == (1, 10)


def test_a_misspelt_field_is_quoted(small: Path, triton: ServerEnvironment) -> None:
    config = small / "digits" / "config.pbtxt"
    config.write_text(config.read_text().replace("dims:", "dimz:", 1))
    with (
        pytest.raises(
            ServerError, match=r'"inference.ModelInput" has no field named "dimz".*failed to read text proto'
        ),
        Server(small, triton),
    ):
        pass


def test_only_the_named_models_are_loaded(served: Served, triton: ServerEnvironment) -> None:
    with Server(served.repository, triton, models=["table"], grace_s=0) as other:
        with TritonSession(other.http_address, "table") as session:
            assert session({"ids": np.array([[3]])})["values"].tolist() == [[40]]
        with pytest.raises(InputError, match="does not serve 'digits'"):
            TritonSession(other.http_address, "digits")


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_a_taken_port_is_named_before_anything_starts(small: Path, triton: ServerEnvironment, service: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports: dict[str, Any] = {f"{service}_port": port}
        with pytest.raises(ServerError, match=f"{service} port {port} on 127.0.0.1 cannot be used .*in use"):
            Server(small, triton, **ports).start()
    with pytest.raises(ServerError, match="cannot share a port"):
        Server(small, triton, http_port=port, grpc_port=port).start()


@pytest.mark.parametrize("service", ["http", "grpc"])
def test_a_free_port_that_is_lost_to_another_is_replaced(
    small: Path, triton: ServerEnvironment, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = server._choose_ports
    chosen: list[dict[str, int]] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:

        def choose_badly_once(host: str, wanted: dict[str, int]) -> dict[str, int]:
            ports = choose(host, wanted)
            chosen.append(ports if chosen else {**ports, service: taken.getsockname()[1]})
            return chosen[-1]

        monkeypatch.setattr(server, "_choose_ports", choose_badly_once)
        with Server(small, triton, grace_s=0) as running:
            assert len(chosen) == 2
            assert running.metrics().total("nv_inference_request_success", model="digits") > 0  # the warm-up


def test_nothing_is_left_after_an_error_in_the_block(small: Path, triton: ServerEnvironment) -> None:

    def fail() -> None:
        with Server(small, triton) as running:
            processes.extend(tree(psutil.Process(running.pid).ppid()))
            assert len(processes) == 3  # the supervisor, the server, and the stub of its one instance
            assert list(regions().values()).count(processes[0].pid) == 1
            raise KeyError("in the block")

    processes: list[psutil.Process] = []
    with pytest.raises(KeyError, match="in the block"):
        fail()
    assert not any(process.is_running() for process in processes)
    assert not orphans()


SERVE = """
import os, sys, time
from pathlib import Path
from model_repository.environment import server_environment
from model_repository.server import serve

def ready(server):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(60)  # with a copy of everything that its parent has open
        os._exit(0)
    print(server.pid, server.http_address, flush=True)

serve(Path(sys.argv[1]), server_environment(), ready)
print("returned")
"""


@contextmanager
def serving(repository: Path, also: str = "") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that serves a repository, and the number of its server."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(repository), also], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline().split()[0])
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serving_ends_cleanly_at_a_signal(small: Path, triton: ServerEnvironment, number: signal.Signals) -> None:
    with serving(small) as (process, running):
        processes = tree(psutil.Process(running).ppid())
        process.send_signal(number)
        out, err = process.communicate()
        assert (process.returncode, out, err) == (0, "returned\n", "")
        assert not any(item.is_running() for item in processes)
        assert not orphans()


@pytest.mark.parametrize("victim", ["owner", "owner with children", "supervisor"])
def test_nothing_is_left_after_a_kill(small: Path, triton: ServerEnvironment, victim: str) -> None:
    with serving(small, "fork" if victim == "owner with children" else "") as (process, running):
        processes = tree(psutil.Process(running).ppid())
        children = [item for item in psutil.Process(process.pid).children() if item not in processes]
        assert len(children) == (victim == "owner with children")
        (processes[0] if victim == "supervisor" else process).kill()
        assert_ended(processes)
        process.wait()
        assert not orphans()
        for child in children:
            child.kill()


def test_serving_raises_when_the_server_dies(small: Path, triton: ServerEnvironment) -> None:
    def kill(running: Server) -> None:
        processes.extend(tree(running.pid))
        os.kill(running.pid, signal.SIGKILL)

    processes: list[psutil.Process] = []
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ServerError, match=r"ended \(killed by SIGKILL\): its log does not say why"):
        serve(small, triton, kill)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert_ended(processes)
    assert not orphans()


def test_a_server_outlives_the_thread_that_started_it(small: Path, triton: ServerEnvironment) -> None:
    running = Server(small, triton, grace_s=0)
    thread = threading.Thread(target=running.start)
    thread.start()
    thread.join()
    try:
        time.sleep(1.5)  # the supervisor looks after its owner twice a second
        assert running.death() is None
        assert running.metrics().total("nv_inference_request_success", model="digits") > 0
    finally:
        running.stop()


def test_regions_of_dead_supervisors_are_swept_and_those_of_living_ones_kept() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    living = supervisor._own_prefix()
    names = {
        "dead": f"optimize-{namespace}-{ended.pid}-1-00000000-region",
        "number given again": f"optimize-{namespace}-{os.getpid()}-1-00000000-region",
        "living": f"{living}region",
        "of another container": f"optimize-{namespace + 1}-{ended.pid}-1-00000000-region",
        "of another program": "optimize-something-else",
    }
    try:
        for name in names.values():
            (SHARED_MEMORY / name).touch()
        supervisor.sweep_dead_regions()
        left = {what for what, name in names.items() if (SHARED_MEMORY / name).exists()}
        assert left == {"living", "of another container", "of another program"}
    finally:
        for name in names.values():
            (SHARED_MEMORY / name).unlink(missing_ok=True)
