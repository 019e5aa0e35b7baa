"""Profile: all variants in turns, each in a process of its own, and what is said when one of them dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import helper
from onnx_artifacts import dataset, linear, model_artifact, rows, tokens

from pipeline.result import BatchFigures
from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.host import fingerprint_digest, host_fingerprint, usable_cores, versions
from stages.profile import ProfileOptions, faster, profile
from stages.profile.latency import calls_to_bound, median_interval, order_interval, percentile_figures
from stages.profile.processes import MeasuredProcesses
from stages.profile.profile import _batches
from stages.profile.race import race
from stages.runtime import RuntimeOptions
from stages.target import RUNTIME_LIBRARIES
from stages.variants import parse_variant, quantise

SHORT = {"batch_sizes": (1, 4), "budget_s": 0.4}


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    return dataset(tmp_path / "data", rows(np.random.default_rng(0).normal(size=(20, 32))))


def in_openvino(model: Artifact, path: Path) -> Artifact:
    path.mkdir()
    return quantise(model, parse_variant("fp32-openvino"), path)


def hanging(path: Path) -> Artifact:
    """A real graph that never answers: a loop of 2^62 turns."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", 7, []),
            helper.make_tensor_value_info("go", 9, []),
            helper.make_tensor_value_info("state", 1, None),
        ],
        [helper.make_tensor_value_info("on", 9, []), helper.make_tensor_value_info("next", 1, None)],
    )
    return model_artifact(
        path,
        [helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)],
        {"x": ("FLOAT", ["batch", 32])},
        {"y": ("FLOAT", ["batch", 32])},
        {"turns": np.array(2**62), "yes": np.array(True)},
    )


class Reports:
    """A progress that acts when it hears that measuring has begun."""

    def __init__(self, act: Any) -> None:
        self.act, self.done = act, False

    def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
        if note.startswith("batch size") and not self.done:
            self.done = True
            self.act()


def send(name: str, number: int) -> None:
    [process] = [child for child in psutil.Process().children(recursive=True) if child.name() == name[:15]]
    os.kill(process.pid, number)


def test_every_variant_gets_its_figures(tmp_path: Path, data: Artifact) -> None:
    out = tmp_path / "out"
    out.mkdir()
    large, small = np.ones((32, 64)), np.ones((32, 8))
    models = {"fp32": linear(tmp_path / "a", large), "int8-dynamic": linear(tmp_path / "b", small)}
    measured = profile(data, ProfileOptions(**SHORT), out, **models)
    about = measured.metadata
    assert measured.kind == "measurement"
    assert about["threads"] == usable_cores()
    assert about["host"] == host_fingerprint()
    assert about["libraries"] == versions(["onnxruntime", "numpy"])
    assert {figures["runtime"] for figures in about["variants"].values()} == {"onnxruntime"}
    assert set(about["variants"]) == set(models)
    with np.load(out / "latencies.npz") as arrays:
        latencies = dict(arrays)
    for name, figures in about["variants"].items():
        assert figures["error"] is None
        assert figures["size_bytes"] == (models[name].path / "model.onnx").stat().st_size
        assert figures["cold_start_ms"] > 0
        assert 10e6 < figures["peak_memory_bytes"] < 1e9
        for size in ("1", "4"):
            batch = BatchFigures.model_validate(figures["batches"][size])
            taken = latencies[f"{name}/{size}"]
            assert (taken.dtype, len(taken)) == (np.float64, batch.calls)
            latency = batch.latency_ms
            assert latency.p50 == np.median(taken)
            assert latency.p50_low <= latency.p50 <= latency.p50_high <= latency.p95_high <= latency.p99_high
            assert batch.throughput_per_s == pytest.approx(1000 * int(size) / taken.mean())
            assert figures["speedups"][size]["value"] > 0
    assert about["variants"]["fp32"]["speedups"]["1"]["value"] == 1.0


def test_the_variants_take_turns_in_changing_order_on_the_same_inputs(tmp_path: Path, data: Artifact) -> None:
    models = {name: linear(tmp_path / name, np.ones((32, 8))) for name in ("fp32", "a", "b")}
    (tmp_path / "out").mkdir()
    options = ProfileOptions(batch_sizes=(1,), budget_s=1.0, relative_interval=1e-9)
    measured = profile(data, options, tmp_path / "out", **models)
    with np.load(measured.path / "latencies.npz") as arrays:
        order, inputs = arrays["order/1"], arrays["inputs/1"]
        calls = measured.metadata["calls_per_turn"]["1"]
        assert {len(arrays[f"{name}/1"]) for name in models} == {len(order) * calls}
    assert len(order) > 3
    assert (np.sort(order, axis=1) == [0, 1, 2]).all()
    assert len({tuple(row) for row in order}) > 1
    assert (inputs == np.arange(len(order) * calls) % 7).all()
    assert measured.metadata["names"] == ["fp32", "a", "b"]


