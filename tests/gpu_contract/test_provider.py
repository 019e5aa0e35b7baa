"""ONNX Runtime on a GPU: what its providers are told here, and what a Triton is told to tell them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from model_repository import RepositoryError
from model_repository.config_gpu import GpuOptions
from pipeline import Recipe
from pipeline.plan import Step, check_step, profile_step, release_plan, variants_of
from stages.artifact import Artifact
from stages.errors import InputError
from stages.onnx_model import signature_of, write_model
from stages.package import PackageOptions, package
from stages.runtime import RuntimeOptions
from stages.runtime.provider import CudaOptions, providers_for

TEXT = "(int64[batch, sequence] ids) => (float[batch, sequence, 4] y) { y = Gather(table, ids) }"
PROFILE = {"sequence": [1, 16, 128]}


def model(folder: Path, precision: str = "fp32", seed: int = 0) -> Artifact:
    text = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {TEXT}')
    table = np.random.default_rng(seed).standard_normal((9, 4), np.float32)
    text.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    graph = onnx_ir.from_proto(text)
    folder.mkdir()
    return write_model(
        graph, folder, signature=signature_of(graph), precision=precision, runtime="onnxruntime-cuda"
    )  # fmt: skip


def published(made: Artifact, out: Path, **cuda: Any) -> ModelConfig:
    out.mkdir()
    options = PackageOptions(name="table", cuda=CudaOptions.model_validate(cuda))
    release = package(model=made, options=options, out=out)
    return text_format.Parse((release.path / "config.pbtxt").read_text(), ModelConfig())


def accelerators(config: ModelConfig) -> list[tuple[str, dict[str, str]]]:
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    return [(each.name, dict(each.parameters)) for each in found]


def test_a_session_on_cuda_states_tf32_and_captures_fixed_shapes(tmp_path: Path) -> None:
    made = model(tmp_path / "model")
    [(name, told)] = providers_for(CudaOptions(tf32=False), made, 7, fixed=True)
    assert name == "CUDAExecutionProvider"
    assert (told["user_compute_stream"], told["use_tf32"], told["enable_cuda_graph"]) == ("7", "0", "1")


def test_a_session_on_tensorrt_keeps_the_engines_of_each_model_apart(tmp_path: Path) -> None:
    options = CudaOptions.model_validate(
        {"provider": "tensorrt", "profile": PROFILE, "workspace_mib": 64, "cache": tmp_path}
    )
    folders = []
    for seed in (0, 1):
        made = model(tmp_path / f"model {seed}", "fp16", seed)
        (first, told), (second, cuda) = providers_for(options, made, 7, fixed=False)
        assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
        folders.append(told["trt_engine_cache_path"])
        assert told["trt_timing_cache_path"] == told["trt_engine_cache_path"] == str(tmp_path / made.digest[:16])
    # ONNX Runtime's Python package refuses "1" for a switch of this provider.
    switches = {"trt_engine_cache_enable", "trt_timing_cache_enable", "trt_fp16_enable", "trt_cuda_graph_enable"}
    assert {told[key] for key in switches} == {"True", "False"}
    assert told["trt_profile_max_shapes"] == "ids:32x128"
    assert told["trt_max_workspace_size"] == str(64 * 2**20)
    assert cuda["enable_cuda_graph"] == "0"
    assert folders[0] != folders[1]


def test_options_of_a_session_are_told_apart_by_their_profile() -> None:
    options = [
        CudaOptions.model_validate({"provider": "tensorrt", "profile": {"n": [1, 2, most]}}) for most in (3, 3, 4)
    ]
    assert len({RuntimeOptions(cuda=each) for each in options}) == 2


def test_a_release_on_cuda_states_tf32(tmp_path: Path) -> None:
    made = model(tmp_path / "model")
    for tf32, word in ((True, "1"), (False, "0")):
        config = published(made, tmp_path / word, tf32=tf32)
        assert accelerators(config) == [("cuda", {"use_tf32": word})]
        assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU


def test_a_release_on_tensorrt_says_so_with_its_cache_and_shapes(tmp_path: Path) -> None:
    made = model(tmp_path / "model", "fp16")
    config = published(
        made, tmp_path / "out", provider="tensorrt", server_cache="/var/cache/engines", profile=PROFILE,
        batch=[1, 4, 8], optimisation_level=5, workspace_mib=1024,
    )  # fmt: skip
    (name, told), cuda = accelerators(config)
    assert name == "tensorrt"
    folder = f"/var/cache/engines/{made.digest[:16]}"
    assert told == {
        "precision_mode": "FP16", "max_workspace_size_bytes": str(2**30), "trt_builder_optimization_level": "5",
        "trt_engine_cache_enable": "1", "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1", "trt_timing_cache_path": folder,
        "trt_profile_min_shapes": "ids:1x1", "trt_profile_opt_shapes": "ids:4x16",
        "trt_profile_max_shapes": "ids:8x128",
    }  # fmt: skip
    assert cuda == ("cuda", {"use_tf32": "1"}), "what TensorRT leaves goes to CUDA, behind it"
    bare = published(made, tmp_path / "bare", provider="tensorrt")
    assert "trt_engine_cache_path" not in accelerators(bare)[0][1]


def test_a_parameter_that_triton_does_not_know_is_refused(tmp_path: Path) -> None:
    from model_repository.config import ConfigOptions, build
    from stages.model import Model

    signature = Model.of(model(tmp_path / "model")).signature
    with pytest.raises(RepositoryError, match="knows no parameter 'trt_fp16_enable'"):
        build("m", signature, ConfigOptions(gpu=GpuOptions(tensorrt_provider={"trt_fp16_enable": "1"})))
    with pytest.raises(RepositoryError, match="a provider is ONNX Runtime's; the backend is tensorrt"):
        build("m", signature, ConfigOptions(backend="tensorrt", gpu=GpuOptions(tf32=True)))


@pytest.mark.parametrize(
    ("cuda", "says"),
    [
        ({"provider": "tensorrt", "tf32": False}, "has no switch for TF32"),
        ({"server_cache": "/cache"}, "server_cache: that is for TensorRT; add `provider: tensorrt`"),
        ({"provider": "tensorrt", "server_cache": "cache"}, "is an absolute path, and 'cache' is none"),
        ({"provider": "tensorrt", "server_cache": "/a/../b"}, "is an absolute path"),
        ({"provider": "rocm"}, "Input should be 'cuda' or 'tensorrt'"),
        ({"provider": "tensorrt", "profile": {"sequence": [9, 8, 7]}}, "goes from min over opt to max"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(cuda: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Recipe.parse({"model": "x", "target": "cuda", "cuda": cuda})


def test_a_profile_of_another_model_s_axes_is_refused(tmp_path: Path) -> None:
    made = model(tmp_path / "model")
    with pytest.raises(InputError, match="names the axis 'tokens'"):
        published(made, tmp_path / "out", provider="tensorrt", profile={"tokens": [1, 2, 3]})


def test_the_recipe_reaches_every_session_and_the_release() -> None:
    recipe = Recipe.parse(
        {"model": "x", "target": "cuda", "cuda": {"provider": "tensorrt", "profile": PROFILE}, "verify": False}
    )
    assert Recipe.parse(json.loads(recipe.model_dump_json(serialize_as_any=True))) == recipe
    variant = variants_of(recipe)[1]
    steps = [
        check_step(recipe, variant), profile_step(recipe, {"fp32": "fp32", "fp16": "fp16"}),
        *release_plan(recipe, "m", "fp16", 16, "onnxruntime-cuda"),
    ]  # fmt: skip
    for step in steps:
        assert isinstance(step, Step)
        told = step.options.model_dump()["cuda"]
        assert (told["provider"], told["batch"]) == ("tensorrt", {"min": 1, "opt": 1, "max": 32})
    # For another target nothing of it is in the key of a step.
    cpu = Recipe.parse({"model": "x", "cuda": {"tf32": False}})
    assert check_step(cpu, variants_of(cpu)[0]).options.model_dump()["cuda"]["tf32"] is True
