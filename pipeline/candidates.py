"""The candidates of `variants: auto`: every variant, with each of its runtimes and the few settings worth varying."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.target import TARGET_RUNTIMES, Target
from stages.variants import BASELINE, GRAPH_VARIANTS, VariantConfig, runtimes_of

__all__ = ["candidates"]

_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_DOT_PRODUCTS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})


@dataclass(frozen=True)
class _Row:
    """A variant in one setting; `label` tells its name from that of the usual setting.

    It makes sense on a machine with one of the instruction sets `having`, if it names any, and with none of `lacking`.
    """

    type: str
    label: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    having: frozenset[str] = frozenset()
    lacking: frozenset[str] = frozenset()


_TABLE = (
    _Row("bf16", having=_BF16),
    _Row("int8-static"),
    _Row("int8-weight-only"),
    _Row("int8-dynamic"),
    _Row("fp32"),
    _Row("fp16"),
    _Row("int4"),
    _Row("int8-dynamic", "7bit", {"reduce_range": True}, lacking=_DOT_PRODUCTS),
    _Row("int4", "hqq", {"method": "hqq"}),
    _Row("int8-static", "entropy", {"observer": "entropy"}),
    _Row("int4", "64", {"block_size": 64}),
)
"""The usual settings first, the most promising on a CPU before the others: where time is short, the last are left."""


def candidates(target: Target, instruction_sets: Collection[str]) -> list[VariantConfig]:
    """What is worth trying for `target` on a machine with these instruction sets, in the order to try it.

    Whether there are data to learn from and whether a runtime is installed is found when they are made.
    """
    found = []
    for row in _TABLE:
        config = GRAPH_VARIANTS[row.type]
        if target not in config.targets:
            continue
        if (row.having and not row.having.intersection(instruction_sets)) or row.lacking.intersection(instruction_sets):
            continue
        # OpenVINO before ONNX Runtime: on a CPU it was the faster one in all that we have measured.
        for runtime in sorted(set(runtimes_of(config)).intersection(TARGET_RUNTIMES[target]), reverse=True):
            name = "-".join(filter(None, (row.type, row.label, "" if runtime == "onnxruntime" else runtime)))
            if name != BASELINE:
                found.append(config.model_validate({"runtime": runtime, "name": name, **row.parameters}))
    return found
