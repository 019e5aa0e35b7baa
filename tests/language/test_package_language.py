"""A checkpoint and its engine arguments become a release for Triton's vLLM backend, and for servers without Triton."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from model_repository import Repository
from model_repository.config import read
from model_repository.validation import validate
from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.checkpoint import Attention, Checkpoint, Quantisation
from stages.language.release.lora import LoraAdapter
from stages.language.release.package import PACKAGE_LANGUAGE, PackageLanguageOptions, package_language

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
    "max_position_embeddings": 1_000_000, "rope_theta": 10000.0, "torch_dtype": "float16",
}  # fmt: skip
SHAPES = {
    "model.embed_tokens": (512, 128), "lm_head": (512, 128), "model.norm": (128,),
    **{
        f"model.layers.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            "self_attn.q_proj": (128, 128), "self_attn.k_proj": (64, 128), "self_attn.v_proj": (64, 128),
            "self_attn.o_proj": (128, 128), "mlp.gate_proj": (256, 128), "mlp.up_proj": (256, 128),
            "mlp.down_proj": (128, 256), "input_layernorm": (128,), "post_attention_layernorm": (128,),
        }.items()
    },
}  # fmt: skip
ENGINE_ARGUMENTS = {  # fields of AsyncEngineArgs in vLLM 0.32
    "model", "gpu_memory_utilization", "tensor_parallel_size", "max_model_len", "dtype", "kv_cache_dtype",
    "trust_remote_code", "enable_lora", "max_loras", "max_lora_rank",
}  # fmt: skip


def quantised(format: str, weight_bits: int, **about: Any) -> dict[str, Any]:
    return {
        "precision": about.pop("precision", f"int{weight_bits}"),
        "quantisation": Quantisation(
            format=format, method=format, weight_bits=weight_bits, layers=14, linear_layers=14, library="a library",
            version="1", **about,
        ),
    }  # fmt: skip


def make_checkpoint(path: Path, config: dict[str, Any] | None = None, **about: Any) -> Artifact:
    """A small llama's directory as an artifact. Nothing here looks into its weights but at their sizes."""
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    (path / "tokenizer.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    save_file({f"{name}.weight": np.zeros(shape, np.float16) for name, shape in SHAPES.items()},
              path / "model.safetensors")  # fmt: skip
    described: dict[str, Any] = {
        "architecture": "LlamaForCausalLM", "model_type": "llama", "precision": "fp16", "dtype": "float16",
        "parameters": 1, "vocabulary": 512, "hidden_size": 128, "positions": CONFIG["max_position_embeddings"],
        "attention": Attention(layers=2, heads=4, kv_heads=2, head_size=32, windows=(None, None)), "tied_head": False,
        "begins_with": None, **about,
    }  # fmt: skip
    return Artifact.write(path, "checkpoint", Checkpoint(**described).metadata())


def make_adapter(path: Path, rank: int = 4, **config: Any) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, **config}))
    (path / "adapter_model.safetensors").write_bytes(os.urandom(64))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    made = make_checkpoint(tmp_path / "model")
    for name in made.files:
        (made.path / name).chmod(0o644)  # what only its owner may read is not linked
    return made


