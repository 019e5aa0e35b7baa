"""From stored per-sample results, measured figures and limits to a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.artifact import Artifact
from stages.check.per_sample import PerSample
from stages.errors import InputError
from stages.gate.drop import drop_gate, metric_figures
from stages.gate.fidelity import fidelity_figures, fidelity_gate
from stages.gate.figures import figure_gates
from stages.gate.judgement import FidelityFigures, Gate, Judgement, Limits, MetricFigures, Verdict

__all__ = ["judge"]


def judge(
    evaluation: Artifact | PerSample,
    baseline: Artifact | PerSample | None = None,
    limits: Limits | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Judgement:
    """Judge one variant. `baseline` None: this *is* the baseline, which has no accuracy to keep.

    `figures` is the variant's entry in a measurement's metadata (`measurement.metadata["variants"][name]`), needed
    for the limits on latency, speed and memory. Raises `InputError` if the evaluations are of different data or by
    different metrics.
    """
    limits = limits or Limits()
    variant = PerSample.of(evaluation) if isinstance(evaluation, Artifact) else evaluation
    before = PerSample.of(baseline) if isinstance(baseline, Artifact) else baseline
    gates: list[Gate] = []
    needed: int | None = None
    metric: MetricFigures | None = None
    if before is not None and (variant.data, variant.metric) != (before.data, before.metric):
        raise InputError("the variant and the baseline were evaluated on different data or by different metrics")
    if any(_has_nan(one) for one in (variant, before) if one is not None):
        reason = "the results hold NaN: nothing can be judged by them"
        gates.append(Gate.of("evidence", "inconclusive", None, None, None, reason))
        return _conclude([*gates, *figure_gates(figures, limits)], None, {}, None)
    if variant.statistics is not None:
        metric = metric_figures(variant, before, limits)
    fidelity = {name: fidelity_figures(name, column, limits) for name, column in variant.fidelity.items()}
    if before is not None:
        if variant.evidence_kind == "synthetic":
            reason = "no evaluation data; give --evaluation (random inputs prove nothing)"
            gates.append(Gate.of("evidence", "inconclusive", None, None, None, reason))
        elif metric is not None:
            gate, needed = drop_gate(metric, variant, before, limits)
            gates.append(gate)
        else:
            judged = [fidelity_gate(name, variant, limits) for name in variant.decisive]
            gates.extend(gate for gate, _ in judged)
            needed = max((count for _, count in judged if count is not None), default=None)
            if not judged:
                reason = "the model's outputs leave nothing to compare with the baseline's"
                gates.append(Gate.of("evidence", "inconclusive", None, None, None, reason))
    gates.extend(figure_gates(figures, limits))
    return _conclude(gates, metric, fidelity, needed)


def _has_nan(results: PerSample) -> bool:
    columns = [*results.fidelity.values(), *([] if results.statistics is None else [results.statistics])]
    return any(bool(np.isnan(column).any()) for column in columns)


def _conclude(
    gates: list[Gate],
    metric: MetricFigures | None,
    fidelity: dict[str, FidelityFigures],
    needed: int | None,
) -> Judgement:
    verdicts = {gate.verdict for gate in gates}
    verdict: Verdict = "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"
    reasons = [gate.reason for gate in gates if gate.verdict == verdict]
    if not gates:
        reasons = ["the baseline, with no limits of its own to meet"]
    return Judgement(
        verdict=verdict,
        reason="; ".join(reasons),
        gates=tuple(gates),
        metric=metric,
        fidelity=fidelity,
        samples_needed=needed if verdict == "inconclusive" else None,
    )
