"""How the latencies of each variant are distributed: one hill a variant over a common axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.figures import number_text
from pipeline.report.markup import Html, element
from pipeline.report.plot import Frame, Scale, canvas, linear_ticks, polyline

__all__ = ["density", "distributions"]

Times = NDArray[Any]
_BINS = 240
_ROW = 62
_HILL = 36


def density(times: Times, low: float, high: float) -> Times:
    """[240] float64: a kernel density over `low` to `high`, scaled to a highest value of 1.

    A Gaussian kernel of Silverman's width (Density Estimation, 1986, eq. 3.31) over a histogram. Times beyond
    `high` are not drawn and do not count.
    """
    counts, edges = np.histogram(times, bins=_BINS, range=(low, high))
    inside = times[(times >= low) & (times <= high)]
    if len(inside) == 0:
        return np.zeros(_BINS)
    quarter, three_quarters = np.percentile(inside, [25, 75])
    spread = min(float(inside.std()), float(three_quarters - quarter) / 1.34) or float(inside.std())
    sigma = max(0.9 * spread * len(inside) ** -0.2 / float(edges[1] - edges[0]), 0.8)
    reach = int(4 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    smooth = np.convolve(counts, kernel)[reach : reach + _BINS]
    scaled: Times = smooth / smooth.max()
    return scaled


def distributions(rows: Sequence[tuple[str, Times]], colours: Mapping[str, str], batch: int, width: int) -> Html | None:
    """The chart of `rows` (variant and its times in milliseconds, from top to bottom); null where there are none."""
    rows = [(name, times) for name, times in rows if len(times)]
    if not rows:
        return None
    frame = Frame(width, _ROW * len(rows) + 58, left=10, top=4)
    high = 1.06 * max(float(np.percentile(times, 99)) for _, times in rows)
    x = Scale(0, high, frame.left, frame.x_end)
    marks = frame.horizontal_axis(x, linear_ticks(0, high, width // 70), f"ms a call, batch {batch}")
    for index, (name, times) in enumerate(rows):
        marks += _row(name, times, frame.top + _ROW * (index + 1) + 4.0, x, colours[name])
    return canvas(frame, "Distribution of latencies, one row a variant", *marks)


def _row(name: str, times: Times, base: float, x: Scale, colour: str) -> list[Html]:
    heights = density(times, x.low, x.high)
    centres = x.low + (np.arange(_BINS) + 0.5) * (x.high - x.low) / _BINS
    shown = np.flatnonzero(heights > 0.002)
    outline = [(x(float(centres[i])), base - _HILL * float(heights[i])) for i in range(shown[0], shown[-1] + 1)]
    closed = [(outline[0][0], base), *outline, (outline[-1][0], base)]
    marks = [
        element("line", x1=x.start, x2=x.end, y1=base, y2=base, class_="ground"),
        element("path", d=polyline(closed, close=True), class_=f"hill {colour}"),
    ]
    figures = dict(zip(("p50", "p95", "p99"), np.percentile(times, [50, 95, 99]).tolist(), strict=True))
    for label, value in figures.items():
        at, height = x(value), 12 if label == "p50" else 8
        marks.append(element("line", x1=at, x2=at, y1=base - height, y2=base + 3, class_=f"quantile {colour}"))
    beyond = int((times > x.high).sum())
    words = " · ".join(f"{label} {number_text(value)}" for label, value in figures.items())
    if beyond:
        words += f" · slowest {number_text(float(times.max()))}"
    at_right = x.end
    told = element("title", f"{len(times)} calls, {beyond} of them slower than the axis shows")
    marks.append(element("text", told, words, x=at_right, y=base - _HILL - 8, class_="tick end"))
    marks.append(element("text", name, x=x.start, y=base - _HILL - 8, class_="name"))
    return marks
