"""The table on the terminal: what a person reads after a run."""

from __future__ import annotations

import io
import re

import pytest
from example_result import example_result
from example_search import searched_result
from rich.cells import cell_len
from rich.console import Console

from pipeline.figures import bytes_text, interval_text, number_text, percent_text, seconds_text, times_text
from pipeline.result import MlflowLink, RunResult
from pipeline.table import print_result


def printed(result: RunResult, width: int = 100, terminal: bool = False) -> str:
    stream = io.StringIO()
    print_result(result, Console(file=stream, width=width, highlight=False, force_terminal=terminal))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("metric", [True, False])
def test_the_table_fits_the_terminal(width: int, metric: bool) -> None:
    text = printed(example_result(metric), width)
    table = text[: text.index("fail  fp16")].splitlines()
    assert max(cell_len(line.rstrip()) for line in table) <= width
    assert "…" not in text, "no figure is cut off"


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("metric", [True, False])
def test_twelve_variants_in_two_runtimes_fit_the_terminal(width: int, metric: bool) -> None:
    text = printed(searched_result(metric), width)
    table = text[: text.index("pass  fp32")].splitlines()
    assert max(cell_len(line.rstrip()) for line in table) <= width
    assert len([line for line in table if line.strip()]) == 3 + 2 * 12 + (0 if width == 100 else 3)
    broken = [line.strip().split("  ")[0] for line in table if "int8-static-entropy" in line]
    assert broken == ["int8-static-entropy-openvino" if width == 100 else "int8-static-entropy-"], "not within a word"


def test_the_runtime_is_told_where_there_are_several() -> None:
    text = printed(searched_result())
    assert "pass · onnxruntime " in text
    assert "pass · openvino " in text
    assert "onnxruntime" not in printed(example_result())


def test_what_is_slower_here_is_told_and_only_if_it_is_known() -> None:
    result = searched_result()
    assert f"slower here than the baseline: fp16 {times_text(0.829)}, int4 {times_text(0.906)}" in printed(result)
    fp16 = next(variant for variant in result.variants if variant.name == "fp16")
    assert fp16.batches[0].speedup is not None
    fp16.batches[0].speedup.high = 1.01
    assert f"slower here than the baseline: int4 {times_text(0.906)}" in printed(result)
    assert "slower here" not in printed(example_result())


def test_a_search_tells_what_it_left_and_what_it_did_not_try() -> None:
    text = printed(searched_result(), 140)
    assert "searched  14 candidates, 10 measured in full; not tried, the time was up: int4-64-openvino" in text
    assert "front     bf16-openvino, int8-static-openvino, int8-static" in text
    assert "searched" not in printed(example_result())


def test_the_baseline_is_first_and_the_chosen_one_is_marked() -> None:
    lines = printed(example_result()).splitlines()
    names = [line[1:].split()[0] for line in lines if re.match(r". (fp|int)| {3}(fp|int)|▸", line)]
    assert names == ["fp32", "fp16", "int8-dynamic", "int4-weight-only"]
    assert next(line for line in lines if line.startswith("▸")).split()[1] == "int8-dynamic"
    assert "fp32 (baseline)" in printed(example_result())


def test_every_figure_comes_with_its_spread() -> None:
    result = example_result()
    text = printed(result)
    chosen = text[text.index("▸") :].splitlines()[:2]
    latency = result.variants[2].latency_ms
    assert latency is not None
    for value in (latency.p50, latency.p95, latency.p99):
        assert number_text(value) in chosen[0]
    assert chosen[1].count("±") == 3
    assert times_text(2.85) in chosen[1]
    assert "0.8720" in chosen[0]
    assert "drop ≤ 0.71 %" in chosen[1]
    assert "22.9 MB" in chosen[0]
    assert "205 MB" in chosen[1]
    assert "pass · fused" in chosen[1]


