"""What the weight-only variants share: weights in few bits, activations in floats, the graph otherwise as it was."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.errors import StageError
from stages.model import Model
from stages.onnx_model import opset, weight_bytes
from stages.progress import Progress
from stages.quantise.block_operators import BlockOperators
from stages.quantise.blocks.form import BlockFormat, BlockMatrix
from stages.quantise.blocks.ranges import rtn
from stages.quantise.groups import quantisable_graph
from stages.quantise.integer_operators import IntegerOperators
from stages.quantise.names import initialisers_of
from stages.quantise.operators import Operator, float_constant, is_excluded, matrix_product, operators
from stages.quantise.variant import VariantConfig, write_variant

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Quantise", "WeightOnly", "make_weight_only"]

Quantise = Callable[
    [NDArray[np.float32], list[str]],
    tuple[BlockMatrix, list[NDArray[np.float32] | None]],
]
"""A matrix [in, out] and the activations that it is multiplied by, one for each product that shares it → the matrix in
blocks, and for each product what is to be added to its outputs [out] or None."""

_DEQUANTIZE_OPSET = 13
_TABLE_BLOCK = 32


class WeightOnly(VariantConfig):
    """Weights as integers in blocks, activations in floats; made for its size.

    `accuracy_level`: what ONNX Runtime may round the activations to while it multiplies, block by block: 4 is 8-bit
    integers, 1 is not at all, 0 is its own choice (not at all, on a CPU). OpenVINO does not read it; with blocks of 32
    and more it rounds to 8 bits, too. `embeddings`: store large embedding tables as integers too; they decide the size
    of small language models. `convolutions`: store weights of convolutions in 8 bits, with one scale for each output
    channel.
    """

    targets: ClassVar[tuple[str, ...]] = ("cpu",)
    libraries: ClassVar[tuple[str, ...]] = ("onnx-ir", "numpy")

    accuracy_level: Literal[0, 1, 4] = 4
    embeddings: bool = True
    convolutions: bool = True

    @property
    def arithmetic(self) -> Literal["fp32", "bf16"]:
        return "bf16" if self.runtime == "openvino" else "fp32"


def make_weight_only(
    config: WeightOnly,
    model: Artifact,
    out: Path,
    progress: Progress,
    *,
    format: BlockFormat,
    table_bits: Literal[4, 8],
    quantise: Quantise,
) -> Artifact:
    """Write `model` with its products in `format`, its tables in `table_bits` and its convolutions in 8 bits.

    A table whose rows are no whole number of pairs of blocks of 32 takes 8 bits in any case, a scale for each row:
    OpenVINO reads no other.

    Raises `StageError` if the model has no matrix product with constant weights (nor, for 8 bits, a convolution), if it
    has convolutions and is older than opset 13, or if the weights take more room than they should.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = quantisable_graph(model)
    bytes_before = weight_bytes(graph)
    chosen = _chosen(graph, config, format)
    expected: float = bytes_before - _released(chosen)
    rewriter = _Rewriter(graph, config, format, table_bits, quantise)
    shared = _by_weight(chosen)
    for number, sharing in enumerate(shared):
        progress.update(f"quantising weights to {format.bits} bits", number, len(shared))
        expected += rewriter.rewrite(sharing)
    RemoveUnusedNodesPass()(graph)
    graph.graph.sort()
    _ensure_small(config, weight_bytes(graph), expected)
    variant = write_variant(graph, model, out, config, bytes_before)
    _ensure_promised(config, variant, rewriter.promised)
    return variant


