"""report.html: complete in itself, right in its figures, safe against what models and reasons are called."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from example_result import example_latencies, example_result
from example_search import searched_latencies, searched_result

from pipeline.figures import interval_text
from pipeline.report import report_page, write_report
from pipeline.report.distributions import density
from pipeline.report.labels import HEIGHT, Anchor, Box, placed, text_width
from pipeline.report.plot import linear_ticks, log_ticks
from pipeline.report.tradeoff import accuracy_limit
from stages.errors import InputError

PAGE = report_page(example_result(), example_latencies())
SEARCHED = report_page(searched_result(), searched_latencies())


class Tags(HTMLParser):
    """Every tag opened is closed, in order; collects attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def charts(page: str, label: str) -> list[ElementTree.Element]:
    """The wide and the narrow drawing of one chart."""
    found = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page)]
    return [chart for chart in found if chart.get("aria-label", "").startswith(label)]


def of_class(chart: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in chart.iter() if name in element.get("class", "").split()]


def test_the_page_needs_nothing_beside_it() -> None:
    tags = Tags(PAGE)
    assert tags.open == []
    assert not {name for name, _ in tags.attributes} & {"src", "href", "srcset", "data"}
    assert "<script" not in PAGE
    assert "url(" not in PAGE
    assert "@import" not in PAGE


