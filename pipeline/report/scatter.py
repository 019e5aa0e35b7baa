"""Latency against accuracy: one disc a variant, its area the file size; across it the gate's limit and the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.figures import (
    VERDICT_WORDS,
    accuracy_name,
    bytes_text,
    chosen_name,
    headline_batch,
    number_text,
)
from pipeline.report.labels import HEIGHT, Anchor, Box, Label, placed, text_width
from pipeline.report.markup import Html, element
from pipeline.report.plot import Frame, Scale, canvas, linear_ticks, log_ticks, polyline
from pipeline.report.tradeoff import Mark, Point, accuracy_limit, dropped, measured
from pipeline.result import RunResult

__all__ = ["scatter"]

_WIDE_RANGE = 8
"""Latencies that differ more than so many times need a logarithmic axis."""
_DEEPEST = 2
"""What lies farther below the best than so many times the gate's room stands at the chart's lower edge."""


def scatter(result: RunResult, colours: Mapping[str, str], width: int) -> Html | None:
    """The chart, `width` pixels wide; null where no variant has both latency and accuracy."""
    points = measured(result)
    if not points:
        return None
    marks = dropped(result)
    frame = Frame(width, 400 + 16 * max(0, len(points) - 6))
    limit = accuracy_limit(result)
    x = _across(points, marks, frame)
    y = _upward(points, limit, frame)
    name = accuracy_name(result) or ""
    ticks = linear_ticks(x.low, x.high, width // 70) if x.kind == "linear" else log_ticks(x.low, x.high)
    drawn = [
        *frame.horizontal_axis(x, ticks, f"latency p50, ms (batch {headline_batch(result)})"),
        *frame.vertical_axis(y, linear_ticks(y.low, y.high, 7), name),
    ]
    if limit is not None:
        drawn += _limit_line(frame, y(limit[0]))
    drawn += [_faint(mark, x, y) for mark in marks]
    drawn += _front_line(points, result.front, x, y)
    largest = max(point.variant.size_bytes or 0 for point in points) or 1
    radii = [max(5.0, 21 * math.sqrt((point.variant.size_bytes or 0) / largest)) for point in points]
    for point, radius in sorted(zip(points, radii, strict=True), key=lambda pair: -pair[1]):
        drawn += _disc(point, radius, colours[point.variant.name], x, y)
    drawn += _labels(result, points, radii, frame, x, y)
    return canvas(frame, f"Latency against {name}, one disc a variant", *drawn)


def _across(points: Sequence[Point], marks: Sequence[Mark], frame: Frame) -> Scale:
    times = [point.latency.p50 for point in points] + [mark.latency_ms for mark in marks]
    longest = max(*times, *(point.latency.p50_high for point in points))
    if longest < _WIDE_RANGE * min(times):
        return Scale(0, 1.15 * longest, frame.left, frame.x_end)
    return Scale(0.7 * min(times), 1.4 * longest, frame.left, frame.x_end, "log")


def _upward(points: Sequence[Point], limit: tuple[float, str] | None, frame: Frame) -> Scale:
    edges = [edge for point in points for edge in (point.low, point.high)]
    highest = max(edges)
    if limit is not None:
        edges.append(limit[0])
        room = max(highest - limit[0], 1e-6)
        # One that lost everything would leave the others no room to differ in.
        edges = [max(edge, highest - _DEEPEST * room) for edge in edges]
    low, high = min(edges), max(edges)
    margin = 0.12 * (high - low) or 0.01 * abs(high) or 0.01
    return Scale(low - margin, high + margin, frame.y_end, frame.top)


def _limit_line(frame: Frame, y: float) -> list[Html]:
    below = max(frame.y_end - y, 0.0)
    return [
        element("rect", x=frame.left, y=y, width=frame.x_end - frame.left, height=below, class_="forbidden"),
        element("line", x1=frame.left, x2=frame.x_end, y1=y, y2=y, class_="limit"),
    ]


def _front_line(points: Sequence[Point], front: Sequence[str], x: Scale, y: Scale) -> list[Html]:
    """Through those of the front that stand on it here, too; what is on it only for its size has its label."""
    on_it = sorted((p for p in points if p.variant.name in front), key=lambda p: (p.latency.p50, -p.accuracy.value))
    seen: list[Point] = []
    for point in on_it:
        if not seen or point.accuracy.value > seen[-1].accuracy.value:
            seen.append(point)
    if len(seen) < 2:
        return []
    line = polyline([(x(point.latency.p50), _within(y, point.accuracy.value)) for point in seen])
    return [element("path", d=line, class_="front")]


def _faint(mark: Mark, x: Scale, y: Scale) -> Html:
    at_x, at_y = x(mark.latency_ms), _within(y, mark.accuracy)
    cross = f"M{at_x - 4:.1f} {at_y - 4:.1f}l8 8M{at_x - 4:.1f} {at_y + 4:.1f}l8 -8"
    told = element("title", f"{mark.candidate.name}, dropped: {mark.candidate.reason}")
    return element("path", told, d=cross, class_="faint")


def _within(y: Scale, value: float) -> float:
    """What lies too deep to be drawn stands at the lower edge."""
    return y(max(value, y.low))


def _disc(point: Point, radius: float, colour: str, x: Scale, y: Scale) -> list[Html]:
    latency, variant = point.latency, point.variant
    at_x, at_y = x(latency.p50), _within(y, point.accuracy.value)
    told = f"{variant.name}: p50 {number_text(latency.p50)} ms, {point.accuracy.name} {point.accuracy.value:.4f}"
    if variant.size_bytes is not None:
        told += f", {bytes_text(variant.size_bytes)}"
    told += f", {variant.runtime}"
    shape = "disc" if variant.verdict == "pass" else "disc hollow"
    low, high = _within(y, point.low), _within(y, point.high)
    return [
        element("circle", element("title", told), cx=at_x, cy=at_y, r=radius, class_=f"{shape} {colour}"),
        element(
            "line", x1=x(max(latency.p50_low, x.low)), x2=x(latency.p50_high), y1=at_y, y2=at_y, class_=f"bar {colour}"
        ),
        element("line", x1=at_x, x2=at_x, y1=low, y2=high, class_=f"bar {colour}"),
    ]


def _labels(
    result: RunResult, points: Sequence[Point], radii: Sequence[float], frame: Frame, x: Scale, y: Scale
) -> list[Html]:
    """The variants' names, the limit's, and thin lines to what a label had to stand away from."""
    drawn = []
    taken = []
    limit = accuracy_limit(result)
    if limit is not None:
        at = y(limit[0]) + 10
        taken.append(Box(frame.left, frame.left + 12 + text_width(limit[1]), at - HEIGHT / 2, at + HEIGHT / 2))
        drawn.append(element("text", limit[1], x=frame.left + 6, y=at + 4, class_="limit-label"))
    chosen = chosen_name(result)
    # Who has the most to say of where its label stands: the chosen one, the front, then the others.
    order = sorted(
        zip(points, radii, strict=True),
        key=lambda pair: (pair[0].variant.name != chosen, pair[0].variant.name not in result.front),
    )
    anchors = [
        Anchor(x(point.latency.p50), _within(y, point.accuracy.value), radius, _words(point, y))
        for point, radius in order
    ]
    room = Box(frame.left, frame.width, frame.top - HEIGHT / 2, frame.y_end)
    for (point, _), anchor, label in zip(order, anchors, placed(anchors, room, taken), strict=True):
        if abs(label.y - anchor.y) > anchor.radius + HEIGHT:
            drawn.append(_leader(anchor, label))
        name = point.variant.name
        classes = ["name", "end" if label.end else "", "chosen" if name == chosen else ""]
        classes.append("off" if result.front and name not in result.front else "")
        drawn.append(element("text", anchor.words, x=label.x, y=label.y + 4, class_=" ".join(filter(None, classes))))
    return drawn


def _leader(anchor: Anchor, label: Label) -> Html:
    left = label.x - text_width(anchor.words) if label.end else label.x
    x = min(max(anchor.x, left), left + text_width(anchor.words))
    y = label.y + math.copysign(HEIGHT / 2, anchor.y - label.y)
    return element("line", x1=anchor.x, y1=anchor.y, x2=x, y2=y, class_="leader")


def _words(point: Point, y: Scale) -> str:
    notes = [] if point.variant.verdict == "pass" else [VERDICT_WORDS[point.variant.verdict]]
    if point.accuracy.value < y.low:
        notes.append(f"{number_text(point.accuracy.value)} ↓")
    return f"{point.variant.name} ({', '.join(notes)})" if notes else point.variant.name
