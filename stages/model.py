"""What a model artifact says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from model_repository.signature import Signature
from stages.artifact import Artifact
from stages.errors import InputError

__all__ = ["ASSETS", "Engine", "Model", "ModelRuntime", "Task"]

Task = Literal[
    "feature-extraction",  # token embeddings: [batch, sequence, hidden]
    "sentence-embedding",  # one embedding a text: [batch, hidden]
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "text-generation",  # a causal language model: a checkpoint in, a checkpoint or a decoder out
    "image-classification",
    "image-feature-extraction",
    "generic",  # arrays in, arrays out; nothing is known of their meaning
]

ModelRuntime = Literal["onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt"]

ASSETS = "assets"
"""The folder of a model artifact that holds the tokenizer, preprocessor and configuration files."""


class Engine(BaseModel):
    """What decides where a TensorRT engine can run, and what it computes in.

    `compute_capability`: of the GPU that it was built on ("9.0"). `profiles`: for each optimisation profile and input
    its smallest, usual and largest shape. `layers`: how many computing layers touch each dtype, by the engine's own
    account. `stripped`: it lies without its weights, which the graph beside it has. `weight_streaming`: weights may
    stay in the host's memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensorrt: str
    compute_capability: str
    device: str
    driver: str
    cuda: str
    profiles: tuple[dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], ...] = ()
    layers: dict[str, int] = {}
    tf32: bool = True
    version_compatible: bool = False
    hardware_compatible: str = "none"
    weight_streaming: bool = False
    stripped: bool = False


class Model(BaseModel):
    """The metadata of an artifact of kind `model`: a graph, its signature and what it is for.

    `file` is ONNX for `onnxruntime` and `onnxruntime-cuda`, OpenVINO's IR (`model.xml`, the weights in `model.bin`
    beside it) for `openvino`, and a plan for `tensorrt`, which `engine` says more of. `precision` is that of the
    weights; `arithmetic` that in which the runtime computes what is not quantised (OpenVINO's
    `INFERENCE_PRECISION_HINT`; where the processor has no BF16 it takes FP32).
    `operators` counts the graph's operators by type (`{"MatMulInteger": 36, …}`), functions not expanded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = "model.onnx"
    task: Task = "generic"
    signature: Signature
    precision: str = "fp32"
    runtime: ModelRuntime = "onnxruntime"
    arithmetic: Literal["fp32", "bf16"] = "fp32"
    fused: bool = False
    opset: int
    labels: tuple[str, ...] = ()
    operators: dict[str, int] = {}
    engine: Engine | None = None

    @classmethod
    def of(cls, artifact: Artifact) -> Model:
        """The description of a model artifact. Raises `InputError` for an artifact of another kind."""
        if artifact.kind != "model":
            raise InputError(f"{artifact.path} is a {artifact.kind}, not a model")
        return cls.model_validate(artifact.metadata)

    def path(self, artifact: Artifact) -> Path:
        """Where the graph lies."""
        return artifact.path / self.file
