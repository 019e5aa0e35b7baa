"""What a model artifact says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from model_repository.signature import Signature
from stages.artifact import Artifact
from stages.errors import InputError

__all__ = ["ASSETS", "Model", "Task"]

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

ASSETS = "assets"
"""The folder of a model artifact that holds the tokenizer, preprocessor and configuration files."""


class Model(BaseModel):
    """The metadata of an artifact of kind `model`: a graph, its signature and what it is for.

    `file` is ONNX for `onnxruntime`, and OpenVINO's IR (`model.xml`, the weights in `model.bin` beside it) for
    `openvino`. `precision` is that of the weights; `arithmetic` that in which the runtime computes what is not
    quantised (OpenVINO's `INFERENCE_PRECISION_HINT`; where the processor has no BF16 it takes FP32).
    `operators` counts the graph's operators by type (`{"MatMulInteger": 36, …}`), functions not expanded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = "model.onnx"
    task: Task = "generic"
    signature: Signature
    precision: str = "fp32"
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    arithmetic: Literal["fp32", "bf16"] = "fp32"
    fused: bool = False
    opset: int
    labels: tuple[str, ...] = ()
    operators: dict[str, int] = {}

    @classmethod
    def of(cls, artifact: Artifact) -> Model:
        """The description of a model artifact. Raises `InputError` for an artifact of another kind."""
        if artifact.kind != "model":
            raise InputError(f"{artifact.path} is a {artifact.kind}, not a model")
        return cls.model_validate(artifact.metadata)

    def path(self, artifact: Artifact) -> Path:
        """Where the graph lies."""
        return artifact.path / self.file
