"""The variants that there are, and the stage that makes one.

A new precision is one file in `stages/quantise/` (a config, and the handler registered for it) and one line in
`VARIANTS`. What a variant needs and where it runs is declared by its config class; the plan, `optimize doctor` and the
documentation read it from there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages.artifact import Artifact
from stages.errors import InputError
from stages.progress import SILENT, Progress
from stages.quantise.fp16 import Fp16
from stages.quantise.fp32 import Fp32
from stages.quantise.int8_dynamic import Int8Dynamic
from stages.quantise.variant import VariantConfig, build
from stages.stage import Stage

__all__ = ["BASELINE", "QUANTISE", "VARIANTS", "VariantConfig", "parse_variant", "quantise"]

VARIANTS: dict[str, type[VariantConfig]] = {
    "fp32": Fp32,
    "fp16": Fp16,
    "int8-dynamic": Int8Dynamic,
}
"""Every variant by its type, the baseline first."""

BASELINE = "fp32"


def parse_variant(spec: str | Mapping[str, Any]) -> VariantConfig:
    """The config that a recipe means by `int8-dynamic`, or by `{type: int8-dynamic, per_channel: false, …}`.

    Raises `InputError` for an unknown type or parameter, with the nearest right one, and for a wrong value.
    """
    parameters: dict[str, Any] = {"type": spec} if isinstance(spec, str) else dict(spec)
    kind = parameters.get("type")
    if not isinstance(kind, str):
        raise InputError(f"the variant {parameters} has no type; there are {', '.join(VARIANTS)}")
    if kind not in VARIANTS:
        raise InputError(f"there is no variant {kind!r}{_nearest(kind, VARIANTS)}; there are {', '.join(VARIANTS)}")
    config = VARIANTS[kind]
    for key in parameters:
        if key not in config.model_fields:
            known = [field for field in config.model_fields if field != "type"]
            raise InputError(
                f"the variant {kind} has no parameter {key!r}{_nearest(str(key), known)}; it has {', '.join(known)}"
            )
    try:
        return config.model_validate(parameters)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"the variant {kind} cannot be made like this: {faults}") from error


def quantise(model: Artifact, options: VariantConfig, out: Path, progress: Progress = SILENT) -> Artifact:
    """Write the form of `model` (fused or not) that `options` describes into `out`.

    The result has the model's signature, labels and assets, smaller weights (except for the baseline, which is the
    model itself), opens in its runtime and gives finite answers. Raises `StageError` where one of these cannot be had.
    """
    return build(options, model, out, progress)


def _nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


QUANTISE = Stage(
    name="quantise",
    revision=1,
    function=quantise,
    libraries=("onnx", "onnx-ir", "onnxruntime"),
    preload=("onnx_ir", "onnxruntime"),
)
