"""What an engine computes in, read from the engine itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from stages.errors import StageError

__all__ = ["ensure_computes_in", "layer_dtypes"]

_WORDS: Mapping[str, re.Pattern[str]] = {
    # The inspector says `Half`, `FP16` or `Float16`, by version and layer; FP8 and INT4 before the shorter words.
    "bf16": re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE),
    "fp8": re.compile(r"\b(fp8|float8\w*|e4m3\w*)\b", re.IGNORECASE),
    "fp16": re.compile(r"\b(half|fp16|float16)\b", re.IGNORECASE),
    "int8": re.compile(r"\bint8\b", re.IGNORECASE),
    "int4": re.compile(r"\bint4\b", re.IGNORECASE),
    "fp32": re.compile(r"\b(float|fp32|float32|tf32)\b", re.IGNORECASE),
}
_MOVES = ("Reformat", "NoOp", "Constant", "Shuffle", "Signal", "Wait", "ShapeHostToDevice", "Cast")
"""Types of layers that move or turn values: that they touch a dtype says nothing of the arithmetic."""


def layer_dtypes(information: str) -> dict[str, int]:
    """How many computing layers touch each dtype, from the inspector's JSON of an engine built with detailed profiling
    verbosity. A layer may count for several; layers that only move values count for none.

    Raises `StageError` if the engine was built without that detail.
    """
    layers = json.loads(information).get("Layers", [])
    if any(isinstance(layer, str) for layer in layers):
        raise StageError("the engine holds no more than the names of its layers: build it with detailed verbosity")
    counts: Counter[str] = Counter()
    for layer in layers:
        if layer.get("LayerType") not in _MOVES:
            counts.update(_dtypes(layer))
    return dict(sorted(counts.items()))


def ensure_computes_in(precision: str, counts: Mapping[str, int]) -> None:
    """Raises `StageError` if no computing layer touches the dtype of `precision`: an engine that was not asked for."""
    if precision != "fp32" and not counts.get(precision):
        there = ", ".join(f"{count} in {name}" for name, count in counts.items()) or "none that compute"
        raise StageError(f"the engine was to compute in {precision}, and its layers are: {there}")


def _dtypes(layer: Mapping[str, Any]) -> set[str]:
    """From formats of inputs and outputs and from types of weights; not from names of layers, which are the model's own
    words."""
    said = [str(tensor.get("Format/Datatype", "")) for side in ("Inputs", "Outputs") for tensor in layer.get(side, [])]
    said += [str(value.get("Type", "")) for value in layer.values() if isinstance(value, dict)]
    said += [str(tensor.get("Datatype", "")) for side in ("Inputs", "Outputs") for tensor in layer.get(side, [])]
    text = " ".join(said).replace("_", " ")
    return {name for name, pattern in _WORDS.items() if pattern.search(text)}
