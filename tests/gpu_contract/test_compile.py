"""Compiling, as far as it goes without a GPU: what TensorRT is told, and what is refused in words that help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import stand_in
from google.protobuf import text_format
from real_bindings import Bindings
from tritonclient.grpc.model_config_pb2 import ModelConfig

from calibration.samples import Samples
from model_repository import RepositoryError
from model_repository.tensorrt_versions import SERVERS, ensure_loads, loads, record_server, tensorrt_of
from stages.artifact import Artifact
from stages.compile import AxisRange, CompileOptions
from stages.compile import api as api_module
from stages.compile.dtypes import ensure_promised
from stages.compile.inspector import ensure_computes_in, layer_dtypes
from stages.compile.profiles import lengths_of, profiles_of, ranges_of_lengths
from stages.compile.script import trtexec_arguments
from stages.compile.stage import build_kit, compile_engine
from stages.errors import InputError, RequirementError, StageError
from stages.gpu import GpuWatch, gpus
from stages.model import Engine, Model
from stages.onnx_model import signature_of, write_model
from stages.package import PackageOptions, package
from stages.runtime import open_session
from stages.runtime import tensorrt as tensorrt_runtime

TEXT = "(int64[batch, sequence] ids) => (float16[batch, sequence, 4] y) { y = Gather(table, ids) }"


def graph_of(text: str, opset: int = 20, **initialisers: Any) -> onnx_ir.Model:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in initialisers.items())
    return onnx_ir.from_proto(model)


@pytest.fixture
def half(tmp_path: Path) -> Artifact:
    """A table in 16-bit floats, whose rows are taken by ids [batch, sequence]."""
    graph = graph_of(TEXT, table=np.ones((9, 4), np.float16))
    (tmp_path / "half").mkdir()
    return write_model(graph, tmp_path / "half", signature=signature_of(graph), precision="fp16")


@pytest.fixture
def texts(tmp_path: Path) -> Artifact:
    """24 texts of 8 tokens, and one each of 5 and 12."""
    (tmp_path / "texts").mkdir()
    values = [np.zeros(length, np.int64) for length in [8] * 24 + [5, 12]]
    Samples({"ids": values}, {"ids": 0}).save(tmp_path / "texts")
    return Artifact.write(tmp_path / "texts", "dataset", {"samples": 26, "warnings": []})


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> stand_in.Recorded:
    """A machine with an H100 and TensorRT 10.13, in whose place stand-ins stand."""
    told = stand_in.Recorded()
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.tensorrt(told))
    monkeypatch.setitem(sys.modules, "pynvml", stand_in.pynvml())
    present = set(stand_in.members(sys.modules["tensorrt"]))
    monkeypatch.setattr(api_module, "USED", tuple(name for name in api_module.USED if name in present))
    return told


def test_the_stand_in_has_nothing_of_its_own(bindings: Bindings) -> None:
    program = (
        "import json, sys, tensorrt\nfrom functools import reduce\n"
        "def has(name):\n    try: return reduce(getattr, name.split('.'), tensorrt) is not None\n"
        "    except AttributeError: return False\n"
        "print(json.dumps([name for name in json.loads(sys.argv[1]) if not has(name)]))"
    )
    module = stand_in.tensorrt(stand_in.Recorded(), bindings.version)
    assert bindings.run(program, json.dumps(stand_in.members(module))) == []


@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 0b10), ("11.4.0.106", 0b1)])
def test_an_engine_is_built_strongly_typed_and_says_where_it_runs(
    version: str, flags: int, recorded: stand_in.Recorded, half: Artifact, texts: Artifact, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.tensorrt(recorded, version))
    options = CompileOptions(cache=tmp_path / "cache", workspace_mib=512, tf32=False, version_compatible=True)
    (tmp_path / "out").mkdir()
    made = compile_engine(half, options, tmp_path / "out", data=texts)
    assert recorded.told("create_network") == [flags]
    assert recorded.told("set_shape") == [("ids", (1, 5), (8, 8), (32, 12))]
    assert recorded.told("set_memory_pool_limit") == [("WORKSPACE", 512 * 2**20)]
    assert recorded.told("set_flag") == ["VERSION_COMPATIBLE"]
    assert recorded.told("clear_flag") == ["TF32"]
    [config] = recorded.told("config")
    assert config.profiling_verbosity.name == "DETAILED"
    assert config.plugins_to_serialize == ["libplugin.so"]
    about = Model.of(made)
    assert (about.runtime, about.file, about.precision) == ("tensorrt", "model.plan", "fp16")
    assert about.engine is not None
    assert (about.engine.tensorrt, about.engine.compute_capability, about.engine.cuda) == (version, "9.0", "13.0")
    assert about.engine.layers == {"fp16": 1}
    assert {"model.plan", "assets/engine/model.onnx", "assets/engine/build.sh"} <= made.files.keys()


def test_the_timing_cache_is_kept_for_this_device_and_version(
    recorded: stand_in.Recorded, half: Artifact, texts: Artifact, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        compile_engine(half, CompileOptions(cache=tmp_path / "cache"), tmp_path / name, data=texts)
    assert recorded.told("create_timing_cache") == [b"", b"+timed"]
    [kept] = (tmp_path / "cache").iterdir()
    assert kept.name == "10.13.3.9-sm90-nvidia-h100-80gb-hbm3.cache"
    recorded.accepts_cache = False
    (tmp_path / "third").mkdir()
    compile_engine(half, CompileOptions(cache=tmp_path / "cache"), tmp_path / "third", data=texts)
    assert recorded.told("create_timing_cache")[-1] == b"", "a cache that is refused is started anew"
    recorded.reads_cache = False
    kept.write_bytes(b"half a cache")
    (tmp_path / "fourth").mkdir()
    compile_engine(half, CompileOptions(cache=tmp_path / "cache"), tmp_path / "fourth", data=texts)
    assert recorded.told("create_timing_cache")[-2:] == [b"half a cache", b""], "and so is one that is damaged"
    assert kept.read_bytes() == b"+timed"


def test_an_operator_that_the_parser_refuses_is_named_with_its_node(
    recorded: stand_in.Recorded, half: Artifact, texts: Artifact, tmp_path: Path
) -> None:
    recorded.parser_errors = [stand_in.Refused(7, "encoder/unique", "Unique", "no importer registered for op: Unique")]
    with pytest.raises(StageError, match=r"Unique 'encoder/unique' \(node 7\): no importer .*\[UNSUPPORTED_NODE\]"):
        compile_engine(half, CompileOptions(cache=tmp_path / "cache"), tmp_path, data=texts)


def test_no_engine_is_a_failure_with_what_tensorrt_said(
    recorded: stand_in.Recorded, half: Artifact, texts: Artifact, tmp_path: Path
) -> None:
    recorded.plan, recorded.said = None, [("WARNING", "a hint"), ("ERROR", "Error Code 10: no tactic")]
    with pytest.raises(StageError, match=r"built no engine: Error Code 10: no tactic$"):
        compile_engine(half, CompileOptions(cache=tmp_path / "cache"), tmp_path, data=texts)


def test_an_engine_in_other_dtypes_than_promised_is_a_failure(
    recorded: stand_in.Recorded, half: Artifact, texts: Artifact, tmp_path: Path
) -> None:
    recorded.layers = [stand_in._layer("Float"), stand_in._layer("Half", "Reformat")]
    with pytest.raises(StageError, match=r"to compute in fp16, and its layers are: 1 in fp32"):
        compile_engine(half, CompileOptions(cache=tmp_path / "cache"), tmp_path, data=texts)


def test_ctrl_c_ends_the_build_at_its_next_step(
    recorded: stand_in.Recorded, half: Artifact, texts: Artifact, tmp_path: Path
) -> None:
    recorded.steps, recorded.interrupted_at = 1_000_000, 10
    # What a shell starts in the background ignores SIGINT, and so would these tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            compile_engine(half, CompileOptions(cache=tmp_path / "cache"), tmp_path, data=texts)
    finally:
        signal.signal(signal.SIGINT, before)
    assert recorded.stopped_at is not None
    assert not (tmp_path / "model.plan").exists()


def test_what_fails_while_it_is_told_ends_the_build_with_that(
    recorded: stand_in.Recorded, half: Artifact, texts: Artifact, tmp_path: Path
) -> None:
    class Gone:
        def update(self, note: str, done: float | None = None, total: float | None = None) -> None:
            if done is not None:
                raise BrokenPipeError("the run is gone")

    with pytest.raises(BrokenPipeError, match="the run is gone"):
        compile_engine(half, CompileOptions(cache=tmp_path / "cache"), tmp_path, progress=Gone(), data=texts)
    assert recorded.stopped_at == 0


def test_a_tensorrt_that_finds_no_driver_is_told(
    recorded: stand_in.Recorded, half: Artifact, texts: Artifact, tmp_path: Path
) -> None:
    recorded.finds_gpu = False
    with pytest.raises(
        RequirementError, match=r"10\.13\.3\.9 cannot begin; .*CUDA initialization failure with error: 35"
    ):
        compile_engine(half, CompileOptions(cache=tmp_path / "cache"), tmp_path, data=texts)


def test_fp8_on_a_gpu_without_it_is_refused(
    recorded: stand_in.Recorded, half: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in.pynvml((8, 0), "NVIDIA A100-SXM4-40GB"))
    eight = Artifact(half.path, "model", half.digest, half.files, {**half.metadata, "precision": "fp8"})
    with pytest.raises(RequirementError, match=r"FP8 needs a GPU of compute capability 8\.9 .*; this one has 8\.0"):
        compile_engine(eight, CompileOptions(cache=tmp_path / "cache"), tmp_path)


def test_without_a_gpu_it_says_so(half: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus() == []
    with pytest.raises(RequirementError, match="a TensorRT engine needs an NVIDIA GPU"):
        compile_engine(half, CompileOptions(), tmp_path)


def test_an_old_tensorrt_is_refused(recorded: stand_in.Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.tensorrt(recorded, "10.9.0.34"))
    with pytest.raises(RequirementError, match=r"10\.9\.0\.34 is older than 10\.12"):
        api_module.import_tensorrt()


# What is asked of the graph


def test_fp16_without_fp16_tensors_is_refused() -> None:
    graph = graph_of("(float[b, 4] x) => (float[b, 4] y) { y = MatMul(x, w) }", w=np.ones((4, 4), np.float32))
    with pytest.raises(StageError, match=r"promises fp16 and stores no FLOAT16 tensor \(it has 1 FLOAT\)"):
        ensure_promised(graph, "fp16")


@pytest.mark.parametrize(("precision", "opset"), [("int4", 21), ("fp8", 19)])
def test_an_opset_that_is_too_old_is_refused(precision: str, opset: int) -> None:
    graph = graph_of("(float[b, 4] x) => (float[b, 4] y) { y = Relu(x) }", opset - 1)
    with pytest.raises(StageError, match=rf"takes ONNX opset {opset}, and the graph has opset {opset - 1}: convert"):
        ensure_promised(graph, precision)


def test_blocks_of_another_size_and_scales_for_a_whole_weight_are_refused() -> None:
    import ml_dtypes

    blocks = graph_of(
        "(float[b, 64] x) => (float[b, 4] y) "
        "{ w = DequantizeLinear<axis = 0, block_size = 32>(q, s) y = MatMul(x, w) }",
        21, q=np.ones((64, 4), np.int8), s=np.ones((2, 4), np.float32),
    )  # fmt: skip
    stored = blocks.graph.initializers["q"]
    stored.const_value = onnx_ir.tensor(np.ones((64, 4), ml_dtypes.int4), name="q")
    with pytest.raises(StageError, match="blocks of 32; TensorRT's INT4 takes blocks of 128"):
        ensure_promised(blocks, "int4")
    whole = graph_of(
        "(float[b, 4] x) => (float[b, 4] y) "
        "{ a = QuantizeLinear(x, t, z) c = DequantizeLinear(a, t, z) w = DequantizeLinear(q, s) y = MatMul(c, w) }",
        21, q=np.ones((4, 4), np.int8), s=np.float32(1), t=np.float32(1), z=np.int8(0),
    )  # fmt: skip
    with pytest.raises(StageError, match="one scale for the whole weight; a scale for each channel was promised"):
        ensure_promised(whole, "int8")


# Profiles


def test_a_dynamic_axis_without_a_range_is_refused(half: Artifact) -> None:
    signature = Model.of(half).signature
    with pytest.raises(InputError, match=r"'sequence' of the input 'ids' is dynamic.*profiles: \[\{sequence: \[min"):
        profiles_of(signature, CompileOptions())
    with pytest.raises(InputError, match=r"names the axis 'tokens'; the dynamic axes .* are batch, sequence"):
        profiles_of(signature, CompileOptions.model_validate({"profiles": [{"tokens": [1, 2, 3]}]}))


@pytest.mark.parametrize("wrong", [[32, 8, 64], [8, 64, 32]])
def test_a_range_out_of_order_is_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="goes from min over opt to max"):
        AxisRange.model_validate(wrong)


def test_ranges_come_from_the_data_and_split_where_lengths_spread(half: Artifact, texts: Artifact) -> None:
    lengths = lengths_of(Samples.load(texts.path), Model.of(half).signature)
    assert list(lengths) == ["sequence"]
    assert ranges_of_lengths(lengths["sequence"]) == [AxisRange(min=5, opt=8, max=12)]
    spread = np.array([6] * 30 + [10] * 5 + [60] * 4 + [200])
    ranges = ranges_of_lengths(spread)
    assert [(one.min, one.opt, one.max) for one in ranges] == [(6, 6, 8), (9, 10, 64), (65, 200, 200)]
    assert all(one.max + 1 == other.min for one, other in pairwise(ranges)), "nothing falls through"


def test_a_batch_is_run_by_the_profile_that_takes_it() -> None:
    profiles = ({"ids": ((1, 1), (8, 8), (32, 16))}, {"ids": ((1, 17), (8, 60), (32, 200))})
    for length, index in ((16, 0), (17, 1)):
        assert tensorrt_runtime.profile_for(profiles, {"ids": np.zeros((2, length))}) == index
    with pytest.raises(InputError, match=r"takes ids \[1, 1\] to \[32, 16\]; .* was given ids \[33, 4\]: widen"):
        tensorrt_runtime.profile_for(profiles, {"ids": np.zeros((33, 4))})


# After the build


def test_the_inspector_s_words_are_read() -> None:
    words = {
        "Row major linear FP16 format": "fp16", "Half": "fp16", "Float": "fp32", "BFloat16": "bf16",
        "Thirty-two wide channel vectorized row major Int8 format.": "int8", "FP8": "fp8", "Int4": "int4",
    }  # fmt: skip
    for word, dtype in words.items():
        assert layer_dtypes(json.dumps({"Layers": [stand_in._layer(word)]})) == {dtype: 1}
    assert layer_dtypes(json.dumps({"Layers": [stand_in._layer("Half", "Reformat")]})) == {}
    with pytest.raises(StageError, match="no more than the names"):
        layer_dtypes('{"Layers": ["a layer"]}')
    ensure_computes_in("fp32", {})


def test_a_plan_from_another_version_is_refused(recorded: stand_in.Recorded, half: Artifact, tmp_path: Path) -> None:
    engine = Engine(tensorrt="10.14.1.48", compute_capability="9.0", device="H100", driver="580", cuda="13.0")
    about = Model.of(half).model_copy(update={"file": "model.plan", "runtime": "tensorrt", "engine": engine})
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "model.plan").write_bytes(b"plan")
    made = Artifact.write(tmp_path / "plan", "model", about.model_dump(mode="json"))
    with pytest.raises(
        InputError, match=r"built by TensorRT 10\.14\.1\.48 and is not version-compatible; here is 10\.13"
    ):
        open_session(made)
    with pytest.raises(InputError, match=r"no ONNX graph"):
        from stages.runtime import RuntimeOptions

        open_session(made, RuntimeOptions(name="onnxruntime-cuda"))


def test_a_repository_takes_no_plan_that_its_server_cannot_load(tmp_path: Path) -> None:
    engine = {"tensorrt": "10.14.1.48", "version_compatible": False}
    ensure_loads(tmp_path, engine)  # nothing is noted of its server
    record_server(tmp_path, "26.02-trtllm-python-py3")
    with pytest.raises(
        RepositoryError, match=r"26\.02-trtllm-python-py3 with TensorRT 10\.13\.3\.9, which cannot load"
    ):
        ensure_loads(tmp_path, engine)
    record_server(tmp_path, "10.14.1.48")
    ensure_loads(tmp_path, engine)
    with pytest.raises(RepositoryError, match=r"nothing is known of the TensorRT of the server '26\.02-py3'"):
        record_server(tmp_path, "26.02-py3")
    assert all(tensorrt_of(tag) == version for tag, version in SERVERS.items())


@pytest.mark.parametrize(
    ("built", "compatible", "served", "can"),
    [
        ("10.13.3.9", False, "10.13.3.9", True), ("10.13.3.9", False, "10.14.1.48", False),
        ("10.13.3.9", True, "10.14.1.48", True), ("10.14.1.48", True, "10.13.3.9", False),
        ("10.14.1.48", True, "11.4.0.106", True), ("11.4.0.106", True, "12.0.0.1", False),
    ],
)  # fmt: skip
def test_versions_that_load_each_other_s_plans(built: str, compatible: bool, served: str, can: bool) -> None:
    assert loads(built, compatible, served) == can


# The kit


def test_the_kit_s_script_passes_the_shell_and_says_everything(half: Artifact, texts: Artifact, tmp_path: Path) -> None:
    (tmp_path / "kit").mkdir()
    kit = build_kit(half, CompileOptions(), tmp_path / "kit", data=texts)
    script = kit.path / "build.sh"
    assert os.access(script, os.X_OK)
    trtexec = tmp_path / "trtexec"
    trtexec.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    trtexec.chmod(0o755)
    told = subprocess.run(
        [script], env={"TRTEXEC": str(trtexec), "PATH": "/bin:/usr/bin"}, capture_output=True, text=True
    )
    where, *arguments = told.stdout.splitlines()
    assert where == str(kit.path.resolve())
    assert {"--onnx=model.onnx", "--saveEngine=model.plan", "--stronglyTyped", "--optShapes=ids:8x8"} <= set(arguments)


def test_several_profiles_and_options_are_told_to_trtexec() -> None:
    from stages.compile.profiles import Shapes

    profiles = [{"ids": Shapes((1, 1), (8, 8), (32, 16))}, {"ids": Shapes((1, 17), (8, 60), (32, 200))}]
    options = CompileOptions(tf32=False, version_compatible=True, hardware_compatible="ampere-plus", workspace_mib=64)
    words = trtexec_arguments("model.onnx", "model.plan", profiles, options)
    assert words[-8:-4] == ["--profile=0", "--minShapes=ids:1x1", "--optShapes=ids:8x8", "--maxShapes=ids:32x16"]
    wanted = {"--noTF32", "--versionCompatible", "--hardwareCompatibilityLevel=ampere+", "--memPoolSize=workspace:64M"}
    assert wanted <= set(words)


# The release


def test_an_engine_is_released_for_its_gpu(
    recorded: stand_in.Recorded, half: Artifact, texts: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = {
        "profiles": [{"batch": [1, 4, 16], "sequence": [1, 8, 16]}, {"batch": [1, 4, 16], "sequence": [17, 60, 200]}]
    }
    (tmp_path / "out").mkdir()
    made = compile_engine(half, CompileOptions.model_validate(profiles | {"cache": tmp_path / "c"}), tmp_path / "out")
    signature = Model.of(made).signature
    import stages.package as module

    server = module._SERVERS["tensorrt"]
    monkeypatch.setitem(
        module._SERVERS, "tensorrt", module._Server(server.backend, lambda path: signature, "TensorRT", gpu=True)
    )
    (tmp_path / "release").mkdir()
    release = package(model=made, options=PackageOptions(name="table", max_batch_size=64), out=tmp_path / "release")
    config = text_format.Parse((release.path / "config.pbtxt").read_text(), ModelConfig())
    assert (config.backend, config.max_batch_size) == ("tensorrt", 16)
    [group] = config.instance_group
    assert (group.kind, list(group.profile)) == (group.KIND_GPU, ["0", "1"])
    assert dict(config.cc_model_filenames) == {"9.0": "model.plan"}
    assert not config.optimization.cuda.graphs, "the sequence axis is dynamic"
    assert release.metadata["engine"]["tensorrt"] == "10.13.3.9"


def test_the_watch_records_what_the_gpu_did(recorded: stand_in.Recorded) -> None:
    with GpuWatch() as watch:
        pass
    figures = watch.figures()
    assert figures["sm_clock_mhz"] == {"least": 1980.0, "median": 1980.0, "most": 1980.0}
    assert figures["power_w"] is None, "this board does not tell"
    assert figures["throttled"] == ["power cap", "software thermal slowdown"]
