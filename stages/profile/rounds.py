"""The rounds of a measurement: one turn of every variant in each, in random order, until the medians stand."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stages.profile.latency import calls_to_bound, median_interval
from stages.profile.measured import Turn
from stages.profile.options import TurnOptions
from stages.profile.processes import Processes
from stages.profile.race import Race, race
from stages.progress import Progress

__all__ = ["Size", "measure"]

_TURN_MS = 100.0
"""About how long a turn lasts: long against what changing turns costs, short against what disturbs a machine."""
_MOST_CYCLES = 3
_STRETCH = 3
"""A turn may last so many times longer if it then holds every input once."""
_LEAD_IN_FROM = 3
_WORTH_HAVING = 1.02
"""Two variants whose ratio is known to be nearer to 1 than this need no further race."""


@dataclass
class Size:
    """What is measured at one batch size. `turns[name]` has one list of calls a round. `share`: how much of the time is
    for it, compared with the others."""

    batch_size: int
    calls: int = 1
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    order: list[list[int]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    share: float = 1.0
    spent_s: float = 0.0
    settled: bool = False

    @property
    def key(self) -> Hashable:
        """What the measured processes know it by."""
        return self.batch_size

    @property
    def label(self) -> str:
        """What people know it by."""
        return f"batch size {self.batch_size}"

    def times(self, name: str) -> NDArray[np.float64]:
        """[rounds, calls, what was timed] milliseconds, first the whole call's."""
        return np.array(self.turns[name], dtype=np.float64)

    def latencies(self, name: str) -> NDArray[np.float64]:
        """[rounds, calls] milliseconds."""
        return self.times(name)[:, :, 0] if self.turns[name] else np.empty((0, self.calls))

    def kinds(self, name: str) -> NDArray[np.int64]:
        """Which input each call had."""
        return np.array(self.inputs[: self.calls * len(self.turns[name])], dtype=np.int64)

    @property
    def round_s(self) -> float:
        """How long a round takes; 0 before the first."""
        return self.spent_s / len(self.order) if self.order else 0.0

    def relative_interval(self, name: str) -> float:
        """The width of the median's interval over the median; 1 with too few calls for an interval."""
        values = self.latencies(name).ravel()
        if len(values) < calls_to_bound(0.5):
            return 1.0
        low, high = median_interval(values, self.kinds(name))
        return float((high - low) / np.median(values))


def measure(
    processes: Processes,
    sizes: Sequence[Size],
    names: Sequence[str],
    options: TurnOptions,
    progress: Progress,
) -> bool:
    """Take turns until every size is settled. Returns whether the budget ended that."""
    random = np.random.default_rng(options.seed)
    started = time.monotonic()
    progress.update("warming up", 0.0, options.budget_s)
    _warm_up(processes, sizes, options)
    while open_sizes := [size for size in sizes if not size.settled]:
        if not processes.alive:
            return False
        elapsed = time.monotonic() - started
        # The sizes share the time. Each has its first round whatever the budget; another one only if it is
        # likely to end in time.
        fitting = [size for size in open_sizes if not size.order or elapsed + size.round_s <= options.budget_s]
        if not fitting:
            return True
        size = min(fitting, key=lambda one: one.spent_s / one.share)
        progress.update(size.label, min(elapsed, options.budget_s), options.budget_s)
        begun = time.monotonic()
        _round(processes, size, names, random, options.inputs)
        size.spent_s += time.monotonic() - begun
        size.settled = _settled(size, processes.alive, options)
    return False


def _warm_up(processes: Processes, sizes: Sequence[Size], options: TurnOptions) -> None:
    """A few calls of every size; how long they take says how many make a turn, the same for all variants."""
    for size in sizes:
        slowest = 1e-3
        for name in processes.alive:
            taken = processes.ask(name, "run", size.key, [0], False)
            if taken and taken[0][0] < _TURN_MS:
                # Every input once before it counts: OpenVINO generates code for each shape that it meets.
                spread = [0, options.inputs // 2, options.inputs - 1]
                order = [*range(1, options.inputs), *spread]
                taken = processes.ask(name, "run", size.key, order, False)
                taken = taken and taken[-len(spread) :]
            slowest = max(slowest, float(np.median([call[0] for call in taken or [(0.0,)]])))
        calls, cycle = int(_TURN_MS / slowest), options.inputs
        # Whole cycles where they fit, so that each turn has the same mix of inputs.
        if calls >= cycle:
            size.calls = cycle * min(calls // cycle, _MOST_CYCLES)
        else:
            size.calls = cycle if _STRETCH * calls >= cycle else max(1, calls)


def _round(processes: Processes, size: Size, names: Sequence[str], random: np.random.Generator, inputs: int) -> None:
    """One turn of every variant, all on the same inputs."""
    first = len(size.inputs)
    order = [(first + call) % inputs for call in range(size.calls)]
    size.inputs += order
    went = []
    for index in random.permutation(len(names)).tolist():
        name = names[index]
        if name in processes.errors:
            continue
        taken = processes.ask(name, "run", size.key, order, size.calls >= _LEAD_IN_FROM)
        if taken is not None:
            size.turns[name].append(taken)
            went.append(index)
    size.order.append(went + [-1] * (len(names) - len(went)))


def _settled(size: Size, alive: Sequence[str], options: TurnOptions) -> bool:
    if not alive or size.calls * len(size.order) < options.min_calls:
        return False
    if options.until == "settled" or options.baseline not in alive:
        return all(size.relative_interval(name) < options.relative_interval for name in alive)
    races = [race(size.latencies(name), size.latencies(options.baseline)) for name in alive if name != options.baseline]
    return all(one.decided or _alike(one) for one in races)


def _alike(one: Race) -> bool:
    return one.low is not None and one.high is not None and one.low > 1 / _WORTH_HAVING and one.high < _WORTH_HAVING
