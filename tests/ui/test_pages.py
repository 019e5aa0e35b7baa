"""MLflow's own pages, opened by the links that are printed, in a real browser: what decides is on them."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from shown import Shown, registered
from test_repository import make_tree
from workplace import Classifier, Workplace

from model_repository import Repository
from pipeline.figures import number_text, times_text
from pipeline.records import Recorder
from pipeline.report import write_report
from pipeline.result import RunResult

VARIANTS = ("fp32", "fp16", "int8-dynamic")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("ui"))


@pytest.fixture(scope="module")
def result(place: Workplace, classifier: Classifier) -> RunResult:
    ended = place.optimize(
        "run", classifier.model, "--name", "digits", "--evaluation", classifier.evaluation, "--variants",
        "fp16,int8-dynamic", "--max-drop", "5%", "--fuse", "never", "--objective", "size", "--batch-sizes", "1,8",
        "--budget", "2s", "--no-verify", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert f"optimize ui --tracking-uri {place.tracking_uri}" in ended.err
    return RunResult.model_validate_json(ended.out)


@pytest.fixture(scope="module")
def shown(place: Workplace, result: RunResult, language: RunResult) -> Iterator[Shown]:
    registered(place, result, "digits")
    before = result.model_copy(update={"job_id": "before", "started_at": "2026-01-01T00:00:00+00:00"})
    recorder = Recorder(place.store / "records", place.tracking_uri)
    try:
        assert recorder.deliver(before).spooled is None
    finally:
        recorder.close()
    with Shown(place, result, "digits", models=2) as shown:
        yield shown


@pytest.fixture(scope="module")
def language(place: Workplace, result: RunResult) -> RunResult:
    """A language model's job, recorded and registered: the result of `optimize run examples/tiny-llama/recipe.yaml`."""
    text = (Path(__file__).parent / "language_result.json").read_text()
    told = RunResult.model_validate_json(text).model_copy(update={"started_at": "2026-01-02T00:00:00+00:00"})
    assert told.release is not None
    published = Repository(place.repository).publish(
        "tiny-llama", make_tree(place.path / "tree", name="tiny-llama"), {}
    )
    told.release = told.release.model_copy(update={"repository": str(place.repository), "digest": published.digest})
    told.message = f"published tiny-llama version 1 (int4-onnx) in {place.repository}"
    report = place.path / "language.html"
    write_report(told, report, None)
    recorder = Recorder(place.store / "records", place.tracking_uri)
    try:
        told.mlflow = recorder.deliver(told, report=report)
    finally:
        recorder.close()
    assert told.mlflow.spooled is None
    registered(place, told, "tiny-llama")
    for path in (report, place.path / "tree"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return told


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = chromium()
    if executable is None:
        pytest.skip("there is no Chromium here (Debian and Ubuntu: apt-get install chromium)")
    with Browser(executable, height=6000) as browser:  # charts are drawn where they can be seen
        yield browser


def speedup(result: RunResult, name: str) -> float:
    value = next(row.speedup for row in result.variants if row.name == name)
    assert value is not None
    return value


def test_the_printed_link_opens_the_charts_of_this_jobs_variants(
    shown: Shown, browser: Browser, result: RunResult
) -> None:
    browser.open(shown.charts)
    figures = ("speedup/p50_x", "speedup/p95_x", "accuracy/delta_pp", "gate/passed")
    browser.until(*VARIANTS, *figures, "4 matching runs")
    browser.until(result.job_id, script="[...document.querySelectorAll('input')].map(each => each.value).join()")
    for name in VARIANTS:
        browser.until(f"{speedup(result, name):.2f}")


def test_the_printed_table_has_columns_for_speed_up_and_verdict(
    shown: Shown, browser: Browser, result: RunResult
) -> None:
    browser.open(shown.table)
    browser.until(*VARIANTS, "optimize.verdict", "speedup/p50_x", "latency/p95_ms", "accuracy/drop_upper")
    browser.until("8 matching runs")  # the jobs before it are below
    browser.until(re.compile(r"^pass$(.*^pass$){5}", re.MULTILINE | re.DOTALL))
    browser.until(*(str(speedup(result, name))[:8] for name in VARIANTS[1:]))


def test_mlflows_comparison_of_the_variants_shows_figures_side_by_side(
    shown: Shown, browser: Browser, result: RunResult
) -> None:
    browser.open(shown.comparison())
    browser.until("Comparing 3 Runs from 1 Experiment", *VARIANTS, "speedup/p95_x")
    browser.until(re.compile(r"optimize\.verdict\s+pass\s+pass\s+pass"))
    browser.until(f"{speedup(result, 'int8-dynamic'):.3f}".rstrip("0"))


def test_the_jobs_page_has_the_verdicts_as_a_table_and_the_model(
    shown: Shown, browser: Browser, result: RunResult
) -> None:
    browser.open(shown.job_page())
    browser.until(*VARIANTS, "speed-up", "verdict", "digits-1-int8-dynamic")
    said = browser.until(*(times_text(speedup(result, name)) for name in VARIANTS), "Release digits/1, which no server")
    assert str(shown.place.path) not in said.partition("Metrics")[0]


def test_the_registered_versions_page_tells_speed_up_verdict_and_source(
    shown: Shown, browser: Browser, result: RunResult
) -> None:
    browser.open(shown.version_page())
    described = "Release digits/1, which no server has loaded yet. Made from digits version 1."
    said = browser.until(
        "digits-optimized", "champion", described, *(f"optimize.{name}" for name in ("verdict", "speedup", "variant",
        "release", "source_digest"))
    )  # fmt: skip
    told = dict(re.findall(r"optimize\.(\w+)\s+(\S+)", said))
    assert (told["verdict"], told["variant"], told["release"]) == ("pass", "int8-dynamic", "digits/1")
    assert told["speedup"] == str(float(f"{speedup(result, 'int8-dynamic'):.4g}"))
    assert told["source_digest"] == result.source_digest


# A language model


NAMES = ("original", "gptq", "awq", "int8-w8a8", "int4-onnx")
REQUESTS = ("generation/ttft_p50_ms", "generation/tpot_p50_ms", "generation/decode_tokens_per_s")


def test_a_language_models_charts_are_of_tokens_and_perplexity(
    shown: Shown, browser: Browser, language: RunResult
) -> None:
    browser.open(shown.of(language, "tiny-llama").charts)
    said = browser.until(*NAMES, *REQUESTS, "accuracy/perplexity", "speedup/p50_x", "6 matching runs")
    assert "delta_pp" not in said, "perplexity has no percentage points"


def test_a_language_models_table_has_no_empty_column(shown: Shown, browser: Browser, language: RunResult) -> None:
    browser.open(shown.of(language, "tiny-llama").table)
    said = browser.until(*NAMES, REQUESTS[0], REQUESTS[2], "accuracy/perplexity", "optimize.verdict")
    assert not {"accuracy/delta_pp", "fidelity/cosine"} & set(said.splitlines())


def test_a_language_models_job_tells_tokens_a_second_and_the_rise_of_perplexity(
    shown: Shown, browser: Browser, language: RunResult
) -> None:
    browser.open(shown.of(language, "tiny-llama").job_page())
    browser.until(*NAMES, "first token ms", "per token ms", "tokens/s", "speed-up", "perplexity", "rise ≤")
    rows = [number_text(variant.throughput_per_s) for variant in language.variants if variant.throughput_per_s]
    assert len(rows) == len(NAMES)
    said = browser.until(*rows, *(f"{variant.metric.value:.4f}" for variant in language.variants if variant.metric))
    note = said.partition("Metrics")[0]
    assert "drop ≤" not in note
    assert str(shown.place.path) not in note


def test_a_language_models_report_opens_on_its_page(shown: Shown, browser: Browser, language: RunResult) -> None:
    browser.open(shown.of(language, "tiny-llama").artifact_page("report.html"))
    framed = "fetch(document.querySelector('iframe')?.src || 'about:blank').then(it => it.text(), () => '')"
    browser.until("Prefill and decode", "perplexity", *NAMES, script=framed)


def test_a_language_models_version_tells_tokens_a_second(shown: Shown, browser: Browser, language: RunResult) -> None:
    browser.open(shown.of(language, "tiny-llama").version_page())
    said = browser.until("tiny-llama-optimized", "champion", "optimize.tokens_per_s", "optimize.metric")
    told = dict(re.findall(r"optimize\.(\w+)\s+(\S+)", said))
    chosen = language.variants[-1]
    assert (told["variant"], told["metric"]) == ("int4-onnx", "perplexity")
    assert chosen.throughput_per_s is not None
    assert float(told["tokens_per_s"]) == float(f"{chosen.throughput_per_s:.4g}")
    assert f"{number_text(chosen.throughput_per_s)} tokens/s, perplexity 52.3255 (a rise of" in said
    assert str(shown.place.path) not in said


# The server that shows them


def test_ctrl_c_ends_it_and_leaves_nothing_behind(place: Workplace, shown: Shown) -> None:
    """The last test that needs it."""
    port = int(shown.address.rpartition(":")[2])
    assert shown.end() == (0, [])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert {path.name for path in place.path.iterdir()} <= {
        "mlflow.db", "mlartifacts", "store", "repository", "mlflow.db-shm", "mlflow.db-wal",
    }  # fmt: skip


def test_what_cannot_be_shown_is_said(workplace: Workplace, place: Workplace, result: RunResult) -> None:
    ended = workplace.optimize("ui", "--tracking-uri", workplace.tracking_uri)
    assert (ended.code, ended.out) == (2, "")
    assert f"there is no MLflow database {workplace.path}/mlflow.db" in ended.err
    ended = workplace.optimize("ui", "--tracking-uri", "http://127.0.0.1:9")
    assert ended.code == 2
    assert "open http://127.0.0.1:9 in a browser" in ended.err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = place.optimize("ui", "--tracking-uri", place.tracking_uri, "--port", port)
    assert ended.code == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in ended.err
    assert not Path(workplace.path / "mlflow.db").exists()
