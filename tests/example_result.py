"""A run's result as a real run gives it, for what is made from results."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.result import (
    BatchFigures,
    DataFigures,
    FallbackResult,
    FallbackTrial,
    GroupEffect,
    Interval,
    KeptGroup,
    Latency,
    MetricFigures,
    Release,
    RunResult,
    StageFigures,
    VariantResult,
)

BATCHES = (1, 8, 32)
_SPEED = {"fp32": 12.3, "fp16": 10.9, "int8-dynamic": 4.31}


def example_latencies() -> dict[str, NDArray[np.float64]]:
    """`<variant>/<batch>`: milliseconds, skewed as latencies are."""
    random = np.random.default_rng(7)
    return {
        f"{name}/{batch}": base * batch**0.8 * (0.93 + random.gamma(1.3, 0.07, 400)) + (random.random(400) > 0.985) * 4
        for name, base in _SPEED.items()
        for batch in BATCHES
    }


def latency_of(times: NDArray[np.float64]) -> Latency:
    """Percentiles with the intervals of a small bootstrap."""
    drawn = np.random.default_rng(0).choice(times, (200, len(times)))
    figures = {}
    for percentile in (50, 95, 99):
        figures[f"p{percentile}"] = float(np.percentile(times, percentile))
        low, high = np.percentile(np.percentile(drawn, percentile, axis=1), [2.5, 97.5])
        figures[f"p{percentile}_low"], figures[f"p{percentile}_high"] = float(low), float(high)
    return Latency(**figures)


def _variant(name: str, precision: str, size: int, memory: int) -> VariantResult:
    times = example_latencies()
    batches = []
    for batch in BATCHES:
        figures = latency_of(times[f"{name}/{batch}"])
        batches.append(
            BatchFigures(
                batch_size=batch,
                latency_ms=figures,
                throughput_per_s=1000 * batch / figures.p50,
                calls=400,
                relative_interval=0.02,
                settled=True,
            )
        )
    return VariantResult(
        name=name,
        baseline=name == "fp32",
        precision=precision,
        fused=False,
        verdict="pass",
        size_bytes=size,
        peak_memory_bytes=memory,
        cold_start_ms=210.0,
        latency_ms=batches[0].latency_ms,
        batches=batches,
        throughput_per_s=batches[0].throughput_per_s,
        speedup=12.3 / _SPEED[name],
        digest=f"{len(name):064x}",
    )


def example_result(metric: bool = True) -> RunResult:
    """Four variants: a baseline, one that fails, one that passes and was chosen, one that broke."""
    fp32 = _variant("fp32", "fp32", 90_400_000, 330_000_000)
    fp16 = _variant("fp16", "fp16", 45_300_000, 410_000_000)
    int8 = _variant("int8-dynamic", "int8", 22_900_000, 205_000_000)
    int8.fused = True
    int8.fused_speedup = 1.06
    fp16.verdict = "fail"
    for variant, cosine in ((fp32, 1.0), (fp16, 0.99998), (int8, 0.9941)):
        variant.fidelity = {"cosine": Interval(value=cosine, low=2 * cosine - 1, high=(1 + cosine) / 2)}
    if metric:
        for variant, value, drop, upper in (
            (fp32, 0.874, 0.0, 0.0),
            (fp16, 0.861, 0.0149, 0.0231),
            (int8, 0.872, 0.0023, 0.0071),
        ):
            variant.metric = MetricFigures(
                name="recall@1", value=value, low=value - 0.031, high=value + 0.027, drop=drop, drop_upper=upper
            )
        fp16.reason = "recall@1 drops by 1.5 % (at most 2.3 %), and 1 % is allowed"
    else:
        fp16.reason = "the mean cosine 0.9800 is under 0.99"
    broken = VariantResult(
        name="int4-weight-only", precision="int4", verdict="error", reason="quantise: the worker was killed (SIGSEGV)"
    )
    return RunResult(
        status="published",
        exit_code=0,
        message="int8-dynamic is published: 2.85 times as fast as fp32, recall@1 drops by at most 0.7 %",
        job_id="minilm-0123456789abcdef",
        model="minilm",
        source="sentence-transformers/all-MiniLM-L6-v2",
        source_digest="c0ffee" + "0" * 58,
        task="sentence-embedding",
        target="cpu",
        objective="latency",
        metric="recall@1" if metric else None,
        evidence="recall@1 on 1,200 query-document pairs, paired with the baseline"
        if metric
        else "the baseline's own outputs on 600 samples",
        samples=1200 if metric else 600,
        data=[
            DataFigures(
                role="calibration",
                name="docstrings.jsonl",
                source="data/docstrings.jsonl",
                digest="ca" * 32,
                samples=300,
            ),
            DataFigures(
                role="evaluation", name="search.jsonl", source="data/search.jsonl", digest="e5" * 32, samples=1200
            ),
        ],
        limits={"max_drop": 0.01, "min_cosine": 0.99},
        chosen="int8-dynamic",
        release=Release(
            repository="model_repository_out",
            model="minilm",
            version=3,
            variant="int8-dynamic",
            digest="ab" * 32,
            verified=True,
        ),
        variants=[fp16, fp32, int8, broken],
        stages=[
            StageFigures(name="source", key="1" * 64, cached=False, seconds=0.31, peak_memory_bytes=96_000_000),
            StageFigures(name="convert", key="2" * 64, cached=True, seconds=14.2, peak_memory_bytes=910_000_000),
            StageFigures(
                name="int8-dynamic/quantise", key="3" * 64, cached=False, seconds=2.1, peak_memory_bytes=310_000_000
            ),
            StageFigures(name="check", key="4" * 64, cached=False, seconds=21.7, peak_memory_bytes=420_000_000),
            StageFigures(
                name="profile",
                key="5" * 64,
                cached=True,
                seconds=41.0,
                peak_memory_bytes=500_000_000,
                measured_at="2026-11-20T09:12:44+00:00",
                measured_on="bench-3",
            ),
            StageFigures(name="verify", key="6" * 64, cached=False, seconds=11.0, peak_memory_bytes=None),
        ],
        host={
            "cpu": "AMD EPYC 7B13",
            "cores": 8,
            "memory_bytes": 33_500_000_000,
            "flags": ["avx2", "fma"],
            "load_average": 0.4,
        },
        libraries={"onnxruntime": "1.31.1", "torch": "2.13.0", "onnx": "1.23.2", "transformers": "5.17.0"},
        warnings=["fp16: this processor has no half-precision arithmetic; the graph computes in fp32"],
        started_at="2026-11-22T10:01:02+00:00",
        seconds=78.4,
        peak_memory_bytes=910_000_000,
    )


def example_fallback() -> RunResult:
    """The same run, with a variant that failed and came back with two groups of its operators in higher precision."""
    result = example_result(metric=False)
    blocks = [
        GroupEffect(
            name=f"encoder.layer.{block} {part}",
            operators=[f"layer_{block}_{part}_{number}" for number in range(size)],
            effect=effect / (1 + block),
            sqnr_db=float(-10 * np.log10(effect / (1 + block))),
            cosine_error=effect / (1 + block) / 2,
        )
        for part, size, effect in (("attention", 4, 0.0008), ("MLP", 2, 0.06))
        for block in range(6)
    ]
    groups = sorted(blocks, key=lambda group: -group.effect)
    for group in groups[:2]:
        group.kept = True
    result.fallbacks = [
        FallbackResult(
            variant="int8-static",
            found="int8-static+fallback",
            reason="2 of 12 groups (4 of 36 operators) in higher precision, found in 4 evaluations",
            trials=[
                FallbackTrial(groups=6, operators=16, verdict="pass", reason="mean cosine 0.9991"),
                FallbackTrial(groups=3, operators=6, verdict="pass", reason="mean cosine 0.9979"),
                FallbackTrial(groups=1, operators=2, verdict="fail", reason="mean cosine 0.9702"),
                FallbackTrial(groups=2, operators=4, verdict="pass", reason="mean cosine 0.9951"),
            ],
            sensitivity=groups,
            samples=32,
        )
    ]
    failed = VariantResult(
        name="int8-static",
        precision="int8",
        verdict="fail",
        reason="mean cosine 0.9312 is beyond the limit 0.99",
        fidelity={"cosine": Interval(value=0.9312, low=0.921, high=0.94)},
        measurement="profile",
        quantised_operators=36,
        operators=38,
        size_bytes=23_100_000,
    )
    found = failed.model_copy(
        update={
            "name": "int8-static+fallback",
            "verdict": "pass",
            "reason": "mean cosine 0.9951, at worst 0.9944 with 95% confidence (limit 0.99)",
            "fidelity": {"cosine": Interval(value=0.9951, low=0.9944, high=0.9957)},
            "measurement": "profile fallback",
            "kept": [KeptGroup(name=group.name, operators=group.operators) for group in groups if group.kept],
            "quantised_operators": 32,
            "size_bytes": 26_700_000,
        }
    )
    result.variants += [failed, found]
    result.warnings.append(f"int8-static+fallback is int8-static with {result.fallbacks[0].reason}")
    return result
