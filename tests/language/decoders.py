"""Decoders in ONNX: one that several files of tests look at, made once, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stages.artifact import Artifact
from stages.language.quantise.int4_onnx import Int4Onnx
from stages.language.variants import quantise_checkpoint

__all__ = ["operators", "products", "usual_decoder"]

_MADE: dict[str, Artifact] = {}


def usual_decoder(checkpoint: Artifact, factory: pytest.TempPathFactory) -> Artifact:
    """The variant `int4-onnx` as it is without parameters."""
    if checkpoint.digest not in _MADE:
        _MADE[checkpoint.digest] = quantise_checkpoint(checkpoint, Int4Onnx(), factory.mktemp("int4_onnx"))
    return _MADE[checkpoint.digest]


def operators(decoder: Artifact) -> set[str]:
    """What its graph is made of."""
    return {node.op_type for node in _nodes(decoder)}


def products(decoder: Artifact) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Name, operator and attributes of each product in its graph."""
    for node in _nodes(decoder):
        if node.op_type in ("MatMul", "MatMulNBits"):
            yield node.name, node.op_type, {item.name: item.i for item in node.attribute}


def _nodes(decoder: Artifact) -> Any:
    import onnx

    return onnx.load(decoder.path / "model.onnx", load_external_data=False).graph.node