def test_the_budget_ends_what_will_not_settle_and_that_is_said(tmp_path: Path, data: Artifact) -> None:
    models = {"fp32": linear(tmp_path / "a", np.ones((32, 8)))}
    for name in ("never", "soon"):
        (tmp_path / name).mkdir()
    restless = ProfileOptions(**SHORT, relative_interval=1e-9)
    about = profile(data, restless, tmp_path / "never", **models).metadata
    assert about["budget_ended"]
    assert not any(batch["settled"] for batch in about["variants"]["fp32"]["batches"].values())
    calm = ProfileOptions(batch_sizes=(1, 4), budget_s=60, relative_interval=1e9, min_calls=1)
    about = profile(data, calm, tmp_path / "soon", **models).metadata
    assert not about["budget_ended"]
    assert all(batch["settled"] for batch in about["variants"]["fp32"]["batches"].values())


def test_variants_of_two_runtimes_are_measured_in_turns_in_processes_with_their_runtime_alone(
    tmp_path: Path, data: Artifact
) -> None:
    fp32 = linear(tmp_path / "a", np.ones((32, 8)))
    models = {"fp32": fp32, "openvino": in_openvino(fp32, tmp_path / "b")}
    (tmp_path / "out").mkdir()
    libraries: dict[str, set[str]] = {}

    def look() -> None:
        for child in psutil.Process().children(recursive=True):
            if child.name() in models:
                mapped = " ".join(region.path for region in child.memory_maps())
                libraries[child.name()] = {name for name in ("onnxruntime", "openvino") if f"/{name}/" in mapped}

    options = ProfileOptions(batch_sizes=(1,), budget_s=1.0, relative_interval=1e-9)
    about = profile(data, options, tmp_path / "out", Reports(look), **models).metadata
    assert libraries == {"fp32": {"onnxruntime"}, "openvino": {"openvino"}}
    assert about["libraries"] == versions(["onnxruntime", "openvino", "numpy"])
    variants = about["variants"]
    assert {name: figures["runtime"] for name, figures in variants.items()} == {
        "fp32": "onnxruntime", "openvino": "openvino",
    }  # fmt: skip
    assert [figures["error"] for figures in variants.values()] == [None, None]
    assert variants["openvino"]["size_bytes"] == sum(
        (models["openvino"].path / name).stat().st_size for name in ("model.xml", "model.bin")
    )
    assert variants["openvino"]["speedups"]["1"]["value"] > 0
    assert all(10e6 < figures["peak_memory_bytes"] < 1e9 for figures in variants.values())
    with np.load(tmp_path / "out" / "latencies.npz") as arrays:
        assert len({tuple(row) for row in arrays["order/1"]}) == 2
        assert len(arrays["fp32/1"]) == len(arrays["openvino/1"])


def test_a_runtime_can_be_chosen_for_all(tmp_path: Path, data: Artifact) -> None:
    models = {"fp32": linear(tmp_path / "a", np.ones((32, 8)))}
    (tmp_path / "out").mkdir()
    about = profile(data, ProfileOptions(**SHORT, runtime="openvino"), tmp_path / "out", **models).metadata
    assert about["variants"]["fp32"]["runtime"] == "openvino"
    assert about["libraries"] == versions(sorted({*RUNTIME_LIBRARIES["openvino"], "numpy"}))


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGSEGV, "killed by SIGSEGV"), (signal.SIGKILL, "killed by SIGKILL (out of memory?)")],
)
def test_a_variant_that_is_killed_ends_alone(tmp_path: Path, data: Artifact, number: int, said: str) -> None:
    models = {name: linear(tmp_path / name, np.ones((32, 8))) for name in ("fp32", "int8-dynamic", "fp16")}
    (tmp_path / "out").mkdir()
    reports = Reports(lambda: send("int8-dynamic", number))
    measured = profile(data, ProfileOptions(**SHORT), tmp_path / "out", reports, **models)
    variants = measured.metadata["variants"]
    assert {name: figures["error"] for name, figures in variants.items()} == {
        "fp32": None, "int8-dynamic": said, "fp16": None,
    }  # fmt: skip
    assert variants["int8-dynamic"]["batches"] == {}
    assert variants["fp16"]["batches"]["4"]["calls"] > 0
    with np.load(measured.path / "latencies.npz") as arrays:
        assert not [name for name in arrays if name.startswith("int8-dynamic")]
    with pytest.raises(InputError, match="int8-dynamic was not measured at batch size 1: killed by"):
        faster(measured, "int8-dynamic", over="fp32", batch=1)


