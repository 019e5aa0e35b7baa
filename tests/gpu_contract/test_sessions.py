"""Sessions on a GPU, with stand-ins for CUDA and TensorRT: what is computed, what is captured, and what is freed."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import stand_in
import stand_in_cuda

from model_repository.signature import Signature, TensorSpec
from stages.artifact import Artifact
from stages.compile import api as api_module
from stages.errors import InputError, RequirementError, StageError
from stages.gpu import gpus, require_gpu
from stages.model import Engine, Model
from stages.onnx_model import signature_of, write_model
from stages.runtime import RuntimeOptions, Session, open_session
from stages.runtime import onnxruntime_cuda as cuda_runtime
from stages.runtime.cuda import Device

DYNAMIC = ({"x": ((1, 4), (2, 4), (8, 4))},)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[stand_in_cuda.Device]:
    """A device; in the end nothing of it may still be held."""
    held = stand_in_cuda.Device()
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = stand_in_cuda.runtime(held)  # type: ignore[attr-defined]
    for name, module in (
        ("cuda", types.ModuleType("cuda")), ("cuda.bindings", bindings), ("cuda.bindings.runtime", bindings.runtime),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    yield held
    assert held.leftovers() == {}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> stand_in.Recorded:
    told = stand_in.Recorded()
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.tensorrt(told))
    present = set(stand_in.members(sys.modules["tensorrt"]))
    monkeypatch.setattr(api_module, "USED", tuple(name for name in api_module.USED if name in present))
    return told


def engine(folder: Path, batch: int | str, *outputs: TensorSpec, **about: Any) -> Artifact:
    """An engine that takes `x` [batch, 4] and gives `y` of the same shape, and `outputs`."""
    x = TensorSpec(name="x", dtype="float32", shape=(batch, 4))
    signature = Signature(inputs=(x,), outputs=(x.model_copy(update={"name": "y"}), *outputs))
    built = Engine(
        tensorrt="10.13.3.9", compute_capability="9.0", device="H100", driver="580", cuda="13.0",
        profiles=DYNAMIC if isinstance(batch, str) else (), **about,
    )  # fmt: skip
    model = Model(file="model.plan", signature=signature, runtime="tensorrt", opset=21, engine=built)
    folder.mkdir()
    (folder / "model.plan").write_bytes(b"plan")
    return Artifact.write(folder, "model", model.model_dump(mode="json"))


def x(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((size, 4)).astype(np.float32)}


def doubles(session: Session, *sizes: int) -> None:
    for seed, size in enumerate(sizes):
        batch = x(size, seed)
        np.testing.assert_array_equal(session(batch)["y"], 2 * batch["x"])


def test_batches_of_all_sizes_are_answered(device: Any, recorded: stand_in.Recorded, tmp_path: Path) -> None:
    with open_session(engine(tmp_path / "model", "batch")) as session:
        doubles(session, 1, 8, 3, 8)
        with pytest.raises(InputError, match=r"takes x \[1, 4\] to \[8, 4\], and was given x \[9, 4\]"):
            session(x(9))
        assert len(session.device_ms) == 3  # type: ignore[attr-defined]
        assert "cudaStreamBeginCapture" not in device.calls
    session.close()
    with pytest.raises(StageError, match="was closed"):
        session(x(1))


def test_a_call_of_fixed_shape_is_captured_once_and_sees_new_numbers(
    device: Any, recorded: stand_in.Recorded, tmp_path: Path
) -> None:
    with open_session(engine(tmp_path / "model", 2)) as session:
        doubles(session, 2, 2, 2, 2)
        assert len(recorded.told("execute_async_v3")) == 2, "once done and once captured"
        assert device.calls.count("cudaGraphLaunch") == 3
        # What was changed before a capture would have to be done within it.
        assert recorded.told("set_input_shape") == [("x", (2, 4))]
        with pytest.raises(InputError, match=r"x has the shape \[1, 4\]; the model takes \[2, 4\]"):
            session(x(1))


def test_what_cannot_be_captured_is_run_without(device: Any, recorded: stand_in.Recorded, tmp_path: Path) -> None:
    recorded.captures = False
    with open_session(engine(tmp_path / "model", 2)) as session:
        doubles(session, 2, 2, 2)
    assert "cudaGraphLaunch" not in device.calls


def test_an_output_whose_size_only_the_run_tells(device: Any, recorded: stand_in.Recorded, tmp_path: Path) -> None:
    kept = TensorSpec(name="kept", dtype="float32", shape=("kept_0",))
    for name, batch in (("dynamic", "batch"), ("fixed", 2)):
        with open_session(engine(tmp_path / name, batch, kept)) as session:
            for seed in range(3):
                values = x(2, seed)["x"]
                np.testing.assert_array_equal(session({"x": values})["kept"], values[values > 0])


def test_memory_that_runs_out_is_told_and_all_is_freed(
    device: Any, recorded: stand_in.Recorded, tmp_path: Path
) -> None:
    with open_session(engine(tmp_path / "model", "batch")) as session:
        doubles(session, 1)
        device.refuses = {"cudaMalloc"}
        with pytest.raises(StageError, match="cudaMalloc: cudaErrorMemoryAllocation"):
            session(x(8))
        device.refuses = set()
        doubles(session, 8)


def test_an_engine_that_does_not_open_leaves_nothing(device: Any, recorded: stand_in.Recorded, tmp_path: Path) -> None:
    recorded.deserialises = False
    with pytest.raises(InputError, match="cannot load the engine"):
        open_session(engine(tmp_path / "one", 2))
    recorded.finds_gpu = False
    with pytest.raises(RequirementError, match=r"TensorRT 10\.13\.3\.9 cannot begin; is the driver new enough"):
        open_session(engine(tmp_path / "other", 2))


def test_closing_frees_the_rest_where_something_fails(device: Any, recorded: stand_in.Recorded, tmp_path: Path) -> None:
    session = open_session(engine(tmp_path / "model", 2))
    doubles(session, 2, 2)
    device.refuses = {"cudaStreamSynchronize"}
    with pytest.raises(StageError, match="cudaStreamSynchronize"):
        session.close()
    assert device.leftovers() == {"launchable": 1}
    device.held["launchable"].clear()


def test_the_gpu_is_the_one_that_cuda_uses(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    two = stand_in.pynvml()
    two.nvmlDeviceGetCount = lambda: 2
    two.nvmlDeviceGetHandleByPciBusId = {b"0000:65:00.0": 1}.__getitem__
    two.nvmlDeviceGetCudaComputeCapability = lambda handle: ((7, 5), (9, 0))[handle]
    monkeypatch.setitem(sys.modules, "pynvml", two)
    assert [gpu.capability for gpu in gpus()] == ["7.5", "9.0"]
    assert require_gpu("a test").capability == "9.0"


def test_what_the_driver_may_not_tell_is_left_out(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shy = stand_in.pynvml()

    def refused(*_: Any) -> Any:
        raise shy.NVMLError("Insufficient Permissions")

    shy.nvmlDeviceGetMemoryInfo = shy.nvmlDeviceGetClockInfo = shy.nvmlDeviceGetCurrentClocksEventReasons = refused
    monkeypatch.setitem(sys.modules, "pynvml", shy)
    from stages.gpu import GpuWatch

    assert gpus()[0].memory_bytes == 0
    with GpuWatch() as watch:
        pass
    assert watch.figures()["sm_clock_mhz"] is None
    assert watch.figures()["temperature_c"] == {"least": 41.0, "median": 41.0, "most": 41.0}


# ONNX Runtime


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, tuple[Any, ...]] = {}

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        assert (device_type, element_type) == ("cuda", np.float32)
        self.inputs[name] = (buffer_ptr, tuple(shape))

    def bind_output(
        self, name: str, device_type: str, device_id: int, element_type: Any = None, shape: Any = None,
        buffer_ptr: int | None = None,
    ) -> None:  # fmt: skip
        assert device_type == "cuda"
        self.outputs[name] = (buffer_ptr, shape)

    def get_outputs(self) -> list[Any]:
        return [
            types.SimpleNamespace(shape=lambda s=shape: list(s), data_ptr=lambda at=at: at)
            for at, shape in self.outputs.values()
        ]


def onnxruntime_gpu(device: stand_in_cuda.Device, **behaviour: Any) -> Any:
    """A stand-in for onnxruntime-gpu whose session doubles `x` into `y`."""
    opened: list[dict[str, str]] = []
    held: list[int] = []

    class InferenceSession:
        def __init__(self, path: str, options: Any, providers: Any, enable_fallback: int) -> None:
            assert not enable_fallback, "it would print to stdout and take the processor"
            opened.append(providers[0][1])
            if error := behaviour.get("raises"):
                raise error
            if providers[0][1].get("enable_cuda_graph") == "1" and behaviour.get("no_graph"):
                raise onnxruntime.capi.onnxruntime_pybind11_state.Fail(
                    "This session cannot use the graph capture feature as requested by the user as the model has "
                    "control flow nodes"
                )
            self._first = behaviour.get("first", providers[0][0])

        def get_providers(self) -> list[str]:
            return [self._first, "CPUExecutionProvider"]

        def io_binding(self) -> Binding:
            return Binding()

        def run_with_iobinding(self, binding: Binding, run_options: Any) -> None:
            address, shape = binding.inputs["x"]
            where, _ = binding.outputs["y"]
            if where is None:
                block = ctypes.create_string_buffer(int(np.prod(shape)) * 4)
                where = ctypes.addressof(block)
                device.memory[where] = block
                held.append(where)
            stand_in_cuda.values(where, shape)[...] = 2 * stand_in_cuda.values(address, shape)
            binding.outputs["y"] = (where, shape)

    printed = behaviour.get("prints", "")
    return types.SimpleNamespace(
        __version__="1.31.1",
        InferenceSession=InferenceSession,
        SessionOptions=onnxruntime.SessionOptions,
        RunOptions=onnxruntime.RunOptions,
        get_available_providers=lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: print(printed) if printed else opened.append({"preloaded": "first"}),
        opened=opened,
        held=held,
    )


@pytest.fixture
def graph(tmp_path: Path) -> Any:
    def made(batch: int | str | None) -> Artifact:
        tensor = "float" if batch is None else f"float[{batch}, 4]"
        model = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 20]> g ({tensor} x) => ({tensor} y) {{ y = Add(x, x) }}'
        )
        read = onnx_ir.from_proto(model)
        folder = tmp_path / f"graph {batch}"
        folder.mkdir()
        return write_model(read, folder, signature=signature_of(read), runtime="onnxruntime-cuda")

    return made


@contextlib.contextmanager
def stood_in(monkeypatch: pytest.MonkeyPatch, module: Any) -> Iterator[Any]:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", module)
        yield module


def test_onnx_runtime_finds_its_libraries_before_it_opens_anything(
    device: Any, graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch, sizes in (("batch", (1, 8, 3)), (2, (2, 2))):
        with stood_in(monkeypatch, onnxruntime_gpu(device)) as module, open_session(graph(batch)) as session:
            doubles(session, *sizes)
            assert module.opened[0] == {"preloaded": "first"}
            assert module.opened[1]["enable_cuda_graph"] == ("1" if batch == 2 else "0")
            for address in module.held:
                del device.memory[address]


def test_what_its_loader_prints_does_not_reach_stdout(
    device: Any, graph: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        stood_in(monkeypatch, onnxruntime_gpu(device, prints="Failed to load libcublas")),
        open_session(graph(2)) as session,
    ):
        doubles(session, 2)
    told = capsys.readouterr()
    assert (told.out, "Failed to load libcublas" in told.err) == ("", True)


@pytest.mark.parametrize("runtime", ["onnxruntime-cuda", "openvino"])
def test_a_number_without_axes_keeps_none(
    runtime: Any, device: Any, graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = graph(None)
    with (
        stood_in(monkeypatch, onnxruntime_gpu(device)),
        open_session(model, RuntimeOptions(name=runtime, threads=1)) as session,
    ):
        answer = session({"x": np.array(3, np.float32)})["y"]
    assert (answer.shape, float(answer)) == ((), 6.0)


def test_the_folder_for_engines_is_there_when_onnx_runtime_looks(
    device: Any, graph: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "not yet" / "there"
    options = RuntimeOptions.model_validate({"cuda": {"provider": "tensorrt", "cache": cache}})
    model = graph("batch")
    with stood_in(monkeypatch, onnxruntime_gpu(device)) as module, open_session(model, options):
        told = module.opened[-1]
    assert told["trt_engine_cache_path"] == str(cache / model.digest[:16])
    assert (cache / model.digest[:16]).is_dir()


def test_a_captured_session_takes_no_other_shape(device: Any, graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime replays a CUDA graph without a look at what is bound."""
    with (
        stood_in(monkeypatch, onnxruntime_gpu(device)),
        open_session(graph(2)) as session,
        pytest.raises(InputError, match=r"x has the shape \[1, 4\]; the model takes \[2, 4\]"),
    ):
        session(x(1))


