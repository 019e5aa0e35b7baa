"""Latency against accuracy: one disc a variant, its area the file size, the gate's limit across."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.figures import (
    Accuracy,
    accuracy_name,
    accuracy_of,
    bytes_text,
    chosen_name,
    headline_batch,
    in_order,
    number_text,
)
from pipeline.report.markup import Html, element
from pipeline.report.plot import Frame, Scale, apart, canvas, linear_ticks
from pipeline.result import Latency, RunResult, VariantResult

__all__ = ["accuracy_limit", "scatter"]

_FIDELITY_LIMITS = {"cosine": "min_cosine", "agreement": "min_agreement"}
_LABEL_GAP = 16


@dataclass(frozen=True)
class _Point:
    variant: VariantResult
    latency: Latency
    accuracy: Accuracy
    low: float
    high: float


def accuracy_limit(result: RunResult) -> tuple[float, str] | None:
    """The lowest accuracy that the gate lets pass, and what the recipe calls it; null where nothing is limited."""
    baseline = next((variant for variant in result.variants if variant.baseline), None)
    if baseline is not None and baseline.metric is not None:
        drop = result.limits.get("max_drop")
        return None if drop is None else (baseline.metric.value * (1 - drop), f"allowed drop {100 * drop:g} %")
    limit = result.limits.get(_FIDELITY_LIMITS.get(accuracy_name(result) or "", ""))
    return None if limit is None else (limit, f"at least {limit:g}")


def scatter(result: RunResult, colours: Mapping[str, str], width: int) -> Html | None:
    """The chart, `width` pixels wide; null where no variant has both latency and accuracy."""
    points = list(_points(result))
    if not points:
        return None
    frame = Frame(width, 400 if width > 500 else 330)
    limit = accuracy_limit(result)
    x = Scale(0, 1.15 * max(point.latency.p50_high for point in points), frame.left, frame.x_end)
    edges = [edge for point in points for edge in (point.low, point.high)] + ([limit[0]] if limit else [])
    low, high = min(edges), max(edges)
    margin = 0.12 * (high - low) or 0.01 * abs(high) or 0.01
    y = Scale(low - margin, high + margin, frame.y_end, frame.top)
    name = accuracy_name(result) or ""
    marks = [
        *frame.horizontal_axis(
            x, linear_ticks(x.low, x.high, width // 70), f"latency p50, ms (batch {headline_batch(result)})"
        ),
        *frame.vertical_axis(y, linear_ticks(y.low, y.high, 7), name),
    ]
    if limit is not None:
        marks += _limit_line(frame, y(limit[0]), limit[1])
    largest = max(point.variant.size_bytes or 0 for point in points) or 1
    radii = [max(5.0, 21 * math.sqrt((point.variant.size_bytes or 0) / largest)) for point in points]
    for point, radius in sorted(zip(points, radii, strict=True), key=lambda pair: -pair[1]):
        marks += _disc(point, radius, colours[point.variant.name], x, y)
    marks += _labels(points, radii, chosen_name(result), frame, x, y)
    return canvas(frame, f"Latency against {name}, one disc a variant", *marks)


def _points(result: RunResult) -> list[_Point]:
    points = []
    for variant in in_order(result):
        accuracy = accuracy_of(result, variant)
        if variant.latency_ms is None or accuracy is None:
            continue
        low, high = accuracy.low, accuracy.high
        if variant.metric is not None and accuracy.name == variant.metric.name:
            # The gate looks at the paired drop, not at each metric's own, much wider interval; so does the bar.
            baseline = next((other for other in result.variants if other.baseline and other.metric), None)
            low = high = accuracy.value
            if baseline is not None and baseline.metric is not None and accuracy.drop_upper is not None:
                low = min(low, baseline.metric.value * (1 - accuracy.drop_upper))
        points.append(_Point(variant, variant.latency_ms, accuracy, low, high))
    return points


def _limit_line(frame: Frame, y: float, text: str) -> list[Html]:
    return [
        element(
            "rect",
            x=frame.left,
            y=y,
            width=frame.x_end - frame.left,
            height=max(frame.y_end - y, 0.0),
            class_="forbidden",
        ),
        element("line", x1=frame.left, x2=frame.x_end, y1=y, y2=y, class_="limit"),
        element("text", text, x=frame.left + 6, y=y + 14, class_="limit-label"),
    ]


def _disc(point: _Point, radius: float, colour: str, x: Scale, y: Scale) -> list[Html]:
    latency, variant = point.latency, point.variant
    at_x, at_y = x(latency.p50), y(point.accuracy.value)
    told = f"{variant.name}: p50 {number_text(latency.p50)} ms, {point.accuracy.name} {point.accuracy.value:.4f}"
    if variant.size_bytes is not None:
        told += f", {bytes_text(variant.size_bytes)}"
    shape = "disc" if variant.verdict == "pass" else "disc hollow"
    return [
        element("circle", element("title", told), cx=at_x, cy=at_y, r=radius, class_=f"{shape} {colour}"),
        element("line", x1=x(latency.p50_low), x2=x(latency.p50_high), y1=at_y, y2=at_y, class_=f"bar {colour}"),
        element("line", x1=at_x, x2=at_x, y1=y(point.low), y2=y(point.high), class_=f"bar {colour}"),
    ]


def _labels(
    points: list[_Point], radii: list[float], chosen: str | None, frame: Frame, x: Scale, y: Scale
) -> list[Html]:
    labels = []
    heights = apart([y(point.accuracy.value) for point in points], _LABEL_GAP, frame.top + 8.0, frame.y_end - 8.0)
    for point, radius, height in zip(points, radii, heights, strict=True):
        variant = point.variant
        words = variant.name if variant.verdict == "pass" else f"{variant.name} ({variant.verdict})"
        at = x(point.latency.p50)
        to_the_left = at + radius + 6 + 7.2 * len(words) > frame.x_end
        labels.append(
            element(
                "text",
                words,
                x=at - radius - 6 if to_the_left else at + radius + 6,
                y=height + 4,
                class_=f"name{' end' if to_the_left else ''}{' chosen' if variant.name == chosen else ''}",
            )
        )
    return labels