Make = Callable[..., Artifact]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Package into a folder of its own, whose name has a space."""
    made = iter(range(100))

    def package(model: Artifact, source: Artifact | None = None, **options: Any) -> Artifact:
        out = tmp_path / f"release {next(made)}"
        out.mkdir()
        return package_language(
            model=model, source=source, options=PackageLanguageOptions(**{"name": "tiny", **options}), out=out
        )

    return package


def arguments_of(release: Artifact) -> dict[str, Any]:
    return dict(json.loads((release.path / "model.json").read_text()))


def manifest(release: Artifact, name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((release.path / "launch" / name).read_text()))


# The tree


def test_a_release_holds_what_triton_and_other_servers_need(model: Artifact, make: Make) -> None:
    release = make(model)
    assert release.kind == "release"
    assert set(release.files) == {
        "config.pbtxt", "model.json", "launch/warm_up.sh", "launch/vllm.sh", "launch/vllm.compose.yaml",
        "launch/vllm.kubernetes.yaml", "launch/tgi.sh", "launch/tgi.compose.yaml", "launch/tgi.kubernetes.yaml",
        "launch/tensorrt-llm.sh", *(f"checkpoint/{name}" for name in model.files),
    }  # fmt: skip
    for name in model.files:
        assert (release.path / "checkpoint" / name).samefile(model.path / name), "linked, not copied"
    config = read(release.path / "config.pbtxt")
    validate(config)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "vllm", 0)
    assert [(group.count, group.Kind.Name(group.kind)) for group in config.instance_group] == [(1, "KIND_MODEL")]
    assert not config.input and not config.output and not config.HasField("dynamic_batching"), "the backend's own"
    assert arguments_of(release) == {
        "model": "checkpoint", "gpu_memory_utilization": 0.9, "tensor_parallel_size": 1
    }  # fmt: skip
    assert release.metadata["file"] == "model.json" and release.metadata["checkpoint"] == "checkpoint"
    assert release.metadata["arguments"] == arguments_of(release)
    assert release.made_from == {"model": model.digest}


def test_the_repository_takes_it_and_its_paths_are_those_of_the_version(
    tmp_path: Path, model: Artifact, make: Make
) -> None:
    adapter = LoraAdapter(name="pirate", path=make_adapter(tmp_path / "pirate"))
    release = make(model, mount="/srv/models", lora=(adapter,))
    repository = Repository(tmp_path / "repository")
    version = repository.publish("tiny", release.path, {"variant": "original"}).version
    own = repository.directory("tiny", version)
    validate(read(own / "config.pbtxt"))
    validate(read(repository.path / "tiny" / "config.pbtxt"))
    repository.verify("tiny")
    for name in model.files:
        assert (own / "checkpoint" / name).read_bytes() == (model.path / name).read_bytes()
    home = f"/srv/models/tiny/{version}/"
    for path in (json.loads((own / "model.json").read_text())["model"],
                 json.loads((own / "multi_lora.json").read_text())["pirate"]):  # fmt: skip
        assert (own / path.removeprefix(home)).is_dir(), path


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path, model: Artifact, make: Make) -> None:
    first, second = make(model), make(model)
    assert first.digest == second.digest
    assert (first.path / "artifact.json").read_bytes() == (second.path / "artifact.json").read_bytes()


def test_nothing_of_this_machine_is_in_it(tmp_path: Path, model: Artifact, make: Make) -> None:
    adapter = LoraAdapter(name="pirate", path=make_adapter(tmp_path / "pirate"))
    release = make(model, gpu="L4", lora=(adapter,))
    places = [str(tmp_path), str(Path.home()), str(Path.cwd()), os.uname().nodename]
    for name in ("config.pbtxt", "model.json", "multi_lora.json", *release.metadata["launch"], "artifact.json"):
        text = (release.path / name).read_text()
        assert [place for place in places if len(place) > 1 and place in text] == [], name


def test_the_stage_is_declared() -> None:
    assert PACKAGE_LANGUAGE.function is package_language


# Engine arguments


def test_the_memory_plan_gives_length_and_gpus(model: Artifact, make: Make) -> None:
    """4 % of an L4 hold 0.88 GiB, of which computing takes 0.76; a token takes 512 bytes."""
    release = make(model, gpu="l4", gpu_memory_utilization=0.04)
    arguments, plan = arguments_of(release), release.metadata["memory"]
    assert plan["gpu"] == "L4" and arguments["tensor_parallel_size"] == plan["tensor_parallel_size"] == 1
    length = arguments["max_model_len"]
    assert length % 16 == 0 and 100_000 < length < CONFIG["max_position_embeddings"]
    assert length * 512 <= plan["cache_bytes"] < (length + 16) * 512
    assert make(model, gpu="L4").metadata["arguments"]["max_model_len"] == CONFIG["max_position_embeddings"]
    assert make(model, gpu="L4", max_model_len=100).metadata["arguments"]["max_model_len"] == 100
    assert make(model, gpu="L4", tensor_parallel_size=2).metadata["arguments"]["tensor_parallel_size"] == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpu": "L4", "gpu_memory_utilization": 0.03}, "do not fit"),
        ({"gpu": "L4", "gpu_memory_utilization": 0.04, "max_model_len": 900_000}, "sequences of 900000 tokens"),
        ({"gpu": "L4", "tensor_parallel_size": 3}, "4 heads cannot be shared out among 3"),
        ({"gpu": "T4"}, "there are L4"),
        ({"max_model_len": 1_000_001}, "made for 1000000"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, model: Artifact, make: Make, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        make(model, **options)


def test_every_argument_is_one_of_vllms(tmp_path: Path, make: Make) -> None:
    model = make_checkpoint(tmp_path / "custom", trust_remote_code=True)
    adapter = LoraAdapter(name="pirate", path=make_adapter(tmp_path / "pirate", rank=20))
    arguments = arguments_of(make(model, gpu="H100", dtype="float16", kv_dtype="bf16", lora=(adapter,)))
    assert set(arguments) == ENGINE_ARGUMENTS
    assert arguments["trust_remote_code"] is True and arguments["enable_lora"] is True
    assert (arguments["dtype"], arguments["kv_cache_dtype"]) == ("float16", "bfloat16")
    assert arguments["max_lora_rank"] == 32, "the next one that vLLM has"


@pytest.mark.parametrize(
    "wrong",
    [{"mount": "models"}, {"name": "a/b"}, {"reference": "https://host/model"}, {"gpu_memory_utilization": 1.1},
     {"quantization": "gptq"}],
)  # fmt: skip
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PackageLanguageOptions(**{"name": "tiny", **wrong})


def test_a_checkpoint_in_an_object_store_is_named_and_not_copied(model: Artifact, make: Make) -> None:
    release = make(model, reference="s3://bucket/models/tiny")
    assert set(release.files) == {
        "config.pbtxt", "model.json", "launch/warm_up.sh", "launch/vllm.sh", "launch/vllm.compose.yaml",
        "launch/vllm.kubernetes.yaml",
    }  # fmt: skip
    assert arguments_of(release)["model"] == "s3://bucket/models/tiny"
    assert release.metadata["checkpoint"] is None and set(release.metadata["left_out"]) == {"tgi", "tensorrt-llm"}
    deployment = manifest(release, "vllm.kubernetes.yaml")[0]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][0] == "s3://bucket/models/tiny"
    assert [mount["name"] for mount in container["volumeMounts"]] == ["shared-memory"]
    assert "volumes" not in manifest(release, "vllm.compose.yaml")[0]["services"]["vllm"]


def test_a_decoder_in_onnx_is_not_for_vllm(tmp_path: Path, make: Make) -> None:
    onnx = make_checkpoint(tmp_path / "onnx", runtime="onnxruntime-genai", **quantised("onnx", 4))
    with pytest.raises(InputError, match="package it as a graph"):
        make(onnx)
    with pytest.raises(InputError, match="not a checkpoint"):
        make(Artifact(tmp_path, "model", "", {}, {}))


# Which servers load it


def compressed(weights: str, activations: str) -> dict[str, Any]:
    group = {"weights": {"strategy": weights}, "input_activations": {"strategy": activations}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}}


@pytest.mark.parametrize(
    ("config", "about", "left_out"),
    [
        pytest.param({}, {}, set(), id="original"),
        pytest.param({}, quantised("gptq", 4, group_size=128), {"tensorrt-llm"}, id="gptq"),
        pytest.param({}, quantised("awq", 4, group_size=128, symmetric=False), {"tensorrt-llm"}, id="awq"),
        pytest.param(
            compressed("channel", "token"), quantised("compressed-tensors", 8, precision="fp8"), set(), id="fp8"
        ),
        pytest.param(
            compressed("tensor", "tensor"), quantised("compressed-tensors", 8, precision="fp8"), {"tensorrt-llm"},
            id="static fp8",
        ),
        pytest.param(
            compressed("channel", "token"), quantised("compressed-tensors", 8), {"tensorrt-llm"}, id="int8-w8a8"
        ),
        pytest.param({"rope_theta": 500000.0}, {}, set(), id="saved by transformers 4"),
        pytest.param(
            {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, {}, {"tgi"}, id="saved by 5"
        ),
        pytest.param(
            {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "llama3"}}, {}, {"tgi"}, id="scaled, saved by 5"
        ),
        pytest.param(
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, {}, {"tgi"}, id="by layer, saved by 5"
        ),
    ],
)  # fmt: skip
def test_only_servers_that_load_it_get_their_files(
    tmp_path: Path, make: Make, config: dict[str, Any], about: dict[str, Any], left_out: set[str]
) -> None:
    model = make_checkpoint(tmp_path / "model", **about)
    given = json.loads((model.path / "config.json").read_text())
    if "rope_parameters" in config:
        del given["rope_theta"]
    (model.path / "config.json").write_text(json.dumps({**given, **config}))
    release = make(model)
    assert set(release.metadata["left_out"]) == left_out
    if (quantisation := Checkpoint.of(model).quantisation) and left_out:
        assert quantisation.format in release.metadata["left_out"]["tensorrt-llm"]
    assert {name.split("/")[1].split(".")[0] for name in release.metadata["launch"]} == {
        "warm_up", "vllm", "tgi", "tensorrt-llm"
    } - left_out  # fmt: skip


def test_a_tokenizer_of_transformers_5_is_not_for_tgi(model: Artifact, make: Make) -> None:
    (model.path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    assert "TokenizersBackend" in make(model).metadata["left_out"]["tgi"]


def test_what_was_not_run_says_so(model: Artifact, make: Make) -> None:
    release = make(model)
    heads = {name: (release.path / name).read_text().split("set -eu")[0].split("services:")[0] for name in release.files
             if name.startswith("launch/")}  # fmt: skip
    for name, head in heads.items():
        assert ("MAINTENANCE MODE" in head) == name.startswith("launch/tgi")
        assert ("NOT EXECUTED" in head) == name.startswith("launch/tensorrt-llm")


# Scripts


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, str]:
    """An environment in which the servers' commands write down where they were called, how, and what they were told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("vllm", "text-generation-launcher", "trtllm-serve"):
        script = folder / name
        script.write_text(
            '#!/bin/sh\npwd\nprintf "%s\\n" "$VLLM_NO_USAGE_STATS$TRTLLM_NO_USAGE_STATS$DO_NOT_TRACK$HF_HUB_OFFLINE"\n'
            'for argument in "$@"; do printf "%s\\n" "$argument"; done\n'
        )
        script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def start(release: Artifact, name: str, environment: dict[str, str], *more: str) -> list[str]:
    ended = subprocess.run(
        ["sh", release.path / "launch" / name, *more], env=environment, capture_output=True, text=True, check=True,
        cwd="/",
    )  # fmt: skip
    where, silent, *arguments = ended.stdout.splitlines()
    assert Path(where).samefile(release.path) and silent == "1111"
    return arguments


