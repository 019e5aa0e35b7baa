"""The servers that take a checkpoint as it is, and what each is told: vLLM, TGI, TensorRT-LLM.

The arguments are those of vLLM 0.32, TGI 3.3 and TensorRT-LLM 1.3; of these only vLLM was ever started with them here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "ENVIRONMENT", "PORT", "RELEASE", "TENSORRT_LLM", "TGI", "VLLM", "Launch", "Server", "tensorrt_llm_arguments",
    "tgi_arguments", "vllm_arguments", "warm_up_request",
]  # fmt: skip

PORT = 8000
RELEASE = "/release"
"""Where a container sees the release."""
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "TRTLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
"""Nothing is reported to anybody and nothing is fetched: each of these servers does so by default."""


@dataclass(frozen=True)
class Launch:
    """What a server is told.

    `arguments`: vLLM's engine arguments by their names in Python, `model` among them (a folder in the release, or a
    URL). `adapters`: folders of LoRA adapters by name, relative to the release. `left_out`: why a server (by its key)
    cannot load the checkpoint.
    """

    name: str
    arguments: Mapping[str, Any]
    adapters: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def in_release(self) -> bool:
        """Whether the checkpoint lies in the release, and not behind a URL."""
        return "://" not in self.arguments["model"]

    @property
    def gpus(self) -> int:
        return int(self.arguments.get("tensor_parallel_size", 1))


@dataclass(frozen=True)
class Server:
    """A server. `entrypoint`: what replaces that of its image; empty keeps it."""

    key: str
    about: str
    image: str = ""
    entrypoint: tuple[str, ...] = ()


VLLM = Server(
    "vllm",
    "vLLM, through its OpenAI-compatible interface (/v1/completions, /v1/chat/completions).",
    "vllm/vllm-openai:v0.32.0",
    ("vllm", "serve"),
)
TGI = Server(
    "tgi",
    "Text Generation Inference. It is in MAINTENANCE MODE: upstream takes minor fixes only, and recommends vLLM or\n"
    "SGLang. NOT STARTED by the pipeline that wrote this file.",
    "ghcr.io/huggingface/text-generation-inference:3.3.5",
)
TENSORRT_LLM = Server(
    "tensorrt-llm",
    "TensorRT-LLM with its PyTorch backend (trtllm-serve, 1.3).\n"
    "NOT EXECUTED by the pipeline that wrote this file: it follows the documented arguments.",
)


def vllm_arguments(launch: Launch, root: str = "") -> list[str]:
    """What follows `vllm serve`, for a server that sees the release at `root` (in it, if there is none)."""
    arguments = [_place(launch.arguments["model"], root), "--served-model-name", launch.name]
    for name, value in launch.arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(flag)
        elif name != "model":
            arguments += [flag, value if isinstance(value, str) else json.dumps(value)]
    if launch.adapters:
        arguments += ["--lora-modules", *(f"{name}={_place(path, root)}" for name, path in launch.adapters.items())]
    return arguments


def tgi_arguments(launch: Launch, root: str = "") -> list[str]:
    """What follows `text-generation-launcher`. It reads the form of the weights from their `config.json`."""
    given = launch.arguments
    arguments = ["--model-id", _place(given["model"], root), "--num-shard", str(launch.gpus)]
    arguments += ["--cuda-memory-fraction", str(given["gpu_memory_utilization"]), "--usage-stats", "off"]
    if "max_model_len" in given:
        arguments += ["--max-total-tokens", str(given["max_model_len"])]
    if given.get("trust_remote_code"):
        arguments.append("--trust-remote-code")
    if launch.adapters:
        named = ",".join(f"{name}={_place(path, root)}" for name, path in launch.adapters.items())
        arguments += ["--lora-adapters", named]
    return arguments


def tensorrt_llm_arguments(launch: Launch) -> list[str]:
    """What follows `trtllm-serve`. Its fraction is of the memory that the weights leave free."""
    given = launch.arguments
    arguments = [given["model"], "--backend", "pytorch", "--tp_size", str(launch.gpus)]
    arguments += ["--kv_cache_free_gpu_memory_fraction", str(given["gpu_memory_utilization"])]
    if "max_model_len" in given:
        arguments += ["--max_seq_len", str(given["max_model_len"])]
    if given.get("trust_remote_code"):
        arguments.append("--trust_remote_code")
    return arguments


def warm_up_request(launch: Launch, address: str = f"http://127.0.0.1:{PORT}") -> list[str]:
    """A command that asks for a few tokens, through what all of these servers have; their images hold curl."""
    body = {"model": launch.name, "prompt": "The quick brown fox", "max_tokens": 8, "temperature": 0}
    command = ["curl", "-fsS", "-o", "/dev/null", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return [*command, f"{address}/v1/completions"]


def _place(path: str, root: str) -> str:
    return f"{root}/{path}" if root and not path.startswith("/") and "://" not in path else path