class _Rewriter:
    """`promised`: the operators that the result must have."""

    def __init__(
        self, graph: ir.Model, config: WeightOnly, format: BlockFormat, table_bits: Literal[4, 8], quantise: Quantise
    ) -> None:
        self._format = format
        self._table_bits = table_bits
        self._quantise = quantise
        self._blocks = BlockOperators(graph, config.accuracy_level)
        self._rows = IntegerOperators(graph, per_channel=True, reduce_range=False)
        self.promised: Counter[str] = Counter()

    def rewrite(self, sharing: list[Operator]) -> float:
        """Rewrite operators of one kind and one weight; returns the bytes that it takes now."""
        weight = _weight(sharing[0])
        if sharing[0].kind == "product":
            matrix, corrections = self._quantise(weight, [_name(operator.activation) for operator in sharing])
            self._blocks.products(sharing, matrix, corrections)
            self.promised["MatMulNBits"] += len(sharing)
            return _bytes(weight, self._format.bits, self._format.block_size)
        if sharing[0].kind == "convolution":
            self._blocks.convolutions(sharing)
            self.promised["DequantizeLinear"] += 1
            return _bytes(weight, 8, weight[0].size)
        if self._table_bits == 4 and weight.shape[1] % (2 * _TABLE_BLOCK) == 0:
            table = rtn(np.ascontiguousarray(weight.T), BlockFormat(4, _TABLE_BLOCK))
            self._blocks.embeddings(sharing, table)
            self.promised["GatherBlockQuantized"] += len(sharing)
            return _bytes(weight, 4, _TABLE_BLOCK)
        for operator in sharing:
            self._rows.embedding(operator.node)
        return _bytes(weight, 8, weight.shape[1])


def _bytes(weight: NDArray[np.float32], bits: int, block_size: int) -> float:
    """Of the integers, and of a scale and a zero point for each block."""
    return weight.size * (bits + (32 + bits) / block_size) / 8


def _chosen(graph: ir.Model, config: WeightOnly, format: BlockFormat) -> list[Operator]:
    """The operators to be quantised."""
    kinds = {"product", *(["embedding"] * config.embeddings), *(["convolution"] * config.convolutions)}
    excluded = set(config.exclude)
    chosen = [op for op in operators(graph) if op.kind in kinds and not is_excluded(op.node, excluded)]
    wanted = {"product": "matrix product"}
    if format.bits == 8 and config.convolutions:
        wanted["convolution"] = "convolution"
    if not any(operator.kind in wanted for operator in chosen):
        raise StageError(
            f"{config.name} has nothing to quantise: the model has no {' or '.join(wanted.values())} with constant "
            "32-bit weights"
        )
    if opset(graph) < _DEQUANTIZE_OPSET and any(operator.kind == "convolution" for operator in chosen):
        raise StageError(
            f"{config.name} needs ONNX opset {_DEQUANTIZE_OPSET} for convolutions; the model has opset "
            f"{opset(graph)}: convert it with `onnx.version_converter`, or set `convolutions: false`"
        )
    return chosen


def _by_weight(chosen: Sequence[Operator]) -> list[list[Operator]]:
    """Operators of one kind with equal weights together: a layer that is applied again and again keeps one copy."""
    sharing: dict[tuple[str, tuple[int, ...], bytes], list[Operator]] = {}
    for operator in chosen:
        weight = _weight(operator)
        key = operator.kind, weight.shape, hashlib.sha256(weight.tobytes()).digest()
        sharing.setdefault(key, []).append(operator)
    return list(sharing.values())


def _weight(operator: Operator) -> NDArray[np.float32]:
    """Of a product the matrix [in, out], else the constant as it is."""
    product = matrix_product(operator.node)
    weight = product[0] if product is not None else float_constant(operator.weight)
    assert weight is not None
    return weight


def _released(chosen: list[Operator]) -> int:
    """The bytes of the initialisers that only these operators take."""
    nodes = {operator.node for operator in chosen}

    def only_theirs(value: ir.Value) -> bool:
        return all(
            node in nodes or (node.op_type in ("Transpose", "Concat") and only_theirs(node.outputs[0]))
            for node, _ in value.uses()
        )

    values = {value for operator in chosen for value in initialisers_of(operator.weight) if only_theirs(value)}
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return str(value.name)


def _ensure_small(config: WeightOnly, found: int, expected: float) -> None:
    allowed = int(1.1 * expected) + 2**16
    if found > allowed:
        raise StageError(f"the weights of {config.name} take {found:,} bytes, and should take {allowed:,} at the most")


def _ensure_promised(config: WeightOnly, variant: Artifact, promised: Counter[str]) -> None:
    found = Model.of(variant).operators
    for name, count in promised.items():
        if found.get(name, 0) < count:
            raise StageError(f"{config.name} has {found.get(name, 0)} {name}, not the {count} that it should have")