def test_scripts_are_shell(model: Artifact, make: Make) -> None:
    release = make(model)
    scripts = [name for name in release.metadata["launch"] if name.endswith(".sh")]
    assert len(scripts) == 4
    for name in scripts:
        assert subprocess.run(["bash", "-n", release.path / name], capture_output=True).stderr == b""


def test_scripts_start_their_server_on_what_lies_beside_them(
    tmp_path: Path, model: Artifact, make: Make, commands: dict[str, str]
) -> None:
    adapter = LoraAdapter(name="pirate", path=make_adapter(tmp_path / "pirate"))
    release = make(model, max_model_len=4096, tensor_parallel_size=2, lora=(adapter,))
    assert start(release, "vllm.sh", commands, "--port", "9000") == [
        "serve", "checkpoint", "--served-model-name", "tiny", "--gpu-memory-utilization", "0.9",
        "--tensor-parallel-size", "2", "--max-model-len", "4096", "--enable-lora", "--max-loras", "1",
        "--max-lora-rank", "8", "--lora-modules", "pirate=adapters/pirate", "--host", "127.0.0.1", "--port", "8000",
        "--port", "9000",
    ]  # fmt: skip
    assert start(release, "tgi.sh", commands) == [
        "--model-id", "checkpoint", "--num-shard", "2", "--cuda-memory-fraction", "0.9", "--usage-stats", "off",
        "--max-total-tokens", "4096", "--lora-adapters", "pirate=adapters/pirate",
    ]  # fmt: skip
    assert start(release, "tensorrt-llm.sh", commands) == [
        "checkpoint", "--backend", "pytorch", "--tp_size", "2", "--kv_cache_free_gpu_memory_fraction", "0.9",
        "--max_seq_len", "4096", "--host", "127.0.0.1", "--port", "8000",
    ]  # fmt: skip


