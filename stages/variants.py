"""The variants that there are, and the stage that makes one of a graph.

A new precision is one file in `stages/quantise/` or `stages/language/quantise/` (a config, and the handler registered
for it) and one line in `GRAPH_VARIANTS` or `LANGUAGE_VARIANTS`. What a variant needs and where it runs is declared by
its config class; the plan, `optimize doctor` and the documentation read it from there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from calibration.statistics import Statistics
from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.quantise.awq import Awq
from stages.language.quantise.compressed import W4A16, W8A8, Fp8
from stages.language.quantise.gptq import Gptq
from stages.language.quantise.int4_onnx import Int4Onnx
from stages.language.quantise.original import Original
from stages.language.variant import LanguageVariant
from stages.progress import SILENT, Progress
from stages.quantise.bf16 import Bf16
from stages.quantise.fp8_static import Fp8Static
from stages.quantise.fp16 import Fp16
from stages.quantise.fp32 import Fp32
from stages.quantise.int4 import Int4
from stages.quantise.int8_dynamic import Int8Dynamic
from stages.quantise.int8_static import Int8Static
from stages.quantise.int8_weight_only import Int8WeightOnly
from stages.quantise.variant import Runtime, VariantConfig, build
from stages.stage import Stage
from stages.variant import Variant

__all__ = [
    "BASELINE", "GRAPH_VARIANTS", "LANGUAGE_VARIANTS", "ORIGINAL", "QUANTISE", "VARIANTS", "VariantConfig",
    "parse_variant", "quantise", "runtimes_of",
]  # fmt: skip

GRAPH_VARIANTS: dict[str, type[VariantConfig]] = {
    "fp32": Fp32,
    "fp16": Fp16,
    "bf16": Bf16,
    "int8-dynamic": Int8Dynamic,
    "int8-static": Int8Static,
    "int8-weight-only": Int8WeightOnly,
    "int4": Int4,
    "fp8-static": Fp8Static,
}
"""Every variant of a graph by its type, the baseline first."""

BASELINE = "fp32"

LANGUAGE_VARIANTS: dict[str, type[LanguageVariant]] = {
    "original": Original,
    "gptq": Gptq,
    "awq": Awq,
    "w4a16": W4A16,
    "int8-w8a8": W8A8,
    "fp8": Fp8,
    "int4-onnx": Int4Onnx,
}
"""Every variant of a language model that generates text, the baseline first."""

ORIGINAL = "original"

VARIANTS: dict[str, type[Variant]] = {**GRAPH_VARIANTS, **LANGUAGE_VARIANTS}


def parse_variant(spec: str | Mapping[str, Any]) -> Variant:
    """The config that a recipe means by `int8-dynamic`, by `fp32-openvino` (a type and a runtime), or by
    `{type: int8-dynamic, per_channel: false, …}`.

    Raises `InputError` for an unknown type or parameter, with the nearest right one, and for a wrong value.
    """
    parameters: dict[str, Any] = _type_and_runtime(spec) if isinstance(spec, str) else dict(spec)
    kind = parameters.get("type")
    if not isinstance(kind, str):
        raise InputError(f"the variant {parameters} has no type; there are {', '.join(VARIANTS)}")
    if kind not in VARIANTS:
        names = _names()
        raise InputError(f"there is no variant {kind!r}{_nearest(kind, names)}; there are {', '.join(names)}")
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
        # The name is made from the other fields; where one of them is wrong, that is what there is to say.
        told = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in told)
        raise InputError(f"the variant {kind} cannot be made like this: {faults}") from error


def _type_and_runtime(spec: str) -> dict[str, Any]:
    for runtime in get_args(Runtime):
        kind = spec.removesuffix(f"-{runtime}")
        if kind != spec and kind in VARIANTS:
            return {"type": kind, "runtime": runtime}
    return {"type": spec}


def _names() -> list[str]:
    """Every variant in one word: the type, and the type with each of its runtimes behind it."""
    names = []
    for kind, config in VARIANTS.items():
        names += [kind, *(f"{kind}-{runtime}" for runtime in runtimes_of(config) if runtime == "openvino")]
    return names


def runtimes_of(config: type[Variant]) -> tuple[str, ...]:
    """What can run a variant, its usual runtime first."""
    return get_args(config.model_fields["runtime"].annotation)


def quantise(
    model: Artifact,
    options: VariantConfig,
    out: Path,
    progress: Progress = SILENT,
    statistics: Artifact | None = None,
) -> Artifact:
    """Write the form of `model` (fused or not) that `options` describes into `out`.

    `statistics` is an artifact of that kind (`stages.calibrate`), of `model`; variants that learn from data need it.

    The result has the model's signature, labels and assets, smaller weights (except for the baseline, which is the
    model itself), opens in its runtime and gives finite answers. Raises `StageError` where one of these cannot be had,
    `InputError` if statistics are needed and were not given.
    """
    if options.needs_data and statistics is None:
        raise InputError(f"{options.name} is made with statistics of calibration data, and none were given")
    observed = None if statistics is None else Statistics.load(statistics.path)
    return build(options, model, out, progress, observed)


def _nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


QUANTISE = Stage(
    name="quantise",
    revision=2,
    function=quantise,
    libraries=("onnx", "onnx-ir", "onnxruntime"),
    preload=("onnx_ir", "onnxruntime"),
)
