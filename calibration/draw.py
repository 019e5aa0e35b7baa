"""Drawing some of the rows of a data set: with a seed, and each class keeping its share."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from calibration.rows import Reader, Row

__all__ = ["draw"]


def draw(read: Reader, limit: int | None, seed: int, label: str = "label") -> tuple[list[tuple[int, Row]], int]:
    """At most `limit` of the numbered rows that `read` gives, drawn without replacement, and how many there are in all.

    The draw is stratified: each value of `label` keeps its share (largest remainders; which of the classes that are
    level gets the row is drawn, too). The rows are read twice, first their labels and then those that were drawn, so
    that no others are held. (Every row gets a random key, and those with the smallest keys of each class are drawn:
    bottom-k sampling.) They come in their own order. The same rows, limit and seed give the same draw.
    """
    if limit is None:
        every = list(read())
        return every, len(every)
    generator = random.Random(seed)
    smallest: dict[str, list[tuple[float, int]]] = {}
    counts: Counter[str] = Counter()
    for number, row in read():
        stratum = _stratum(row.get(label))
        counts[stratum] += 1
        heap = smallest.setdefault(stratum, [])
        entry = (-generator.random(), number)
        if len(heap) < limit:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    total = counts.total()
    drawn = {
        number
        for stratum, quota in _shares(counts, min(limit, total), seed).items()
        for _, number in sorted(smallest[stratum], reverse=True)[:quota]
    }
    return [(number, row) for number, row in read() if number in drawn], total


def _stratum(value: Any) -> str:
    if hasattr(value, "item") and getattr(value, "size", None) == 1:
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{type(value).__name__} {value}" if isinstance(value, (str, int)) else ""


def _shares(counts: Mapping[str, int], limit: int, seed: int) -> dict[str, int]:
    total = sum(counts.values())
    shares = {name: limit * count // total for name, count in counts.items()}
    # With more classes than rows to draw most are level: in any fixed order the same few would be taken by every seed.
    by_remainder = sorted(
        counts, key=lambda name: (-(limit * counts[name] % total), random.Random(f"{seed} {name}").random())
    )
    for name in by_remainder[: limit - sum(shares.values())]:
        shares[name] += 1
    return shares
