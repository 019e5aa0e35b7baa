"""MLflow's own pages, opened by the links that are printed, in a real browser: what decides is on them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from shown import Shown, registered
from workplace import Classifier, Workplace

from pipeline.figures import times_text
from pipeline.records import Recorder
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
def shown(place: Workplace, result: RunResult) -> Iterator[Shown]:
    registered(place, result, "digits")
    before = result.model_copy(update={"job_id": "before", "started_at": "2026-01-01T00:00:00+00:00"})
    recorder = Recorder(place.store / "records", place.tracking_uri)
    try:
        assert recorder.deliver(before).spooled is None
    finally:
        recorder.close()
    with Shown(place, result, "digits") as shown:
        yield shown


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
    said = browser.until(*VARIANTS, "speedup/p50_x", "speedup/p95_x", "accuracy/delta_pp", "gate/passed")
    assert "4 matching runs" in said
    assert result.job_id in browser.run("[...document.querySelectorAll('input')].map(each => each.value).join()")
    for name in VARIANTS:
        browser.until(f"{speedup(result, name):.2f}")


def test_the_printed_table_has_columns_for_speed_up_and_verdict(
    shown: Shown, browser: Browser, result: RunResult
) -> None:
    browser.open(shown.table)
    said = browser.until(*VARIANTS, "optimize.verdict", "speedup/p50_x", "latency/p95_ms", "accuracy/drop_upper")
    assert len(re.findall(r"^pass$", said, re.MULTILINE)) == 6
    for name in VARIANTS[1:]:
        assert str(speedup(result, name))[:8] in said
    assert "8 matching runs" in said, "the jobs before it are below"


def test_mlflows_comparison_of_the_variants_shows_figures_side_by_side(
    shown: Shown, browser: Browser, result: RunResult
) -> None:
    browser.open(shown.comparison())
    said = browser.until("Comparing 3 Runs from 1 Experiment", *VARIANTS, "speedup/p95_x", "optimize.verdict")
    assert re.search(r"optimize\.verdict\s+pass\s+pass\s+pass", said)
    assert f"{speedup(result, 'int8-dynamic'):.3f}".rstrip("0") in said


def test_the_jobs_page_has_the_verdicts_as_a_table_and_the_model(
    shown: Shown, browser: Browser, result: RunResult
) -> None:
    browser.open(shown.job_page())
    said = browser.until(*VARIANTS, "speed-up", "verdict", "digits-1-int8-dynamic")
    for name in VARIANTS:
        assert times_text(speedup(result, name)) in said


def test_the_registered_versions_page_tells_speed_up_verdict_and_source(
    shown: Shown, browser: Browser, result: RunResult
) -> None:
    browser.open(shown.version_page())
    said = browser.until("digits-optimized", "optimize.verdict", "optimize.speedup", "champion")
    told = dict(re.findall(r"optimize\.(\w+)\s+(\S+)", said))
    assert (told["verdict"], told["variant"], told["release"]) == ("pass", "int8-dynamic", "digits/1")
    assert told["speedup"] == str(float(f"{speedup(result, 'int8-dynamic'):.4g}"))
    assert told["source_digest"] == result.source_digest


# The server that shows them


def test_ctrl_c_ends_it_and_leaves_nothing_behind(place: Workplace, result: RunResult) -> None:
    with Shown(place, result, "digits") as shown:
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