def test_what_is_given_stays_one_argument(model: Artifact, make: Make, commands: dict[str, str]) -> None:
    reference = "s3://bucket/it's;touch$(touch)/tiny"
    assert start(make(model, reference=reference), "vllm.sh", commands)[1] == reference


@pytest.fixture
def asked() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A server that writes down what it is asked."""
    requests: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200 if self.path == "/v1/completions" else 404)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_first_request_asks_for_a_completion(
    model: Artifact, make: Make, asked: tuple[str, list[tuple[str, Any]]]
) -> None:
    address, requests = asked
    script = make(model, name="Tiny.v1").path / "launch" / "warm_up.sh"
    subprocess.run(["sh", script, address], check=True)
    ((path, body),) = requests
    assert path == "/v1/completions"
    assert body["model"] == "Tiny.v1" and body["prompt"] and body["max_tokens"] > 0
    assert subprocess.run(["sh", script, f"{address}/nowhere"], capture_output=True).returncode != 0


# Containers


@pytest.mark.parametrize("server", ["vllm", "tgi"])
def test_a_compose_file_serves_checks_and_warms_up(model: Artifact, make: Make, server: str) -> None:
    release = make(model, tensor_parallel_size=2)
    (document,) = manifest(release, f"{server}.compose.yaml")
    service, warm_up = document["services"][server], document["services"]["warm-up"]
    assert "/release/checkpoint" in service["command"]
    assert service["volumes"] == [{"type": "bind", "source": "..", "target": "/release", "read_only": True}]
    assert service["healthcheck"]["test"][-1] == "http://127.0.0.1:8000/health"
    assert service["ports"] == ["127.0.0.1:8000:8000"], "on this machine only"
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
    assert service["environment"]["DO_NOT_TRACK"] == "1"
    assert warm_up["depends_on"] == {server: {"condition": "service_healthy"}}
    assert warm_up["entrypoint"][-1] == "http://127.0.0.1:8000/v1/completions"
    assert warm_up["image"] == service["image"] and warm_up["restart"] == "no"


@pytest.mark.parametrize("server", ["vllm", "tgi"])
def test_kubernetes_objects_have_probes_and_gpus(model: Artifact, make: Make, server: str) -> None:
    release = make(model, name="My_Tiny.model", tensor_parallel_size=2)
    deployment, service = manifest(release, f"{server}.kubernetes.yaml")
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    assert deployment["metadata"]["name"] == service["metadata"]["name"] == "my-tiny-model"
    template = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    (container,) = template["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert container["ports"][0]["name"] == service["spec"]["ports"][0]["targetPort"] == "http"
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    startup = container["startupProbe"]
    command = startup["exec"]["command"]
    assert command[0] == "curl" and command[-1].endswith("/v1/completions"), "the first request warms it up"
    assert json.loads(command[command.index("-d") + 1])["model"] == "My_Tiny.model"
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert {"name": "DO_NOT_TRACK", "value": "1"} in container["env"]
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["release"]["persistentVolumeClaim"] == {"claimName": "my-tiny-model", "readOnly": True}
    assert "&id" not in (release.path / f"launch/{server}.kubernetes.yaml").read_text(), "no anchors"


def test_containers_are_told_what_the_script_is(
    tmp_path: Path, model: Artifact, make: Make, commands: dict[str, str]
) -> None:
    adapter = LoraAdapter(name="pirate", path=make_adapter(tmp_path / "pirate"))
    release = make(model, max_model_len=4096, lora=(adapter,))
    _, *told = start(release, "vllm.sh", commands)
    inside = [argument.replace("checkpoint", "/release/checkpoint").replace("=adapters", "=/release/adapters")
              for argument in told[: told.index("--host")]]  # fmt: skip
    service = manifest(release, "vllm.compose.yaml")[0]["services"]["vllm"]
    container = manifest(release, "vllm.kubernetes.yaml")[0]["spec"]["template"]["spec"]["containers"][0]
    assert (service["entrypoint"], service["command"]) == (["vllm", "serve"], inside)
    assert (container["command"], container["args"]) == (["vllm", "serve"], inside)


def test_no_text_becomes_a_variable(model: Artifact, make: Make) -> None:
    release = make(model, reference="s3://bucket/$(HOME)/tiny")
    service = manifest(release, "vllm.compose.yaml")[0]["services"]["vllm"]
    container = manifest(release, "vllm.kubernetes.yaml")[0]["spec"]["template"]["spec"]["containers"][0]
    assert service["command"][0] == "s3://bucket/$$(HOME)/tiny"
    assert container["args"][0] == "s3://bucket/$$(HOME)/tiny"


# Adapters


def test_adapters_that_are_named_travel_byte_for_byte(tmp_path: Path, model: Artifact, make: Make) -> None:
    folders = {name: make_adapter(tmp_path / f"of {name}", rank) for name, rank in (("pirate", 4), ("poet.v2", 16))}
    release = make(model, lora=tuple(LoraAdapter(name=name, path=path) for name, path in folders.items()))
    assert json.loads((release.path / "multi_lora.json").read_text()) == release.metadata["adapters"] == {
        "pirate": "adapters/pirate", "poet.v2": "adapters/poet.v2"
    }  # fmt: skip
    for name, folder in folders.items():
        for file in folder.iterdir():
            assert (release.path / "adapters" / name / file.name).read_bytes() == file.read_bytes()
    arguments = arguments_of(release)
    assert (arguments["enable_lora"], arguments["max_loras"], arguments["max_lora_rank"]) == (True, 2, 16)


@pytest.mark.parametrize("origin", ["model", "source"])
def test_adapters_of_the_checkpoint_pass_through_untouched(tmp_path: Path, make: Make, origin: str) -> None:
    with_adapters = make_checkpoint(tmp_path / origin)
    make_adapter(with_adapters.path / "loras" / "pirate", 300, rank_pattern={"q_proj": 400})
    table = b'{ "pirate":   "loras/pirate",\n  "poet": "/srv/loras/poet", "hub": "someone/lora" }\n'
    (with_adapters.path / "multi_lora.json").write_bytes(table)
    with_adapters = Artifact.write(with_adapters.path, "checkpoint", with_adapters.metadata)
    if origin == "model":
        release = make(with_adapters)
    else:
        release = make(make_checkpoint(tmp_path / "model"), source=with_adapters)
        assert release.made_from["source"] == with_adapters.digest
    assert (release.path / "multi_lora.json").read_bytes() == table
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        ours, theirs = (folder / "loras" / "pirate" / name for folder in (release.path, with_adapters.path))
        assert ours.read_bytes() == theirs.read_bytes()
    assert not (release.path / "checkpoint" / "loras").exists()
    assert not (release.path / "checkpoint" / "multi_lora.json").exists()
    assert arguments_of(release)["max_lora_rank"] == 512 and arguments_of(release)["max_loras"] == 3


def test_a_changed_adapter_is_another_option(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "pirate")
    before = PackageLanguageOptions(name="tiny", lora=(LoraAdapter(name="pirate", path=folder),))
    (folder / "adapter_model.safetensors").write_bytes(b"other weights")
    after = PackageLanguageOptions(name="tiny", lora=(LoraAdapter(name="pirate", path=folder),))
    assert before.model_dump_json() != after.model_dump_json()


def test_adapters_that_are_none_are_refused(tmp_path: Path, model: Artifact, make: Make) -> None:
    def adapter(path: Path, name: str = "pirate") -> LoraAdapter:
        return LoraAdapter(name=name, path=path)

    with pytest.raises(InputError, match="is no LoRA adapter"):
        adapter(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"lacks adapter_config\.json"):
        make(model, lora=(adapter(tmp_path / "empty"),))
    good = make_adapter(tmp_path / "good")
    with pytest.raises(InputError, match="two adapters are called pirate"):
        make(model, lora=(adapter(good), adapter(good)))
    with pytest.raises(InputError, match="takes at most 512"):
        make(model, lora=(adapter(make_adapter(tmp_path / "large", 1000)),))
    with pytest.raises(InputError, match="does not give the adapter's rank"):
        make(model, lora=(adapter(make_adapter(tmp_path / "odd", rank_pattern={"q": "many"})),))
    pickled = make_adapter(tmp_path / "pickled")
    (pickled / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pickle"):
        make(model, lora=(adapter(pickled),))
    changed = adapter(good)
    (good / "adapter_model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match="has changed"):
        make(model, lora=(changed,))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("{", "cannot be read"),
        ('["loras/pirate"]', "does not give a place"),
        ('{"pirate": "../pirate"}', "outside of the checkpoint"),
        ('{"pirate": "loras"}', "is no LoRA adapter"),
    ],
)
def test_a_damaged_table_of_adapters_is_named(tmp_path: Path, make: Make, table: str, says: str) -> None:
    model = make_checkpoint(tmp_path / "model")
    make_adapter(model.path / "loras" / "pirate")
    (model.path / "multi_lora.json").write_text(table)
    model = Artifact.write(model.path, "checkpoint", model.metadata)
    with pytest.raises(InputError, match=says):
        make(model)


@pytest.mark.parametrize("folder", ["checkpoint", "launch", "model.json"])
def test_adapters_may_not_take_a_name_of_the_releases(tmp_path: Path, make: Make, folder: str) -> None:
    model = make_checkpoint(tmp_path / "model")
    make_adapter(model.path / folder / "pirate")
    (model.path / "multi_lora.json").write_text(json.dumps({"pirate": f"{folder}/pirate"}))
    model = Artifact.write(model.path, "checkpoint", model.metadata)
    with pytest.raises(InputError, match="a name that a release needs"):
        make(model)


def test_adapters_are_named_in_one_place(tmp_path: Path, make: Make) -> None:
    model = make_checkpoint(tmp_path / "model")
    make_adapter(model.path / "loras" / "pirate")
    (model.path / "multi_lora.json").write_text('{"pirate": "loras/pirate"}')
    model = Artifact.write(model.path, "checkpoint", model.metadata)
    with pytest.raises(InputError, match="name all adapters there, or none"):
        make(model, lora=(LoraAdapter(name="poet", path=make_adapter(tmp_path / "poet")),))


def test_weights_that_only_their_owner_may_read_are_readable_in_a_release(
    tmp_path: Path, tiny_checkpoint: Artifact
) -> None:
    before = tmp_path / "private"
    shutil.copytree(tiny_checkpoint.path, before)
    weights = before / "model.safetensors"
    weights.chmod(0o600)
    private = Artifact.write(before, "checkpoint", tiny_checkpoint.metadata)
    (tmp_path / "release").mkdir()
    release = package_language(model=private, options=PackageLanguageOptions(name="llama"), out=tmp_path / "release")
    assert (release.path / "checkpoint" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert weights.stat().st_mode & 0o777 == 0o600, "what it was made from stays as it is"
