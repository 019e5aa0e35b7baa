"""A run for a target that this machine does not have: what can be done is done, and nothing is published."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from tritonclient.grpc.model_config_pb2 import ModelConfig
from workplace import Classifier, Finished, Workplace

from model_repository import RepositoryError
from model_repository.config import ConfigOptions, build, to_text
from model_repository.config_gpu import GpuOptions
from model_repository.signature import Signature, TensorSpec
from pipeline import Recipe
from pipeline.cli.doctor import doctor
from stages.errors import InputError
from stages.gpu import gpus

needs_none = pytest.mark.skipif(bool(gpus()), reason="this machine has a GPU: the run would go on")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("no_gpu"))


@pytest.fixture(scope="module")
def engines(place: Workplace, classifier: Classifier) -> Finished:
    return place.optimize(
        "run", classifier.model, "--evaluation", classifier.evaluation, "--calibration", classifier.evaluation,
        "--target", "tensorrt", "--variants", "fp16,bf16,int8-static,int4", "--name", "digits", "--json",
    )  # fmt: skip


@needs_none
def test_engines_are_not_run_and_everything_before_them_is(engines: Finished, place: Workplace) -> None:
    assert engines.code == 5, engines.err
    result = engines.json
    assert result["status"] == "failed"
    assert result["release"] is None
    assert not place.repository.exists()
    rows = {row["name"]: row for row in result["variants"]}
    for name in ("fp32", "fp16", "bf16", "int8-static"):
        assert rows[name]["verdict"] == "not_run"
        assert rows[name]["reason"].startswith("needs an NVIDIA GPU")
        assert rows[name]["runtime"] == "tensorrt"
        assert rows[name]["latency_ms"] is None
        assert rows[name]["metric"]["name"] == "accuracy", "it was evaluated on the CPU"
    for name in ("bf16", "int8-static"):
        assert "evaluated on the CPU: accuracy" in rows[name]["reason"]
    # Its file is of opset 20: that is wrong with or without a GPU.
    assert rows["int4"]["verdict"] == "error"
    assert "takes ONNX opset 21" in rows["int4"]["reason"]
    assert "compile fp16: not run: needs an NVIDIA GPU" in engines.err
    assert "profile: not run: needs an NVIDIA GPU" in engines.err
    assert not any(stage["name"].startswith(("compile", "profile")) for stage in result["stages"])


@needs_none
def test_the_message_leads_to_a_kit_that_builds_the_engine(engines: Finished, place: Workplace) -> None:
    kit = place.store / "jobs" / engines.json["job_id"] / "kit"
    assert str(kit) in engines.json["message"]
    assert {folder.name for folder in kit.iterdir()} == {"fp32", "fp16", "bf16", "int8-static"}
    trtexec = place.path / "trtexec"
    trtexec.write_text('#!/bin/sh\ntest -f model.onnx && printf "%s\\n" "$@"\n')
    trtexec.chmod(0o755)
    told = subprocess.run(
        [kit / "int8-static" / "build.sh"], env={**os.environ, "TRTEXEC": str(trtexec)}, capture_output=True, text=True
    )
    assert told.returncode == 0
    assert "--maxShapes=x:32x64" in told.stdout.split()


@needs_none
def test_onnx_runtime_s_cuda_provider_is_not_run_either(place: Workplace, classifier: Classifier) -> None:
    ended = place.optimize(
        "run", classifier.model, "--evaluation", classifier.evaluation, "--target", "cuda", "--name", "digits", "--json"
    )
    assert ended.code == 5, ended.err
    rows = {row["name"]: row for row in ended.json["variants"]}
    assert {name: row["verdict"] for name, row in rows.items()} == {"fp32": "not_run", "fp16": "not_run"}
    assert {row["runtime"] for row in rows.values()} == {"onnxruntime-cuda"}
    assert rows["fp16"]["size_bytes"] < rows["fp32"]["size_bytes"]
    assert "nothing was published" in ended.json["message"]


@needs_none
def test_doctor_says_that_there_is_none() -> None:
    said = CliRunner().invoke(doctor).output
    assert "only made and checked here: needs an NVIDIA GPU" in said
    assert "none that NVIDIA's driver shows" in said
    assert "not supported yet" not in said


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"target": "tensorrt", "variants": "int8-dynamic"}, "int8-dynamic is not made for the target tensorrt"),
        ({"variants": "fp16-tensorrt"}, "the runtime tensorrt of fp16 is not for the target cpu"),
        ({"variants": "fp8-static"}, "fp8-static is not made for the target cpu"),
        ({"target": "cuda", "variants": "auto"}, "for cuda name the variants"),
        ({"target": "gpu"}, "Input should be 'cpu', 'cuda' or 'tensorrt'$"),
        (
            {"target": "tensorrt", "tensorrt": {"profiles": [{"sequence": [64, 32, 8]}]}},
            "goes from min over opt to max",
        ),
        ({"target": "tensorrt", "tensorrt": {"optimization_level": 3}}, "did you mean 'optimisation_level'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Recipe.parse({"model": "x", **values})


def test_variants_follow_the_target() -> None:
    recipe = Recipe.parse({"model": "x", "target": "tensorrt", "variants": ["fp16", "int4", "int8-static"]})
    assert [variant.runtime for variant in recipe.variants] == ["tensorrt"] * 3
    assert [variant.name for variant in recipe.variants] == ["fp16", "int4", "int8-static"]
    again = Recipe.parse(json.loads(recipe.model_dump_json(serialize_as_any=True)))
    assert again == recipe


# What is published for GPUs: a server without one refuses KIND_GPU, so the message itself is looked at.


def signature(*shape: int | str) -> Signature:
    tensor = TensorSpec(name="x", dtype="float32", shape=shape)
    return Signature(inputs=(tensor,), outputs=(tensor.model_copy(update={"name": "y"}),))


def configured(backend: str, shape: tuple[int | str, ...], **gpu: object) -> ModelConfig:
    options = ConfigOptions(backend=backend, gpu=GpuOptions.model_validate(gpu))
    return build("m", signature(*shape), options)


def test_cuda_graphs_where_shapes_are_fixed() -> None:
    fixed = configured("tensorrt", ("batch", 3, 8, 8), plans={"9.0": "model.plan", "8.9": "model_sm89.plan"})
    assert fixed.optimization.cuda.graphs
    assert [spec.batch_size for spec in fixed.optimization.cuda.graph_spec] == [1, 2, 3, 4, 6, 8]
    alone = configured("tensorrt", (1, 3, 8, 8))
    assert alone.optimization.cuda.graphs
    assert not alone.optimization.cuda.graph_spec, "without batches there is one, for the engine's own shapes"
    assert dict(fixed.cc_model_filenames) == {"9.0": "model.plan", "8.9": "model_sm89.plan"}
    assert fixed.instance_group[0].kind == fixed.instance_group[0].KIND_GPU
    assert not fixed.parameters, "thread counts are the processor's"
    assert not configured("tensorrt", ("batch", "sequence")).optimization.cuda.graphs


def test_onnx_runtime_on_cuda_and_its_tensorrt_provider() -> None:
    plain = configured("onnxruntime", ("batch", 4))
    assert plain.instance_group[0].kind == plain.instance_group[0].KIND_GPU
    assert not plain.HasField("optimization")
    provider = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "/cache"}
    config = configured("onnxruntime", ("batch", 4), tensorrt_provider=provider)
    [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("tensorrt", provider)
    assert 'key: "trt_engine_cache_path"' in to_text(config)


def test_options_of_another_backend_are_refused() -> None:
    with pytest.raises(RepositoryError, match="are those of TensorRT engines; the backend is onnxruntime"):
        configured("onnxruntime", ("batch", 4), profiles=2)
    with pytest.raises(RepositoryError, match="is ONNX Runtime's; the backend is tensorrt"):
        configured("tensorrt", ("batch", 4), tensorrt_provider={})


def test_the_target_words_are_in_the_documentation() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "gpu.md").read_text()
    for word in ("target: cuda", "target: tensorrt", "build.sh", "exit code 5"):
        assert word in page
