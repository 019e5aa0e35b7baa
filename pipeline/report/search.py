"""What a search thought of, and how far it went with each."""

from __future__ import annotations

from pipeline.figures import NOTHING, accuracy_name, bytes_text, interval_text, percent_text, times_text
from pipeline.report.markup import Html, element
from pipeline.result import RunResult
from pipeline.searched import CandidateResult

__all__ = ["search_table"]

_REACHED = {
    "none": "not tried",
    "make": "not made",
    "check": "checked",
    "race": "raced",
    "full": "in full",
}


def search_table(result: RunResult) -> Html | None:
    """Every candidate with what is known of it, and why it went no further; null where nothing was searched."""
    if not result.candidates:
        return None
    measure = _measure(result)
    headings = ["candidate", "how far", "speed-up", f"{measure}, few samples", "size", "why no further"]
    head = element(
        "tr",
        *(element("th", text, class_="figure" if place in (2, 3, 4) else None) for place, text in enumerate(headings)),
    )
    rows = [_row(candidate, measure, headings) for candidate in result.candidates]
    return element("table", element("thead", head), element("tbody", *rows), class_="cards")


def _measure(result: RunResult) -> str:
    """What the candidates were compared by on few samples: the drop of the metric, or a fidelity."""
    if any(candidate.drop is not None for candidate in result.candidates):
        return "drop"
    return accuracy_name(result) or "cosine"


def _row(candidate: CandidateResult, measure: str, headings: list[str]) -> Html:
    speedup, interval = None, None
    if candidate.speedup is not None:
        speedup = times_text(candidate.speedup)
    if candidate.speedup_low is not None and candidate.speedup_high is not None:
        interval = interval_text(candidate.speedup_low, candidate.speedup_high, 2)
    if measure == "drop":
        accuracy = None if candidate.drop is None else percent_text(candidate.drop)
    else:
        accuracy = None if measure not in candidate.fidelity else f"{candidate.fidelity[measure]:.4f}"
    samples = None if candidate.samples is None else f"{candidate.samples} samples"
    size = None if candidate.size_bytes is None else bytes_text(candidate.size_bytes)
    figures = [(speedup, interval), (accuracy, samples), (size, None)]
    return element(
        "tr",
        element("td", candidate.name, element("small", f"{candidate.precision}, {candidate.runtime}")),
        element("td", _REACHED[candidate.reached], class_="short"),
        *(
            element(
                "td",
                element("span", value or NOTHING),
                element("small", note) if value and note else None,
                data_label=heading,
                class_="figure" if value else "figure empty",
            )
            for heading, (value, note) in zip(headings[2:5], figures, strict=True)
        ),
        element("td", candidate.reason, class_="note"),
        class_=None if candidate.reached == "full" else "dropped",
    )