def test_without_a_metric_fidelity_stands_there() -> None:
    text = printed(example_result(metric=False))
    assert "cosine" in text
    assert interval_text(0.9882, 0.9970) in text
    assert "drop" not in text.split("fail  fp16")[0]


def test_reasons_release_record_and_report_are_told() -> None:
    result = example_result()
    result.mlflow = MlflowLink(
        tracking_uri="http://host:5000", experiment="optimize/minilm", url="http://host:5000/#/experiments/1/runs?x"
    )
    result.report = "store/jobs/1/report.html"
    text = printed(result, 140)
    assert "fp16: recall@1 drops by 1.5 % (at most 2.3 %), and 1 % is allowed" in text
    assert "quantise: the worker was killed (SIGSEGV)" in text
    assert "published minilm version 3 (int8-dynamic) in model_repository_out" in text
    assert "http://host:5000/#/experiments/1/runs?x" in text
    assert "store/jobs/1/report.html" in text
    assert "warning: fp16: this processor" in text


def test_a_database_is_told_with_the_command_that_shows_it() -> None:
    result = example_result()
    result.mlflow = MlflowLink(tracking_uri="sqlite:////data/mlflow.db", experiment="optimize/minilm", run_id="1")
    assert "optimize ui --tracking-uri sqlite:////data/mlflow.db" in printed(result, 140)


def test_a_record_that_waits_is_said_with_the_remedy() -> None:
    result = example_result()
    result.mlflow = MlflowLink(tracking_uri="http://host", experiment="e", spooled="http://host cannot be reached")
    text = printed(result, 140)
    assert "http://host cannot be reached" in text
    assert "optimize records sync" in text


def test_colours_are_for_terminals_only() -> None:
    assert "\x1b[" not in printed(example_result())
    assert "\x1b[32mpass" in printed(example_result(), terminal=True)
    assert "\x1b[31mfail" in printed(example_result(), terminal=True)


def test_inconclusive_says_once_how_many_samples_would_decide() -> None:
    result = example_result()
    result.variants[0].verdict, result.variants[0].samples_needed = "inconclusive", 5400
    result.variants[0].reason = "about 5,400 samples would decide (4,200 more)"
    assert printed(result, 160).count("would decide") == 1


def test_a_run_without_a_single_figure_is_still_told() -> None:
    result = example_result()
    result.status, result.message, result.release, result.chosen = "failed", "convert: out of memory", None, None
    result.variants = [variant.model_copy() for variant in result.variants]
    for variant in result.variants:
        for name in ("latency_ms", "throughput_per_s", "speedup", "metric", "size_bytes", "peak_memory_bytes"):
            setattr(variant, name, None)
        variant.batches, variant.fidelity, variant.verdict, variant.fused = [], {}, "not_run", None
    text = printed(result, 80)
    assert "convert: out of memory" in text
    assert text.count("not run") >= 4
    result.variants = []
    assert "convert: out of memory" in printed(result)


def test_another_batch_size_than_one_is_said() -> None:
    result = example_result()
    assert "batches of" not in printed(result)
    for variant in result.variants:
        variant.batches = variant.batches[1:]
        if variant.batches:
            variant.latency_ms = variant.batches[0].latency_ms
    assert "latency is that of batches of 8" in printed(result)


def test_quantities_as_people_write_them() -> None:
    assert [number_text(value) for value in (0.0432, 4.312, 9.999, 43.14, 431.4, 12345)] == [
        "0.0432", "4.31", "10.0", "43.1", "431", "12 345",
    ]  # fmt: skip
    assert [bytes_text(value) for value in (12, 22_900_000, 999_900, 3_100_000_000)] == [
        "12 B", "22.9 MB", "1.00 MB", "3.10 GB",
    ]  # fmt: skip
    assert [seconds_text(value) for value in (0.31, 4.312, 725)] == ["310 ms", "4.31 s", "12 min 5 s"]
    assert percent_text(-0.00001) == "0.0 %"
