"""The result of a search as a real run gives it: twelve variants in two runtimes, and all its candidates."""

from __future__ import annotations

import numpy as np
from example_result import BATCHES, example_result, latency_of
from numpy.typing import NDArray

from pipeline.result import (
    BatchFigures,
    FallbackResult,
    FallbackTrial,
    GroupEffect,
    Interval,
    KeptGroup,
    MetricFigures,
    Ratio,
    RunResult,
    VariantResult,
)
from pipeline.searched import CandidateResult

_VARIANTS: dict[str, tuple[str, str, float, float, float, float, str]] = {
    # name: runtime, precision, p50 ms, cosine, recall@1, MB, verdict
    "fp32": ("onnxruntime", "fp32", 8.7, 1.0, 0.874, 90.4, "pass"),
    "bf16-openvino": ("openvino", "bf16", 2.6, 0.99999, 0.874, 45.4, "pass"),
    "int8-static-openvino": ("openvino", "int8", 2.2, 0.9977, 0.871, 23.4, "pass"),
    "int8-static-entropy-openvino": ("openvino", "int8", 2.22, 0.9972, 0.872, 23.4, "pass"),
    "int8-static": ("onnxruntime", "int8", 4.4, 0.9976, 0.870, 23.0, "pass"),
    "int8-dynamic": ("onnxruntime", "int8", 4.3, 0.9935, 0.868, 22.9, "inconclusive"),
    "int8-dynamic+fallback": ("onnxruntime", "int8", 4.9, 0.9961, 0.872, 25.1, "pass"),
    "int8-weight-only-openvino": ("openvino", "int8", 3.1, 0.9997, 0.874, 23.1, "pass"),
    "fp32-openvino": ("openvino", "fp32", 7.3, 1.0, 0.874, 90.5, "pass"),
    "fp16": ("onnxruntime", "fp16", 10.5, 0.99999, 0.874, 45.2, "pass"),
    "int4": ("onnxruntime", "int4", 9.6, 0.9712, 0.842, 18.7, "fail"),
    "int4-openvino": ("openvino", "int4", 5.2, 0.41, 0.310, 18.9, "fail"),
}


def searched_result(metric: bool = True) -> RunResult:
    """Of the twelve, three are the front; `int8-static-openvino` was chosen."""
    result = example_result(metric)
    result.variants = [_variant(name, metric) for name in _VARIANTS]
    result.front = ["bf16-openvino", "int8-static-openvino", "int8-static"]
    result.chosen = "int8-static-openvino"
    assert result.release is not None
    result.release.variant = "int8-static-openvino"
    result.candidates = [
        CandidateResult(
            name=name, type=name, runtime=runtime, precision=precision, reached="full", samples=32,
            size_bytes=round(size * 1e6), speedup=8.7 / p50, speedup_low=8.4 / p50, speedup_high=9 / p50,
            fidelity={"cosine": cosine}, drop=1 - recall / 0.874,
        )
        for name, (runtime, precision, p50, cosine, recall, size, _) in _VARIANTS.items()
        if name not in ("fp32", "int8-dynamic+fallback")
    ]  # fmt: skip
    result.candidates += [
        CandidateResult(
            name="int8-weight-only", type="int8-weight-only", runtime="onnxruntime", precision="int8", reached="race",
            reason="slower and larger than int8-weight-only-openvino, and better in nothing", samples=32,
            size_bytes=59_000_000, speedup=1.2, speedup_low=1.1, speedup_high=1.3, fidelity={"cosine": 0.9996},
            drop=0.001,
        ),
        CandidateResult(
            name="int4-128", type="int4", runtime="onnxruntime", precision="int4", reached="check", samples=32,
            reason="on 32 samples: mean cosine 0.9460 is beyond the limit 0.99 (at best 0.9533 with 95% confidence)",
            size_bytes=17_000_000, fidelity={"cosine": 0.946}, drop=0.06,
        ),
        CandidateResult(
            name="int8-static-7bit", type="int8-static", runtime="onnxruntime", precision="int8", reached="make",
            reason="int8-static-7bit has nothing to quantise",
        ),
        CandidateResult(
            name="int4-64-openvino", type="int4", runtime="openvino", precision="int4", reason="the time was up"
        ),
    ]  # fmt: skip
    result.fallbacks = [_fallback()]
    found = next(variant for variant in result.variants if variant.name == "int8-dynamic+fallback")
    found.kept = [KeptGroup(name=g.name, operators=g.operators) for g in result.fallbacks[0].sensitivity if g.kept]
    found.operators, found.quantised_operators = 37, 34
    found.measurement = "profile fallback"
    return result


