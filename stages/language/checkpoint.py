"""What a checkpoint artifact says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from stages.artifact import Artifact
from stages.errors import InputError

__all__ = ["Attention", "Checkpoint", "LanguageRuntime", "Quantisation"]

LanguageRuntime = Literal["transformers", "onnxruntime-genai"]
"""What runs a checkpoint in this process."""

_WEIGHTS = (".safetensors", ".onnx", ".onnx.data", ".bin")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Attention(_Frozen):
    """What the size of a key-value cache follows from.

    `kv_heads` < `heads` is grouped-query attention. `windows`: for each layer how many positions it looks back, None
    for all of them. `layers` that attend are counted, others (state-space layers, say) are not.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    windows: tuple[int | None, ...]


class Quantisation(_Frozen):
    """How a checkpoint is quantised, and what did it.

    `format`: what readers call it: `gptq`, `awq`, `compressed-tensors`, `onnx`. `method`: how it was done: `gptq`,
    `awq`, `smoothquant+gptq`, `rtn`, …. `weight_bits` and `activation_bits` (None: not quantised). `group_size`: values
    that share a scale, along the input; None: a scale a channel. `layers`: how many linear layers are quantised, of
    `linear_layers`. `library` and `version` name what really did it; `asked_for` the name that the recipe gave it.
    """

    format: str
    method: str
    weight_bits: int
    activation_bits: int | None = None
    group_size: int | None = None
    symmetric: bool = True
    act_order: bool = False
    layers: int
    linear_layers: int
    library: str
    version: str
    asked_for: str | None = None


class Checkpoint(_Frozen):
    """The metadata of an artifact of kind `checkpoint`.

    The files are those of a directory as `save_pretrained` writes it (`config.json`, safetensors, tokenizer), or of one
    that ONNX Runtime GenAI loads (`genai_config.json`, `model.onnx`, tokenizer). `dtype` is that of what is not
    quantised. `positions`: the longest sequence that the model was made for. `begins_with`: the token that the
    tokenizer puts before a text, None where it puts none. `precision` in one word: `fp32`, `bf16`, `int4`, `int8`, …
    """

    architecture: str
    model_type: str
    runtime: LanguageRuntime = "transformers"
    precision: str
    dtype: Literal["float32", "bfloat16", "float16"]
    parameters: int
    vocabulary: int
    hidden_size: int
    positions: int
    attention: Attention
    tied_head: bool
    begins_with: int | None
    quantisation: Quantisation | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, artifact: Artifact) -> Checkpoint:
        """The description of a checkpoint artifact. Raises `InputError` for an artifact of another kind."""
        if artifact.kind != "checkpoint":
            raise InputError(f"{artifact.path} is a {artifact.kind}, not a checkpoint of a language model")
        return cls.model_validate(artifact.metadata)

    @staticmethod
    def weights_bytes(artifact: Artifact) -> int:
        """The bytes of the weights' files, tokenizer and configuration left out."""
        weights = [name for name in artifact.files if name.endswith(_WEIGHTS)]
        return sum((artifact.path / name).stat().st_size for name in weights)

    def metadata(self) -> dict[str, Any]:
        """As an artifact keeps it."""
        return self.model_dump(mode="json")