def test_a_variant_that_hangs_or_cannot_be_opened_ends_alone(tmp_path: Path, data: Artifact) -> None:
    broken = linear(tmp_path / "broken", np.ones((32, 8)))
    (broken.path / "model.onnx").write_bytes(b"no graph")
    fp32 = linear(tmp_path / "a", np.ones((32, 8)))
    torn, whole = (in_openvino(fp32, tmp_path / name) for name in ("torn", "whole"))
    (torn.path / "model.bin").unlink()  # not emptied: its bytes may be shared
    (torn.path / "model.bin").touch()
    models = {"fp32": fp32, "hangs": hanging(tmp_path / "b"), "broken": broken, "torn": torn, "whole": whole}
    (tmp_path / "out").mkdir()
    measured = profile(data, ProfileOptions(**SHORT, timeout_s=5), tmp_path / "out", **models)
    errors = {name: figures["error"] for name, figures in measured.metadata["variants"].items()}
    assert errors["fp32"] is None and errors["whole"] is None
    assert errors["hangs"] == "no answer within 5 s"
    assert "ONNX Runtime cannot load" in errors["broken"]
    assert "OpenVINO cannot load" in errors["torn"]


def test_a_measuring_process_that_does_not_begin_is_told(tmp_path: Path) -> None:
    models = {"fp32": linear(tmp_path / "a", np.ones((32, 8))).path}
    runtimes = {"fp32": RuntimeOptions(name="onnxruntime")}
    with pytest.raises(StageError, match="the measuring process of onnxruntime ended with exit code 1 before it began"):
        MeasuredProcesses(models, tmp_path / "no data", {1: [[0]]}, runtimes, timeout_s=10)
    assert not [child for child in psutil.Process().children() if "stages.profile" in " ".join(child.cmdline())]


def test_nothing_is_left_running(tmp_path: Path, data: Artifact) -> None:
    models = {name: linear(tmp_path / name, np.ones((32, 8))) for name in ("fp32", "other")}
    models["openvino"] = in_openvino(models["fp32"], tmp_path / "ir")
    (tmp_path / "out").mkdir()
    before = psutil.Process().children(recursive=True)
    seen: list[psutil.Process] = []

    def interrupt() -> None:
        seen.extend(child for child in psutil.Process().children(recursive=True) if child not in before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(data, ProfileOptions(**SHORT), tmp_path / "out", Reports(interrupt), **models)
    assert len(seen) == 5  # the three, and one for each runtime
    assert not [process for process in seen if process.is_running()]


def test_a_variant_that_is_not_on_turn_stands_still(tmp_path: Path, data: Artifact) -> None:
    models = {"fp32": linear(tmp_path / "a", np.ones((32, 8)))}
    models["openvino"] = in_openvino(models["fp32"], tmp_path / "b")
    (tmp_path / "out").mkdir()
    seen: dict[str, list[str]] = {}

    def states(process: int) -> list[str]:
        """Of all its threads."""
        tasks = Path(f"/proc/{process}/task").iterdir()
        return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]

    def look() -> None:
        for child in psutil.Process().children(recursive=True):
            if child.name() in models:
                for _ in range(200):  # a signal takes a moment to arrive
                    if set(states(child.pid)) == {"T"}:
                        break
                    time.sleep(0.01)
                seen[child.name()] = states(child.pid)

    profile(data, ProfileOptions(**SHORT), tmp_path / "out", Reports(look), **models)
    assert seen.keys() == models.keys()
    for threads in seen.values():
        assert len(threads) >= usable_cores()
        assert set(threads) == {"T"}


def test_a_race_is_decided_by_turns(tmp_path: Path, data: Artifact) -> None:
    large, small = np.ones((32, 40_000)), np.ones((32, 8))
    models = {"unfused": linear(tmp_path / "a", large), "fused": linear(tmp_path / "b", small)}
    (tmp_path / "out").mkdir()
    options = ProfileOptions(baseline="unfused", batch_sizes=(1,), budget_s=20, until="decided")
    measured = profile(data, options, tmp_path / "out", **models)
    outcome = faster(measured, "fused", over="unfused", batch=1)
    assert outcome.decided
    assert outcome.ratio > 1
    reverse = faster(measured, "unfused", over="fused", batch=1)
    assert reverse.decided
    assert reverse.ratio < 1


