"""Where the labels of a chart go: beside what they name, and over nothing that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["HEIGHT", "Anchor", "Box", "Label", "placed", "text_width"]

HEIGHT = 15.0
"""Of a line of text."""

_CHARACTER = 7.0
_GAP = 5.0
_STEP = 4.0
_FARTHEST = 60


@dataclass(frozen=True)
class Anchor:
    """What is to be labelled: a disc, and the words beside it."""

    x: float
    y: float
    radius: float
    words: str


@dataclass(frozen=True)
class Label:
    """The words start at `x`, or end there if `end`; `y` is the middle of the line."""

    x: float
    y: float
    end: bool


@dataclass(frozen=True)
class Box:
    """A part of the chart, in pixels."""

    left: float
    right: float
    top: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return across * down if across > 0 and down > 0 else 0.0


def text_width(words: str) -> float:
    """About how wide a line of the charts' letters is, in pixels; rather too much than too little."""
    return _CHARACTER * len(words)


def placed(anchors: Sequence[Anchor], room: Box, taken: Sequence[Box] = ()) -> list[Label]:
    """A place for each label within `room` and outside of what is `taken`, the first ones choosing first.

    A label stands right or left of its disc, level with it or as little higher or lower as its room allows, or across
    above or below it: over no other label, and over no disc as long as there is such a place.
    """
    discs = [Box(a.x - a.radius, a.x + a.radius, a.y - a.radius, a.y + a.radius) for a in anchors]
    taken = list(taken)
    labels = []
    for anchor in anchors:
        places = _places(anchor, room)
        label, box, _ = min(places, key=lambda place: _cost(place[1], place[2], taken, discs))
        taken.append(box)
        labels.append(label)
    return labels


def _places(anchor: Anchor, room: Box) -> list[tuple[Label, Box, float]]:
    """Every place that lies inside, and how far it is from the best."""
    long = text_width(anchor.words)
    places = []
    for step in range(2 * _FARTHEST):
        shift = _STEP * ((step + 1) // 2) * (1 if step % 2 else -1)
        y = anchor.y + shift
        if not room.top + HEIGHT / 2 <= y <= room.bottom - HEIGHT / 2:
            continue
        if abs(shift) < anchor.radius + HEIGHT / 2:
            lefts = [(anchor.x + anchor.radius + _GAP, False, 0.0), (anchor.x - anchor.radius - _GAP - long, True, 3.0)]
        else:
            lefts = [(anchor.x + _GAP, False, 0.0), (anchor.x - _GAP - long, True, 3.0)]
            lefts.append((max(room.left, min(anchor.x - long / 2, room.right - long)), False, 6.0))
        for left, end, extra in lefts:
            if left >= room.left and left + long <= max(room.right, room.left + long):
                box = Box(left, left + long, y - HEIGHT / 2, y + HEIGHT / 2)
                places.append((Label(left + long if end else left, y, end), box, abs(shift) + extra))
    return places


def _cost(box: Box, shift: float, taken: Sequence[Box], discs: Sequence[Box]) -> float:
    return shift + 100 * sum(box.overlap(other) for other in taken) + 0.2 * sum(box.overlap(disc) for disc in discs)
