"""Dynamic INT8: weights stored as signed 8-bit integers, activations quantised to 8 bits while the model runs.

Weights are symmetric with one scale for each output channel; activations get one scale and zero point for the whole
tensor from `DynamicQuantizeLinear` (so an answer depends, slightly, on what else is in its batch). The nodes are laid
out as ONNX Runtime's optimiser expects them and merges them when it opens the graph (`MatMulIntegerToFloat`,
`DynamicQuantizeMatMul`).

ONNX Runtime's own `quantize_dynamic` does the same arithmetic for `MatMul`. It is not used because it drops the mask
of a fused `Attention` without a word (`QAttention` has no input for it) or leaves its weights in FP32, rejects the
`Gemm` of exports by PyTorch, gives convolutions one scale for all channels and a whole embedding table one scale, and
writes the model to disk twice on the way.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar, Literal

from calibration.statistics import Statistics
from stages.artifact import Artifact
from stages.errors import StageError
from stages.model import Model
from stages.onnx_model import read_graph, weight_bytes
from stages.progress import Progress
from stages.quantise.attention import expand_attention
from stages.quantise.integer_operators import IntegerOperators
from stages.quantise.variant import VariantConfig, build, write_variant

__all__ = ["Int8Dynamic"]


class Int8Dynamic(VariantConfig):
    """8-bit weights and activations, no calibration data.

    `per_channel`: one scale for each output channel; else one for each weight tensor, which costs far more accuracy.
    `embeddings`: quantise large embedding tables too, one scale for each row. It decides the size of small language
    models and costs little: the rows are turned back into floats.
    `convolutions`: quantise ungrouped convolutions too. It decides the size of a convolutional network; the time is
    about that of FP32. Grouped (depthwise) ones stay: their integer form is many times slower.
    `reduce_range`: 7-bit weights, for x86 processors without VNNI instructions, where sums of 8-bit products saturate.
    """

    precision: ClassVar[str] = "int8"
    targets: ClassVar[tuple[str, ...]] = ("cpu",)
    libraries: ClassVar[tuple[str, ...]] = ("onnx-ir", "onnxruntime")

    type: Literal["int8-dynamic"] = "int8-dynamic"
    runtime: Literal["onnxruntime"] = "onnxruntime"
    per_channel: bool = True
    embeddings: bool = True
    convolutions: bool = True
    reduce_range: bool = False


@build.register
def _(config: Int8Dynamic, model: Artifact, out: Path, progress: Progress, statistics: Statistics | None) -> Artifact:
    """Raises `StageError` if the model has no operator with constant weights that this variant quantises."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    progress.update("quantising weights to 8 bits")
    graph = read_graph(model)
    bytes_before = weight_bytes(graph)
    graph.graph.sort()
    expand_attention(graph)
    rewriter = IntegerOperators(graph, config.per_channel, config.reduce_range)
    promised: Counter[str] = Counter()
    excluded = set(config.exclude)
    for node in list(graph.graph):
        if {node.name, node.outputs[0].name} & excluded:
            continue
        if rewriter.matmul(node):
            promised["MatMulInteger"] += 1
        elif config.convolutions and rewriter.convolution(node):
            promised["ConvInteger"] += 1
        elif config.embeddings:
            rewriter.embedding(node)
    if not promised:
        raise StageError(
            f"{config.name} has nothing to quantise: the model has no matrix product"
            f"{' or convolution' if config.convolutions else ''} with constant 32-bit weights"
        )
    RemoveUnusedNodesPass()(graph)
    variant = write_variant(graph, model, out, config, bytes_before)
    _ensure_promised(variant, promised)
    return variant


def _ensure_promised(variant: Artifact, promised: Counter[str]) -> None:
    operators = Model.of(variant).operators
    for name, count in promised.items():
        if operators.get(name, 0) < count:
            raise StageError(f"the INT8 graph has {operators.get(name, 0)} {name}, not the {count} that it should have")
