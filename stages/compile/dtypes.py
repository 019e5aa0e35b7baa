"""What an ONNX graph must hold for an engine of a precision: a strongly typed engine computes in the graph's dtypes.

The forms are those that TensorRT reads: symmetric INT8 and FP8 between QuantizeLinear and DequantizeLinear, INT4
weights in blocks behind DequantizeLinear (NVIDIA TensorRT documentation, "Working with Quantized Types").
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from stages.errors import RequirementError, StageError
from stages.onnx_model import nodes, opset

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["INT4_BLOCK", "dtype_counts", "ensure_promised", "ensure_supported"]

INT4_BLOCK = 128
"""So many inputs of an output share a scale in TensorRT's INT4."""

_LEAST_SM = {"bf16": ((8, 0), "Ampere or later"), "fp8": ((8, 9), "Ada, Hopper, Blackwell")}
_OPSETS = {"fp8": 19, "int4": 21}
_FLOATS = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}


def dtype_counts(graph: ir.Model) -> dict[str, int]:
    """How many tensors of each dtype the graph stores, by ONNX's name of it (`FLOAT16`), in alphabetical order."""
    found: Counter[str] = Counter()
    for part in graph.graphs():
        for value in part.initializers.values():
            if value.const_value is not None:
                found[value.const_value.dtype.name] += 1
    return dict(sorted(found.items()))


def ensure_supported(precision: str, sm: tuple[int, int]) -> None:
    """Raises `RequirementError` if a GPU of compute capability `sm` cannot compute in `precision`."""
    least, names = _LEAST_SM.get(precision, ((0, 0), ""))
    if sm < least:
        raise RequirementError(
            f"{precision.upper()} needs a GPU of compute capability {least[0]}.{least[1]} or later ({names}); this one "
            f"has {sm[0]}.{sm[1]}"
        )


def ensure_promised(graph: ir.Model, precision: str) -> None:
    """Raises `StageError` if the graph does not hold what an engine in `precision` is made from."""
    if foreign := sorted(
        {f"{node.domain}.{node.op_type}" for node in nodes(graph) if node.domain not in ("", "ai.onnx")}
    ):
        raise StageError(f"the graph has operators that TensorRT does not know: {', '.join(foreign)}")
    found, version = opset(graph), _OPSETS.get(precision, 0)
    if found < version:
        raise StageError(
            f"{precision.upper()} takes ONNX opset {version}, and the graph has opset {found}: convert it with "
            "`onnx.version_converter`"
        )
    if precision in _FLOATS:
        counts = dtype_counts(graph)
        if not counts.get(_FLOATS[precision]):
            raise StageError(
                f"the graph promises {precision} and stores no {_FLOATS[precision]} tensor (it has "
                f"{', '.join(f'{count} {name}' for name, count in counts.items()) or 'none at all'}): a strongly typed "
                "engine of it would compute in other dtypes"
            )
    if precision == "int8":
        _ensure_pairs(graph, "INT8")
    elif precision == "fp8":
        _ensure_pairs(graph, "FLOAT8E4M3FN")
    elif precision == "int4":
        _ensure_blocks(graph)


def _ensure_pairs(graph: ir.Model, dtype: str) -> None:
    """QuantizeLinear on activations, DequantizeLinear on constant weights with a scale for each channel; no zero point
    but 0."""
    activations = weights = 0
    for node in nodes(graph):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.domain != "":
            continue
        zero = _tensor(node, 2)
        if zero is not None and (zero.dtype.name != dtype or _any_nonzero(zero)):
            raise StageError(
                f"{_name(node)} has a zero point of {zero.dtype.name}"
                f"{' that is not 0' if _any_nonzero(zero) else ''}; TensorRT takes symmetric {dtype} only"
            )
        if node.op_type == "QuantizeLinear":
            if zero is None:
                raise StageError(f"{_name(node)} has no zero point, which makes it UINT8; TensorRT takes {dtype}")
            activations += 1
            continue
        stored, scale = _tensor(node, 0), _tensor(node, 1)
        if stored is None:
            continue
        if stored.dtype.name != dtype:
            raise StageError(f"{_name(node)} stores {stored.dtype.name}; {dtype} was promised")
        if scale is not None and scale.size == 1 and max(stored.shape.numpy()) > 1 and len(stored.shape) > 1:
            raise StageError(f"{_name(node)} has one scale for the whole weight; a scale for each channel was promised")
        weights += 1
    if not activations or not weights:
        raise StageError(
            f"the graph has {activations} quantised activations and {weights} quantised weights in {dtype}: nothing "
            "would be computed in it"
        )


def _ensure_blocks(graph: ir.Model) -> None:
    found = 0
    for node in nodes(graph):
        stored = _tensor(node, 0) if node.op_type == "DequantizeLinear" else None
        if stored is None or stored.dtype.name != "INT4":
            continue
        size = node.attributes.get_int("block_size", 0)
        if size != INT4_BLOCK:
            raise StageError(f"{_name(node)} has blocks of {size}; TensorRT's INT4 takes blocks of {INT4_BLOCK}")
        zero = _tensor(node, 2)
        if zero is not None and _any_nonzero(zero):
            raise StageError(f"{_name(node)} has zero points; TensorRT's INT4 is symmetric")
        found += 1
    if not found:
        raise StageError("the graph promises int4 and has no DequantizeLinear of an INT4 tensor")


def _tensor(node: ir.Node, position: int) -> Any:
    if len(node.inputs) <= position:
        return None
    value = node.inputs[position]
    return None if value is None else value.const_value


def _any_nonzero(tensor: Any) -> bool:
    return bool((tensor.numpy().astype("float32") != 0).any())


def _name(node: ir.Node) -> str:
    return f"the {node.op_type} of {node.outputs[0].name!r}"
