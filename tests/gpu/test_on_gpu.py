"""On a real GPU: sessions of both runtimes answer as the CPU does, engines are what was asked for.

pytest tests/gpu
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.calibrate import CalibrateOptions, calibrate
from stages.compile import CompileOptions
from stages.compile.stage import compile_engine
from stages.errors import InputError, RequirementError, StageError
from stages.gpu import GpuWatch, gpus, require_gpu
from stages.model import Model
from stages.profile import ProfileOptions, profile
from stages.progress import SILENT
from stages.runtime import DEVICE_TIMES, RuntimeOptions, open_session
from stages.runtime.provider import TENSORRT, CudaOptions
from stages.runtime.tensorrt import signature_of
from stages.variants import parse_variant, quantise

Inputs = Callable[[int], dict[str, NDArray[Any]]]
TOLERANCES = {"fp32": 1e-2, "fp16": 2e-2, "bf16": 3e-2, "int8-static": 0.1, "fp8-static": 0.15, "int4": 0.3}


@pytest.fixture(scope="session")
def samples(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("samples")
    Samples({"x": list(inputs(128)["x"])}).save(path)
    about = {"samples": 128, "warnings": [], "evidence": "random numbers"}
    return Artifact.write(path, "dataset", about)


def near(answer: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]], tolerance: float) -> None:
    difference = np.abs(answer["y"] - expected["y"]).max() / np.abs(expected["y"]).max()
    assert difference < tolerance, difference


@pytest.mark.parametrize("batch", [None, 8], ids=["dynamic", "fixed"])
def test_onnx_runtime_s_cuda_provider_answers_as_the_cpu(
    batch: int | None, needs: Any, perceptron: Callable[..., Artifact], inputs: Inputs
) -> None:
    needs("cuda")
    model = perceptron(batch)
    with (
        open_session(model) as cpu,
        open_session(model, RuntimeOptions(name="onnxruntime-cuda")) as gpu,
        open_session(model, RuntimeOptions(name="onnxruntime-cuda", cuda=CudaOptions(tf32=False))) as exact,
    ):
        for size in (8,) * 4 if batch else (1, 8, 3, 64):  # a CUDA graph is captured, then launched
            near(gpu(inputs(size)), cpu(inputs(size)), 1e-2)
            near(exact(inputs(size)), cpu(inputs(size)), 1e-5)
        assert len(gpu.device_ms) == len(DEVICE_TIMES)  # type: ignore[attr-defined]
        assert all(time >= 0 for time in gpu.device_ms)  # type: ignore[attr-defined]
        with pytest.raises(InputError, match="lacks x"):
            gpu({})


@pytest.mark.parametrize("batch", [None, 8], ids=["dynamic", "fixed"])
def test_onnx_runtime_s_tensorrt_provider_answers_as_the_cpu_and_keeps_its_engine(
    batch: int | None, needs: Any, perceptron: Callable[..., Artifact], inputs: Inputs, tmp_path: Path
) -> None:
    needs("cuda")
    import onnxruntime

    if TENSORRT not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {TENSORRT}")
    model = perceptron(batch)
    profile = {} if batch else {"batch": [1, 8, 64]}
    cuda = CudaOptions.model_validate({"provider": "tensorrt", "cache": tmp_path, "profile": profile})
    try:
        gpu = open_session(model, RuntimeOptions(name="onnxruntime-cuda", cuda=cuda))
    except RequirementError as error:  # the provider is there, and TensorRT's libraries are not
        pytest.skip(str(error))
    with gpu, open_session(model) as cpu:
        for size in (8,) * 4 if batch else (1, 8, 3, 64):
            near(gpu(inputs(size)), cpu(inputs(size)), 1e-2)
    assert any((tmp_path / model.digest[:16]).iterdir())


@pytest.mark.parametrize("batch", [None, 8], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("variant", TOLERANCES)
def test_an_engine_answers_as_the_graph_that_it_was_built_from(
    variant: str,
    batch: int | None,
    needs: Any,
    perceptron: Callable[..., Artifact],
    inputs: Inputs,
    samples: Artifact,
    tmp_path: Path,
) -> None:
    needs("tensorrt")
    model = perceptron(batch)
    config = parse_variant({"type": variant, "runtime": "tensorrt"})
    for name in ("statistics", "graph", "engine"):
        (tmp_path / name).mkdir()
    statistics = calibrate(model, samples, CalibrateOptions(gram=True), tmp_path / "statistics")
    graph = quantise(model, config, tmp_path / "graph", SILENT, statistics)  # type: ignore[arg-type]
    options = CompileOptions(cache=tmp_path / "cache")
    try:
        engine = compile_engine(graph, options, tmp_path / "engine")
    except RequirementError as error:
        pytest.skip(str(error))
    about = Model.of(engine).engine
    assert about is not None
    assert about.compute_capability == require_gpu("a test").capability
    assert any((tmp_path / "cache").iterdir())
    assert signature_of(engine.path / "model.plan").inputs[0].name == "x"
    with open_session(graph) as cpu, open_session(engine) as gpu:
        for size in (8,) * 4 if batch else (1, 8, 3, 32):
            near(gpu(inputs(size)), cpu(inputs(size)), TOLERANCES[variant])
        if batch is None:
            with pytest.raises(InputError, match="widen its profiles"):
                gpu(inputs(33))


@pytest.mark.parametrize(
    "options",
    [
        {"strip": True}, {"refit": True}, {"weight_streaming": True}, {"version_compatible": True},
        {"hardware_compatible": "ampere-plus"}, {"hardware_compatible": "same-compute-capability"}, {"tf32": False},
        {"workspace_mib": 256, "optimisation_level": 0},
        {"profiles": [{"batch": [1, 2, 4]}, {"batch": [5, 16, 64]}]},
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_an_engine_with_options_answers_too(
    options: dict[str, Any], needs: Any, perceptron: Callable[..., Artifact], inputs: Inputs, tmp_path: Path
) -> None:
    needs("tensorrt")
    (tmp_path / "engine").mkdir()
    model = perceptron()
    built = CompileOptions.model_validate({"batch": [1, 8, 64], "cache": tmp_path / "cache"} | options)
    engine = compile_engine(model, built, tmp_path / "engine")
    with open_session(model) as cpu, open_session(engine) as gpu:
        for size in (1, 8, 3, 64):
            near(gpu(inputs(size)), cpu(inputs(size)), 1e-2 if built.tf32 else 1e-5)
        gpu.close()
        gpu.close()


def test_an_output_whose_size_only_the_run_tells(needs: Any, tmp_path: Path) -> None:
    needs("tensorrt")
    model = parsed("(float[n] x) => (int64[1, found] y) { y = NonZero(x) }", tmp_path / "model")
    (tmp_path / "engine").mkdir()
    options = CompileOptions.model_validate({"batch": [1, 8, 64], "cache": tmp_path / "cache"})
    engine = compile_engine(model, options, tmp_path / "engine")
    with open_session(engine) as gpu:
        for values in ([0, 1, 0, 2], [1], [0, 0], [1, 1, 1, 1, 1]):
            array = np.array(values, np.float32)
            np.testing.assert_array_equal(gpu({"x": array})["y"], np.nonzero(array))


def test_an_operator_that_tensorrt_does_not_know_is_named_with_its_node(needs: Any, tmp_path: Path) -> None:
    needs("tensorrt")
    model = parsed("(float[3, 3] x) => (float y) { [the_determinant] y = Det(x) }", tmp_path / "model")
    with pytest.raises(StageError, match=r"parser refuses .*Det"):
        compile_engine(model, CompileOptions(cache=tmp_path / "cache"), tmp_path)


def parsed(text: str, folder: Path) -> Artifact:
    import onnx
    import onnx_ir

    from stages.onnx_model import signature_of as of_graph
    from stages.onnx_model import write_model

    graph = onnx_ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}'))
    folder.mkdir()
    return write_model(graph, folder, signature=of_graph(graph))


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_a_measurement_tells_the_device_s_own_times_and_what_the_gpu_did(
    target: Any, needs: Any, perceptron: Callable[..., Artifact], samples: Artifact, tmp_path: Path
) -> None:
    needs(target)
    model = perceptron()
    for name in ("engine", "measured"):
        (tmp_path / name).mkdir()
    runtime = "onnxruntime-cuda"
    if target == "tensorrt":
        model, runtime = compile_engine(model, CompileOptions(cache=tmp_path / "cache"), tmp_path / "engine"), target
    options = ProfileOptions(baseline="fp32", batch_sizes=(1, 8), budget_s=5, runtime=runtime)
    made = profile(samples, options, tmp_path / "measured", fp32=model)
    figures = made.metadata["variants"]["fp32"]
    assert figures["error"] is None
    for size in ("1", "8"):
        parts = figures["device"][size]
        assert list(parts) == list(DEVICE_TIMES)
        assert sum(parts.values()) <= 1.5 * figures["batches"][size]["latency_ms"]["p99"]
    assert made.metadata["gpu"]["sm_clock_mhz"]["most"] > 0


def test_the_watch_sees_the_clock(needs: Any) -> None:
    if not gpus():
        pytest.skip("this machine has no NVIDIA GPU")
    with GpuWatch() as watch:
        pass
    assert watch.figures()["sm_clock_mhz"]["least"] > 0
