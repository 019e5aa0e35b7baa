"""Limits on what the profile measured: latency, speed, size, memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.gate.judgement import Gate, Limits, verdict_on
from stages.profile.latency import calls_to_bound

__all__ = ["figure_gates"]


def figure_gates(figures: Mapping[str, Any] | None, limits: Limits) -> list[Gate]:
    gates = []
    error = (figures or {}).get("error")
    wanted = {
        name: getattr(limits, name)
        for name in ("max_p50_ms", "max_p95_ms", "max_p99_ms", "min_speedup", "max_size_bytes", "max_peak_memory_bytes")
        if getattr(limits, name) is not None
    }
    if error:
        gates.append(Gate.of("profile", "fail", None, None, None, f"it could not be measured: {error}"))
        return gates
    for name, limit in wanted.items():
        short = name.removeprefix("max_").removeprefix("min_")
        low, value, high, calls = _measured(short, figures, limits.batch_size)
        if value is None or low is None or high is None:
            gates.append(
                Gate.of(short, "inconclusive", None, None, limit, f"{short} was not measured (limit {limit:g})")
            )
            continue
        least = calls_to_bound(_PERCENTILES[short]) if short in _PERCENTILES else 0
        if name.startswith("min_"):
            verdict = verdict_on(-high, -low, -limit)
            bound = high if verdict == "fail" else low
        else:
            verdict = verdict_on(low, high, limit)
            bound = low if verdict == "fail" else high
        reason = f"{short} {value:g} ({low:g} to {high:g}), limit {limit:g}"
        if verdict == "pass" and calls < least:
            verdict = "inconclusive"
            reason += f"; {calls} calls cannot bound it from above, {least} can: give the profile more time"
        gates.append(Gate.of(short, verdict, value, bound, limit, reason))
    return gates


_PERCENTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}


def _measured(
    short: str, figures: Mapping[str, Any] | None, batch_size: int
) -> tuple[float | None, float | None, float | None, int]:
    """Low, value, high and the number of calls of a measured figure; Nones where it was not measured."""
    if figures is None:
        return None, None, None, 0
    if short in ("size_bytes", "peak_memory_bytes"):
        return figures.get(short), figures.get(short), figures.get(short), 0
    if short == "speedup":
        ratio = (figures.get("speedups") or {}).get(str(batch_size)) or {}
        return ratio.get("low"), ratio.get("value"), ratio.get("high"), 0
    batch = (figures.get("batches") or {}).get(str(batch_size))
    if batch is None:
        return None, None, None, 0
    latency, percentile = batch["latency_ms"], short.removesuffix("_ms")
    return latency[f"{percentile}_low"], latency[percentile], latency[f"{percentile}_high"], batch["calls"]
