"""What a round leaves for the page of a CI job, also where the registry's text is hostile."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from pipeline.triggers.backoff import Backoff
from pipeline.triggers.queue import Row
from pipeline.triggers.summary import document, junit, markdown, status_text
from pipeline.triggers.watch import Round
from pipeline.triggers.work import State, Work

HOSTILE = 'a | b <script>alert("x")</script> \x1b[31m\x00 [click](http://evil) `x`\nnext'


def row(state: State, code: int, message: str = "as it went", version: int = 1) -> Row:
    work = Work("0" * 64, "http://tracking", "minilm", version, "new version", "cheap", {})
    return Row(work, state, 1, 0.0, 0.0, 1.5, code, message, "int8-dynamic", "minilm/1", "minilm-optimized/1")


def test_junit_tells_refusals_from_errors() -> None:
    round_ = Round([row("done", 0), row("refused", 3), row("failed", 4, HOSTILE)], {"other": "no such recipe"})
    suite = ET.fromstring(junit(round_))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "2")
    done, refused, failed, other = suite.findall("testcase")
    assert (done.find("failure"), done.find("error")) == (None, None)
    assert refused.find("failure") is not None
    error = failed.find("error")
    assert error is not None
    assert '<script>alert("x")</script>' in (error.get("message") or "")
    assert other.get("classname") == "other"


def test_markdown_shows_text_as_text() -> None:
    text = markdown(Round([row("failed", 4, HOSTILE)], {HOSTILE: "x"}))
    assert "<script" not in text.replace("\\<script", "")
    assert "[click](" not in text.replace("\\[click\\](", "")
    table = [line for line in text.splitlines() if line.startswith("| minilm")]
    assert table == ["| minilm | 1 | new version | cheap | failed: int8-dynamic | minilm-optimized/1 |"]
    assert "Nothing to do" in markdown(Round())


@pytest.mark.parametrize(
    ("codes", "expected"), [([], 0), ([0, 0], 0), ([0, 3], 3), ([3, 2], 2), ([2, 4, 3], 4), ([4, 5], 5), ([1, 5], 1)]
)
def test_the_gravest_decides_the_exit_code(codes: list[int], expected: int) -> None:
    assert Round([row("failed", code) for code in codes]).exit_code == expected
    assert Round([row("done", 0)], {"other": "no such recipe"}).exit_code == 2


def test_the_status_for_people_and_programs() -> None:
    assert status_text([]) == "nothing was asked for yet"
    lines = status_text([row("done", 0), row("running", 0, "", 2)]).splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["state", "model", "version"], ["done", "minilm", "1"], ["running", "minilm", "2"],
    ]  # fmt: skip
    assert not set("\x1b\x00") & set(status_text([row("failed", 4, HOSTILE)]))
    [work] = document([row("done", 0)])["work"]
    assert (work["state"], work["asked_at"]) == ("done", "1970-01-01T00:00:00+00:00")


def test_waits_grow_to_a_limit_and_begin_anew() -> None:
    backoff = Backoff(1.0, 60.0)
    waits = [backoff.failed() for _ in range(2000)]
    assert all(min(2.0**place, 60) / 2 <= wait <= min(2.0**place, 60) for place, wait in enumerate(waits[:40]))
    assert max(waits) <= 60
    assert len(set(waits[10:])) > 1900, "no two watchers come at the same time"
    backoff.succeeded()
    assert backoff.failed() <= 1.0
