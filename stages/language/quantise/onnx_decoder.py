"""What a decoder in ONNX must hold to: the promised layers quantised and no others, smaller, with its cache, finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.language.checkpoint import Checkpoint
from stages.language.quantise.linear_layers import LinearLayers
from stages.language.session import open_language

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

__all__ = ["GRAPH", "HEAD", "ensure_cache", "ensure_finite", "ensure_layers", "ensure_smaller"]

GRAPH = "model.onnx"
HEAD = "/lm_head/MatMul"
"""What GenAI's builder calls the node of the layer that scores the next token."""

_IN_FULL = 32


def ensure_layers(layers: LinearLayers, bits: Mapping[str, int], head_bits: int, out: Path) -> None:
    """Raise `StageError` unless each layer takes the `bits` of its name, 32 by default, and the head `head_bits`.

    Weights are counted, not nodes: the builder joins some layers.
    """
    wanted: Counter[int] = Counter()
    for name, (outputs, inputs) in layers.shapes.items():
        wanted[bits.get(name, _IN_FULL)] += outputs * inputs
    found: Counter[int] = Counter()
    head = None
    for node, count, width in _linear_nodes(_graph(out)):
        if node.name.startswith(HEAD):
            head = width
        else:
            found[width] += count
    if found != wanted:
        raise StageError(
            f"the layers that were to be quantised are not those that are: there are {_said(found)}, "
            f"where it should be {_said(wanted)}"
        )
    if layers.head is not None and head != head_bits:
        raise StageError(f"the head is {'missing' if head is None else _width(head)}, it should be {_width(head_bits)}")


def ensure_cache(about: Checkpoint, out: Path) -> None:
    """Raise `StageError` unless the decoder takes and gives keys and values of every layer that attends."""
    graph = _graph(out)
    layers = range(about.attention.layers)
    for role, prefix, values in (("take", "past_key_values", graph.input), ("give", "present", graph.output)):
        wanted = {f"{prefix}.{layer}.{part}" for layer in layers for part in ("key", "value")}
        found = {value.name for value in values if value.name.startswith(prefix)}
        if found != wanted:
            odd = sorted(found ^ wanted)
            raise StageError(
                f"the decoder does not {role} the keys and values of its {len(layers)} layers: {', '.join(odd[:3])}"
            )


def ensure_smaller(model: Artifact, out: Path) -> None:
    """Raise `StageError` unless the decoder takes less room than the weights of the checkpoint `model`."""
    before = sum((model.path / name).stat().st_size for name in model.files if name.endswith(".safetensors"))
    after = sum(file.stat().st_size for file in out.glob(f"{GRAPH}*"))
    if after >= before:
        raise StageError(
            f"the decoder takes {after:,} bytes, the checkpoint {before:,}: what is not quantised takes 4 bytes "
            "a weight, and in this model that is most of it. `head: int4` quantises more"
        )


def ensure_finite(decoder: Artifact) -> None:
    """Raise `StageError` unless it opens, and what it answers to some tokens is finite."""
    about = Checkpoint.of(decoder)
    length = min(16, about.positions)
    tokens = np.linspace(0, about.vocabulary - 1, length).astype(np.int64)[None]
    try:
        with open_language(decoder) as session:
            finite = bool(np.isfinite(session.logits(tokens)).all())
    except InputError as error:
        raise StageError(f"the decoder does not open: {error}") from error
    if not finite:
        raise StageError("the decoder answers NaN or infinity")


def _graph(out: Path) -> GraphProto:
    import onnx

    return onnx.load(out / GRAPH, load_external_data=False).graph


def _linear_nodes(graph: GraphProto) -> Iterator[tuple[NodeProto, int, int]]:
    """Every product with stored weights: the node, how many weights it has, and in how many bits."""
    stored = {value.name: tuple(value.dims) for value in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            yield node, attributes["K"] * attributes["N"], attributes["bits"]
        elif node.op_type == "MatMul" and node.input[1] in stored:
            yield node, int(np.prod(stored[node.input[1]])), _IN_FULL


def _said(weights: Mapping[int, int]) -> str:
    return ", ".join(f"{count:,} weights {_width(bits)}" for bits, count in sorted(weights.items()) if count) or "none"


def _width(bits: int) -> str:
    return "in full" if bits == _IN_FULL else f"in {bits} bits"