def _fallback() -> FallbackResult:
    """Thirteen groups as a transformer of six layers has them, three of them kept."""
    names = [f"encoder.layer.{layer}.{part}" for layer in (5, 4, 3, 2, 1, 0) for part in ("MLP", "attention")]
    names.append("embeddings.word_embeddings table")
    decibels = [21.4, 24.9, 26.0, 31.2, 32.8, 33.1, 35.5, 36.0, 38.2, 40.7, 41.1, 44.9, 61.3]
    groups = [
        GroupEffect(
            name=name, operators=[f"{name}.{n}" for n in range(1 if "table" in name else 3)],
            effect=10 ** (-db / 10), sqnr_db=db, cosine_error=10 ** (-db / 10) / 2, kept=place < 3,
        )
        for place, (name, db) in enumerate(zip(names, decibels, strict=True))
    ]  # fmt: skip
    trials = [(6, 18, "pass"), (3, 9, "pass"), (1, 3, "fail"), (2, 6, "inconclusive")]
    return FallbackResult(
        variant="int8-dynamic", found="int8-dynamic+fallback", samples=32, sensitivity=groups,
        reason="3 of 13 groups (9 of 37 operators) in higher precision, found in 4 evaluations",
        trials=[FallbackTrial(groups=g, operators=o, verdict=v) for g, o, v in trials],  # type: ignore[arg-type]
    )  # fmt: skip


def searched_latencies() -> dict[str, NDArray[np.float64]]:
    """`<variant>/<batch>`: milliseconds."""
    return {f"{name}/{batch}": _times(name, batch) for name in _VARIANTS for batch in BATCHES}


def _times(name: str, batch: int) -> NDArray[np.float64]:
    random = np.random.default_rng(sum(map(ord, name)))
    return np.asarray(_VARIANTS[name][2] * batch**0.8 * (0.93 + random.gamma(1.3, 0.05, 300)))


def _variant(name: str, metric: bool) -> VariantResult:
    runtime, precision, p50, cosine, recall, size, verdict = _VARIANTS[name]
    ratio = 8.7 / p50
    batches = []
    for batch in BATCHES:
        figures = latency_of(_times(name, batch))
        batches.append(
            BatchFigures(
                batch_size=batch, latency_ms=figures, throughput_per_s=1000 * batch / figures.p50, calls=300,
                relative_interval=0.02, settled=True, speedup=Ratio(value=ratio, low=0.97 * ratio, high=1.03 * ratio),
            )
        )  # fmt: skip
    drop = 1 - recall / 0.874
    return VariantResult(
        name=name, baseline=name == "fp32", runtime=runtime, precision=precision, verdict=verdict, form=name,  # type: ignore[arg-type]
        fused=False if runtime == "onnxruntime" else None,
        parameters={"observer": "min-max", "smoothing": "auto"} if "static" in name else {},
        calibrated="static" in name,
        reason=f"recall@1 drops by {drop:.2%}; a drop of {drop + 0.004:.2%} at most with 95% confidence (limit 1.00%)",
        size_bytes=round(size * 1e6), peak_memory_bytes=round((size + 150) * 1e6), cold_start_ms=210.0,
        latency_ms=batches[0].latency_ms, batches=batches, throughput_per_s=batches[0].throughput_per_s,
        speedup=ratio, fidelity={"cosine": Interval(value=cosine, low=2 * cosine - 1, high=(1 + cosine) / 2)},
        metric=MetricFigures(
            name="recall@1", value=recall, low=recall - 0.03, high=recall + 0.02, drop=drop, drop_upper=drop + 0.004
        ) if metric else None,
        digest=f"{len(name):064x}",
    )  # fmt: skip