def test_a_graph_that_cannot_be_captured_is_opened_without(
    device: Any, graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        stood_in(monkeypatch, onnxruntime_gpu(device, no_graph=True)) as module,
        open_session(graph(2)) as session,
    ):
        doubles(session, 2)
    assert [told.get("enable_cuda_graph") for told in module.opened] == [None, "1", "0"]


@pytest.mark.parametrize(
    ("provider", "behaviour", "says"),
    [
        (
            "cuda",
            {"first": "CPUExecutionProvider"},
            "are CUDA and cuDNN installed, of the versions that onnxruntime-gpu",
        ),
        ("tensorrt", {"first": "CUDAExecutionProvider"}, "are CUDA, cuDNN and TensorRT installed"),
        (
            "tensorrt",
            {"raises": RuntimeError("Please install TensorRT libraries")},
            "Please install TensorRT libraries",
        ),
        ("cuda", {"raises": ValueError("unknown option")}, "cannot use its CUDAExecutionProvider: unknown option"),
    ],
)
def test_a_provider_that_is_not_there_is_told(
    provider: str, behaviour: dict[str, Any], says: str, device: Any, graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RuntimeOptions.model_validate({"cuda": {"provider": provider}})
    with (
        stood_in(monkeypatch, onnxruntime_gpu(device, **behaviour)),
        pytest.raises(RequirementError, match=says),
    ):
        open_session(graph(2), options)


def test_products_on_the_processor_are_told_by_onnx_runtime_itself(tmp_path: Path) -> None:
    """The real ONNX Runtime, which has no other provider here."""
    text = "(float[b, 4] x, float[4, 4] w) => (float[b, 4] y) { s = Shape(x) z = Reshape(x, s) %s }"
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for body, slow in (("y = MatMul(z, w)", True), ("y = Relu(z)", False)):
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text % body}')
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        if not slow:
            cuda_runtime._ensure_on_gpu(session, tmp_path)
            continue
        with pytest.raises(InputError, match=r"would compute 1 MatMul of .* on the processor"):
            cuda_runtime._ensure_on_gpu(session, tmp_path)


def test_without_a_device_a_session_says_so(device: Any) -> None:
    device.refuses = {"cudaStreamCreate"}
    with pytest.raises(RequirementError, match="no CUDA device that can be used: cudaStreamCreate"):
        Device()
