"""Which groups of operators lose the most by being quantised, and which of them were returned to higher precision."""

from __future__ import annotations

import math

from pipeline.figures import VERDICT_WORDS
from pipeline.report.labels import text_width
from pipeline.report.markup import Html, element
from pipeline.report.plot import Frame, Scale, canvas, linear_ticks
from pipeline.result import FallbackResult, GroupEffect

__all__ = ["kept_table", "sensitivity_chart", "trials_text"]

_ROW = 22
_MOST = 24
_NAMES = 0.34
"""The share of the width that the groups' names may have."""


def sensitivity_chart(told: FallbackResult, width: int) -> Html | None:
    """A bar for every group, the most sensitive first; null where they were not ranked.

    A bar's length is the noise at the outputs in decibels of the signal (the SQNR with its sign turned), so that longer
    is worse. Of many groups those are shown that were kept in higher precision, and the next most sensitive.
    """
    groups = told.sensitivity[: max(_MOST, sum(group.kept for group in told.sensitivity))]
    if not groups:
        return None
    longest = max(text_width(group.name) for group in groups)
    frame = Frame(width, _ROW * len(groups) + 52, left=round(min(longest, _NAMES * width)) + 12, right=66, top=4)
    noises = [-group.sqnr_db for group in groups]
    low = 10 * math.floor((min(noises) - 3) / 10)
    x = Scale(low, max(*noises, low + 10), frame.left, frame.x_end)
    marks = frame.horizontal_axis(x, linear_ticks(x.low, x.high, width // 90), "noise at the outputs, dB of the signal")
    for place, group in enumerate(groups):
        marks += _row(group, frame, x, frame.top + _ROW * (place + 0.5))
    return canvas(frame, f"Sensitivity of {told.variant}, one bar a group of operators", *marks)


def _row(group: GroupEffect, frame: Frame, x: Scale, y: float) -> list[Html]:
    noise = -group.sqnr_db
    operators = f"{len(group.operators)} operator{'s' if len(group.operators) != 1 else ''}"
    told = f"{group.name}: SQNR {group.sqnr_db:.1f} dB, {operators}"
    told += ", kept in higher precision" if group.kept else ""
    length = max(x(noise) - x.start, 1.0)
    bar = element(
        "rect", element("title", told), x=x.start, y=y - 6, width=length, height=12.0,
        class_="sensitivity kept" if group.kept else "sensitivity",
    )  # fmt: skip
    name = element("text", element("title", told), _short(group.name, frame.left - 12), x=frame.left - 8, y=y + 4,
                   class_="tick end kept" if group.kept else "tick end")  # fmt: skip
    value = f"{noise:.0f} dB".replace("-", "\N{MINUS SIGN}")
    return [bar, name, element("text", value, x=x(noise) + 6, y=y + 4, class_="tick")]


def _short(name: str, width: float) -> str:
    """The name, or both its ends where it is too long."""
    most = max(7, int(width / text_width("x")))
    if len(name) <= most:
        return name
    head = (most - 1) // 3
    return f"{name[:head]}…{name[head + 1 - most :]}"


def trials_text(told: FallbackResult) -> str:
    """What was tried, in words, and how it ended."""
    trials = ", ".join(f"{trial.groups} ({VERDICT_WORDS[trial.verdict]})" for trial in told.trials)
    tried = f" Tried with the most sensitive {trials} in higher precision." if trials else ""
    left = len(told.sensitivity) - _MOST
    hidden = f" The {left} least sensitive of {len(told.sensitivity)} groups are not shown." if left > 0 else ""
    found = f"{told.found}: {told.reason}." if told.found else f"No form of it passed: {told.reason}."
    return f"{found}{tried}{hidden}"


def kept_table(told: FallbackResult) -> Html | None:
    """The groups that were returned to higher precision, with their operators; null where there are none."""
    kept = [group for group in told.sensitivity if group.kept]
    if not kept:
        return None
    head = element("tr", *(element("th", text) for text in ("kept in higher precision", "operators")))
    rows = [
        element("tr", element("td", group.name), element("td", element("code", ", ".join(group.operators))))
        for group in kept
    ]
    return element("table", element("thead", head), element("tbody", *rows), class_="cards")