def test_the_page_is_written_without_plotting_libraries(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests')\n"
        "from example_result import example_result\nfrom pipeline.report import write_report\n"
        f"write_report(example_result(), Path({str(tmp_path / 'report.html')!r}))\n"
        "print([name for name in ('matplotlib', 'pandas', 'mlflow', 'jinja2', 'rich') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


def test_it_says_what_was_published_and_why() -> None:
    assert "<h1>minilm version 3: int8-dynamic</h1>" in PAGE
    assert "2.85 times as fast as fp32" in PAGE
    assert "Published in model_repository_out" in PAGE
    assert "drop at most 0.71 %, 1.00 % allowed" in PAGE


def test_when_nothing_was_published_it_says_so() -> None:
    result = example_result()
    result.status, result.message = "none_passed", "no variant passed its gates"
    result.release = result.chosen = None
    page = report_page(result)
    assert "<h1>minilm: nothing was published</h1>" in page
    assert "no variant passed its gates" in page
    assert "Latency distributions" not in page


def test_every_variant_has_its_verdict_and_its_reason() -> None:
    rows = re.findall(r"<strong>([^<]+)</strong>.*?class=\"verdict (\w+)\"", PAGE)
    assert rows == [("fp32", "pass"), ("fp16", "fail"), ("int8-dynamic", "pass"), ("int4-weight-only", "error")]
    assert "recall@1 drops by 1.5 % (at most 2.3 %), and 1 % is allowed" in PAGE
    assert "quantise: the worker was killed (SIGSEGV)" in PAGE


def test_evidence_data_steps_and_surroundings_are_there() -> None:
    for words in (
        "recall@1 on 1,200 query-document pairs", "e5" * 32, "data/search.jsonl", "AMD EPYC 7B13", "1.31.1",
        "reused: measured 2026-11-20 09:12 UTC on bench-3", "from the store", "no half-precision arithmetic",
        "minilm-0123456789abcdef",
    ):  # fmt: skip
        assert words in PAGE, words


def test_discs_stand_at_latency_and_accuracy_and_the_limit_lies_between() -> None:
    for chart in charts(PAGE, "Latency against"):
        at = {}
        for disc in of_class(chart, "disc"):
            told = disc.find("title")
            assert told is not None
            assert told.text is not None
            at[told.text.split(":")[0]] = (
                float(disc.get("cx", "")),
                float(disc.get("cy", "")),
                float(disc.get("r", "")),
            )
        assert at["int8-dynamic"][0] < at["fp16"][0] < at["fp32"][0], "slower is further right"
        assert at["fp32"][1] < at["int8-dynamic"][1] < at["fp16"][1], "less accurate is further down"
        assert at["fp32"][2] ** 2 == pytest.approx(at["int8-dynamic"][2] ** 2 * 90.4 / 22.9, rel=0.02), "area is size"
        limit = float(of_class(chart, "limit")[0].get("y1", ""))
        assert at["int8-dynamic"][1] < limit < at["fp16"][1]
        bars = [bar for bar in of_class(chart, "bar") if bar.get("x1") == bar.get("x2")]
        lowest = {float(bar.get("x1", "")): max(float(bar.get("y1", "")), float(bar.get("y2", ""))) for bar in bars}
        assert lowest[at["int8-dynamic"][0]] < limit, "the bound of what passes stays above the limit"


def test_the_limit_is_that_of_the_gate() -> None:
    limit = accuracy_limit(example_result())
    assert limit is not None
    assert limit[0] == pytest.approx(0.874 * 0.99)
    assert accuracy_limit(example_result(metric=False)) == (0.99, "at least 0.99")
    without = example_result()
    without.limits = {}
    assert accuracy_limit(without) is None


def test_all_that_is_drawn_lies_within_the_chart() -> None:
    drawn = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", PAGE)]
    assert len(drawn) == 8, "four charts, wide and narrow"
    drawn += [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", SEARCHED)]
    assert len(drawn) == 18, "and one for the sensitivity"
    for chart in drawn:
        width, height = float(chart.get("width", "")), float(chart.get("height", ""))
        for element in chart.iter():
            for name, value in element.attrib.items():
                if name in ("x", "x1", "x2", "cx"):
                    assert 0 <= float(value) <= width
                if name in ("y", "y1", "y2", "cy"):
                    assert 0 <= float(value) <= height


def test_the_labels_of_twelve_variants_do_not_overlap() -> None:
    for metric in (True, False):
        for chart in charts(report_page(searched_result(metric)), "Latency against"):
            boxes = []
            for text in [*of_class(chart, "name"), *of_class(chart, "limit-label")]:
                assert text.text is not None
                x, y, long = float(text.get("x", "")), float(text.get("y", "")) - 4, text_width(text.text)
                left = x - long if "end" in text.get("class", "").split() else x
                assert left >= 0
                assert left + long <= float(chart.get("width", ""))
                boxes.append(Box(left, left + long, y - HEIGHT / 2, y + HEIGHT / 2))
            assert len(boxes) == 13
            # Coordinates are written with two decimals.
            assert all(one.overlap(other) < 1 for one, other in itertools.combinations(boxes, 2))


def test_a_label_stands_beside_its_disc_where_nothing_is_in_the_way() -> None:
    room = Box(0, 400, 0, 300)
    (free,) = placed([Anchor(100, 100, 8, "int8")], room)
    assert (free.y, free.end) == (100, False)
    (near_the_edge,) = placed([Anchor(390, 100, 8, "int8")], room)
    assert (near_the_edge.y, near_the_edge.end) == (100, True)
    (moved,) = placed([Anchor(5, 100, 3, "int8")], room, [Box(0, 400, 90, 110)])
    assert abs(moved.y - 100) >= 10 + HEIGHT / 2
    (too_long,) = placed([Anchor(200, 100, 8, 80 * "x")], room)
    assert (too_long.x, too_long.end) == (0, False)


def test_the_front_is_a_line_and_what_is_off_it_is_grey() -> None:
    for chart in charts(SEARCHED, "Latency against"):
        (line,) = of_class(chart, "front")
        ends = re.findall(r"([\d.]+) ([\d.]+)", line.get("d", ""))
        at = {title.text.split(":")[0]: disc for disc in of_class(chart, "disc") for title in disc if title.text}
        for (x, y), name in zip(ends, ("int8-static-openvino", "bf16-openvino"), strict=True):
            assert float(x) == pytest.approx(float(at[name].get("cx", "")), abs=0.1)
            assert float(y) == pytest.approx(float(at[name].get("cy", "")), abs=0.1)
        off = {text.text for text in of_class(chart, "off")}
        assert {"fp16", "int8-dynamic (inconclusive)", "int4 (fail, 0.842 ↓)"} <= off
        assert not off & {"int8-static", "bf16-openvino", "int8-static-openvino"}
    assert not charts(PAGE, "Latency against")[0].findall(".//*[@class='front']")


def test_dropped_candidates_are_faint_marks_and_have_their_reason() -> None:
    for chart in charts(SEARCHED, "Latency against"):
        (cross,) = of_class(chart, "faint")
        told = cross.find("title")
        assert told is not None
        assert told.text == (
            "int8-weight-only, dropped: slower and larger than int8-weight-only-openvino, and better in nothing"
        )
    section = SEARCHED.split("<h2>Search</h2>")[1].split("</section>")[0]
    assert "14 candidates, 10 of them measured in full" in section
    for words in (
        "int4-128",
        "at best 0.9533 with 95% confidence",
        "not tried",
        "the time was up",
        interval_text(1.1, 1.3, 2),
    ):
        assert words in section, words
    assert "<h2>Search</h2>" not in PAGE


def test_the_sensitivity_of_each_group_is_a_bar_and_what_was_kept_is_marked() -> None:
    for chart in charts(SEARCHED, "Sensitivity of int8-dynamic"):
        bars = of_class(chart, "sensitivity")
        lengths = [float(bar.get("width", "")) for bar in bars]
        assert len(bars) == 13
        assert lengths == sorted(lengths, reverse=True), "longer is worse"
        assert lengths[0] / lengths[-1] == pytest.approx((70 - 21.4) / (70 - 61.3), rel=0.01), "from -70 dB on"
        ends = [float(bar.get("x", "")) + length for bar, length in zip(bars, lengths, strict=True)]
        assert max(ends) < float(chart.get("width", "")) - 40, "with room for the figures"
        assert ["kept" in bar.get("class", "") for bar in bars] == [True] * 3 + [False] * 10
    section = SEARCHED.split("<h2>What int8-dynamic loses where</h2>")[1].split("</section>")[0]
    assert "3 of 13 groups (9 of 37 operators) in higher precision" in section
    assert "6 (pass), 3 (pass), 1 (fail), 2 (inconclusive)" in section
    assert "encoder.layer.5.MLP.0, encoder.layer.5.MLP.1" in section


def test_of_many_groups_the_worst_are_shown() -> None:
    result = searched_result()
    one = result.fallbacks[0].sensitivity[-1]
    result.fallbacks[0].sensitivity += [one.model_copy(update={"name": f"table {place}"}) for place in range(30)]
    result.fallbacks[0].found = None
    page = report_page(result)
    assert len(of_class(charts(page, "Sensitivity")[0], "sensitivity")) == 24
    assert "The 19 least sensitive of 43 groups are not shown." in page
    assert "No form of it passed" in page


def test_times_of_another_measurement_stand_where_their_speedup_puts_them() -> None:
    result = searched_result()
    found = next(variant for variant in result.variants if variant.name == "int8-dynamic+fallback")
    before = report_page(result)
    assert found.latency_ms is not None
    # The machine was twice as slow in that measurement, for the baseline, too.
    found.latency_ms = found.latency_ms.model_copy(
        update={name: 2 * value for name, value in found.latency_ms.model_dump().items()}
    )
    assert [chart.attrib for chart in charts(report_page(result), "Latency against")[0].iter("circle")] == [
        chart.attrib for chart in charts(before, "Latency against")[0].iter("circle")
    ]


def test_every_variant_tells_its_runtime_and_whether_it_is_slower_here() -> None:
    table = SEARCHED.split("<h2>Variants</h2>")[1].split("</table>")[0]
    assert table.count("<small>int8, openvino</small>") == 3
    rows = dict(re.findall(r"<tr[^>]*><td>.*?<strong>([^<]+)</strong>(.*?)</tr>", table))
    assert {name for name, row in rows.items() if "slower here" in row} == {"fp16", "int4"}
    assert "9 of 37 operators kept in higher precision" in rows["int8-dynamic+fallback"]
    assert {name for name, row in rows.items() if "on the front" in row} == set(searched_result().front)


def test_more_variants_than_colours_are_told_apart_by_dashes() -> None:
    classes = re.findall(r'<span class="swatch ([^"]+)">', SEARCHED.split("By batch size")[1])
    assert len(set(classes)) == len(classes) == 12
    assert [name for name in classes if name.endswith(" again")] == ["c1 again", "c2 again", "c3 again", "c4 again"]


def test_the_batch_size_that_was_measured_is_the_one_that_is_told() -> None:
    result = example_result()
    for variant in result.variants:
        variant.batches = variant.batches[1:]
        if variant.batches:
            variant.latency_ms = variant.batches[0].latency_ms
    page = report_page(result, example_latencies())
    assert "Batch size 8." in page
    assert "ms a call, batch 8" in page
    assert "latency p50, ms (batch 8)" in page
    assert "batch 1" not in page


def test_names_cannot_break_the_page() -> None:
    evil = "<script>alert('&\"1')</script>"
    result = example_result()
    result.model = result.message = result.source = result.evidence = evil
    result.warnings = [evil]
    result.host = {evil: evil}
    result.data[0].name = evil
    result.variants[0].name = evil
    result.variants[0].reason = evil
    times = example_latencies()
    times[f"{evil}/1"] = times["fp16/1"]
    page = report_page(result, times)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 8
    assert Tags(page).open == []


def test_a_run_without_figures_has_a_report() -> None:
    result = example_result()
    result.variants = [result.variants[3]]
    result.stages, result.data, result.limits, result.host, result.libraries = [], [], {}, {}, {}
    result.release = result.chosen = result.started_at = None
    page = report_page(result)
    assert "int4-weight-only" in page
    assert "<svg" not in page


def test_what_was_measured_is_read_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "latencies.npz", **example_latencies())
    report = tmp_path / "report.html"
    write_report(example_result(), report, tmp_path / "latencies.npz")
    assert len(of_class(charts(report.read_text(), "Distribution")[0], "hill")) == 3
    for damaged in (b"", b"PK\x03\x04 cut off"):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged\.npz"):
            write_report(example_result(), report, tmp_path / "damaged.npz")


def test_writing_again_leaves_a_hard_link_of_the_old_report_alone(tmp_path: Path) -> None:
    report, kept = tmp_path / "report.html", tmp_path / "kept.html"
    write_report(example_result(), report)
    os.link(report, kept)
    before = kept.read_text()
    write_report(example_result(metric=False), report)
    assert kept.read_text() == before != report.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.html", "report.html"]


def test_the_density_is_highest_where_the_times_are() -> None:
    random = np.random.default_rng(1)
    times = np.concatenate([random.normal(4, 0.2, 3000), random.normal(8, 0.2, 1000)])
    hill = density(times, 0, 10)
    centres = (np.arange(len(hill)) + 0.5) * 10 / len(hill)
    assert centres[hill.argmax()] == pytest.approx(4, abs=0.15)
    assert hill[np.abs(centres - 8) < 0.1].max() == pytest.approx(1 / 3, abs=0.06)
    assert hill[np.abs(centres - 6) < 0.5].max() < 0.01
    assert density(np.full(50, 4.0), 0, 10).max() == 1, "times that are all the same"


def test_ticks_are_round() -> None:
    assert linear_ticks(0, 14, 7) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert linear_ticks(0.853, 0.878, 5) == pytest.approx([0.855, 0.86, 0.865, 0.87, 0.875])
    assert log_ticks(4, 230) == [5, 10, 20, 50, 100, 200]
