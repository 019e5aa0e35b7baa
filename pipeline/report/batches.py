"""Latency and throughput by batch size, one line a variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.figures import number_text
from pipeline.report.markup import Html, element
from pipeline.report.plot import Frame, Scale, canvas, linear_ticks, log_ticks, polyline
from pipeline.result import VariantResult

__all__ = ["latency_by_batch", "throughput_by_batch"]

_HEIGHT = 300


def latency_by_batch(variants: Sequence[VariantResult], colours: Mapping[str, str], width: int) -> Html | None:
    """Medians with their intervals, both axes logarithmic; null where fewer than two batch sizes were measured."""
    measured = [variant for variant in variants if len(variant.batches) > 1]
    if not measured:
        return None
    figures = [batch.latency_ms for variant in measured for batch in variant.batches]
    frame = Frame(width, _HEIGHT)
    low, high = 0.8 * min(figure.p50_low for figure in figures), 1.25 * max(figure.p50_high for figure in figures)
    y = Scale(low, high, frame.y_end, frame.top, "log")
    x, marks = _batch_axis(frame, measured)
    marks += frame.vertical_axis(y, log_ticks(low, high), "latency p50, ms")
    for variant in measured:
        colour = colours[variant.name]
        points = [(x(batch.batch_size), y(batch.latency_ms.p50)) for batch in variant.batches]
        marks.append(element("path", d=polyline(points), class_=f"series {colour}"))
        for batch, (at_x, at_y) in zip(variant.batches, points, strict=True):
            latency = batch.latency_ms
            marks.append(
                element("line", x1=at_x, x2=at_x, y1=y(latency.p50_low), y2=y(latency.p50_high), class_=f"bar {colour}")
            )
            told = f"{variant.name}, batch {batch.batch_size}: p50 {number_text(latency.p50)} ms, "
            told += f"p99 {number_text(latency.p99)} ms"
            marks.append(_dot(at_x, at_y, colour, told))
    return canvas(frame, "Latency by batch size, one line a variant", *marks)


def throughput_by_batch(variants: Sequence[VariantResult], colours: Mapping[str, str], width: int) -> Html | None:
    """Samples a second; null where fewer than two batch sizes were measured."""
    measured = [variant for variant in variants if len(variant.batches) > 1]
    if not measured:
        return None
    frame = Frame(width, _HEIGHT)
    high = 1.1 * max(batch.throughput_per_s for variant in measured for batch in variant.batches)
    y = Scale(0, high, frame.y_end, frame.top)
    x, marks = _batch_axis(frame, measured)
    marks += frame.vertical_axis(y, linear_ticks(0, high, 5), "samples a second")
    for variant in measured:
        colour = colours[variant.name]
        points = [(x(batch.batch_size), y(batch.throughput_per_s)) for batch in variant.batches]
        marks.append(element("path", d=polyline(points), class_=f"series {colour}"))
        for batch, (at_x, at_y) in zip(variant.batches, points, strict=True):
            told = f"{variant.name}, batch {batch.batch_size}: {number_text(batch.throughput_per_s)} a second"
            marks.append(_dot(at_x, at_y, colour, told))
    return canvas(frame, "Throughput by batch size, one line a variant", *marks)


def _batch_axis(frame: Frame, variants: Sequence[VariantResult]) -> tuple[Scale, list[Html]]:
    sizes = sorted({batch.batch_size for variant in variants for batch in variant.batches})
    x = Scale(sizes[0], sizes[-1], frame.left + 12, frame.x_end - 12, "log")
    return x, frame.horizontal_axis(x, sizes, "batch size")


def _dot(x: float, y: float, colour: str, told: str) -> Html:
    return element("circle", element("title", told), cx=x, cy=y, r=3.5, class_=f"dot {colour}")