def test_a_race_sees_through_a_machine_that_drifts() -> None:
    random = np.random.default_rng(0)
    drift = np.linspace(1, 5, 40)[:, None]
    slow = 1.1 * drift * random.lognormal(0, 0.02, (40, 5))
    quick = drift * random.lognormal(0, 0.02, (40, 5))
    outcome = race(quick, slow)
    assert outcome.ratio == pytest.approx(1.1, rel=0.02)
    assert outcome.decided
    assert not race(quick, drift * random.lognormal(0, 0.02, (40, 5))).decided
    few = race(quick[:5], slow[:5])
    assert (few.low, few.high, few.decided) == (None, None, False)


def test_batches_have_the_mix_of_lengths_of_the_data(tmp_path: Path) -> None:
    lengths = [int(length) for length in np.random.default_rng(0).permutation(np.arange(1, 101))]
    data = dataset(tmp_path / "data", tokens([[1] * length for length in lengths]))
    batches = _batches(data, [1, 10], 7)
    ones = [lengths[batch[0]] for batch in batches[1]]
    assert ones == sorted(ones)
    assert (ones[0], ones[3], ones[-1]) == (8, 51, 93)
    for batch in batches[10]:
        of = sorted(lengths[sample] for sample in batch)
        assert np.diff(of).tolist() == [10] * 9
    assert [len(batch) for batch in _batches(data, [150], 3)[150]] == [150] * 3


def test_a_graph_with_a_fixed_batch_is_measured_at_that_size(tmp_path: Path, data: Artifact) -> None:
    fixed = model_artifact(
        tmp_path / "m",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": ("FLOAT", [3, 32])},
        {"y": ("FLOAT", [3, 32])},
    )
    (tmp_path / "out").mkdir()
    measured = profile(data, ProfileOptions(**SHORT), tmp_path / "out", fp32=fixed)
    assert measured.metadata["batch_sizes"] == [3]
    assert measured.metadata["variants"]["fp32"]["batches"].keys() == {"3"}


def test_a_baseline_that_is_not_there_is_refused(tmp_path: Path, data: Artifact) -> None:
    with pytest.raises(InputError, match="the baseline 'fp32' is not among the models: fp16"):
        profile(data, ProfileOptions(), tmp_path, fp16=linear(tmp_path / "a", np.ones((32, 8))))


@pytest.mark.parametrize(("quantile", "calls"), [(0.5, 101), (0.95, 200), (0.99, 800)])
def test_intervals_of_percentiles_cover_the_true_one(quantile: float, calls: int) -> None:
    random = np.random.default_rng(0)
    true = -np.log(1 - quantile)
    intervals = [order_interval(random.exponential(size=calls), quantile) for _ in range(500)]
    covered = np.mean([low <= true <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.995
    assert calls_to_bound(0.99) == 368
    assert calls_to_bound(0.5) == 6


def test_the_interval_of_a_median_knows_that_the_mix_of_inputs_is_fixed() -> None:
    random = np.random.default_rng(0)
    kinds = np.arange(210) % 7
    level = np.array([1, 2, 3, 4, 5, 6, 7.0])
    true = 4.0
    covered, widths = [], []
    for _ in range(300):
        values = level[kinds] + 0.3 * random.normal(size=210)
        low, high = median_interval(values, kinds)
        covered.append(low <= true <= high)
        widths.append(high - low)
    assert np.mean(covered) >= 0.93
    naive = order_interval(level[kinds] + 0.3 * random.normal(size=210), 0.5)
    assert np.mean(widths) < 0.5 * (naive[1] - naive[0])
    one_kind = random.exponential(size=201)
    assert median_interval(one_kind, np.zeros(201)) == pytest.approx(order_interval(one_kind, 0.5), rel=0.1)


def test_percentiles_of_very_few_calls_are_still_figures() -> None:
    figures = percentile_figures(np.array([3.0]), np.zeros(1, dtype=np.int64))
    assert set(figures.values()) == {3.0}


def test_the_fingerprint_of_a_host_is_the_same_each_time() -> None:
    one = host_fingerprint()
    assert one == host_fingerprint()
    assert one["cores"] == len(os.sched_getaffinity(0))
    assert fingerprint_digest(one) != fingerprint_digest({**one, "cores": one["cores"] + 1})
    assert versions(["numpy", "no-such-distribution"]) == {"numpy": np.__version__}
