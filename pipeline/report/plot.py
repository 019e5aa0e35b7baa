"""What every chart needs: a canvas, scales from figures to pixels, ticks at round figures, labels that keep apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.figures import number_text
from pipeline.report.markup import Html, element

__all__ = ["Frame", "Scale", "canvas", "linear_ticks", "log_ticks", "polyline"]


@dataclass(frozen=True)
class Scale:
    """Maps `low` to the pixel `start` and `high` to the pixel `end`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    kind: Literal["linear", "log"] = "linear"

    def __call__(self, value: float) -> float:
        if self.kind == "log":
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Frame:
    """The plotting area within an SVG of `width` × `height` pixels."""

    width: int
    height: int
    left: int = 58
    right: int = 14
    top: int = 30
    bottom: int = 42

    @property
    def x_end(self) -> int:
        return self.width - self.right

    @property
    def y_end(self) -> int:
        return self.height - self.bottom

    def horizontal_axis(self, scale: Scale, ticks: Sequence[float], title: str) -> list[Html]:
        """Tick labels below the frame, with faint lines upwards, and the title at the right end below them."""
        marks = []
        for tick in ticks:
            x = scale(tick)
            marks.append(element("line", x1=x, x2=x, y1=self.top, y2=self.y_end, class_="grid"))
            marks.append(element("text", _tick(tick, ticks), x=x, y=self.y_end + 16, class_="tick middle"))
        marks.append(element("text", title, x=self.x_end, y=self.height - 6, class_="axis end"))
        return marks

    def vertical_axis(self, scale: Scale, ticks: Sequence[float], title: str) -> list[Html]:
        """Tick labels left of the frame, with faint lines to the right, and the title above them, to be read level."""
        marks = []
        for tick in ticks:
            y = scale(tick)
            marks.append(element("line", x1=self.left, x2=self.x_end, y1=y, y2=y, class_="grid"))
            marks.append(element("text", _tick(tick, ticks), x=self.left - 8, y=y + 4, class_="tick end"))
        marks.append(element("text", title, x=4, y=14, class_="axis"))
        return marks


def canvas(frame: Frame, title: str, *content: Html) -> Html:
    """The SVG element. `title` is what a screen reader says of it."""
    return element(
        "svg",
        *content,
        viewBox=f"0 0 {frame.width} {frame.height}",
        width=frame.width,
        height=frame.height,
        role="img",
        aria_label=title,
    )


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round figures (1, 2 or 5 times a power of ten apart) between `low` and `high`."""
    rough = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between `low` and `high`; powers of ten alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 1000 else (1, 2, 5)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def polyline(points: Sequence[tuple[float, float]], close: bool = False) -> str:
    """The `d` of a path through `points`."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if close else "")


def _tick(value: float, ticks: Sequence[float]) -> str:
    if value == 0:
        return "0"
    if value >= 10000:
        return f"{value / 1000:g}k"
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=abs(value))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if any(round(tick, digits) != round(tick, 9) for tick in ticks):  # 2.5 among 0.5, 1, …
        digits += 1
    return f"{value:.{digits}f}" if value < 1000 else number_text(value)
