"""The questions that a served release is asked, and what this process answers to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.samples import Samples
from model_repository.server import Server
from stages.errors import StageError
from stages.progress import Progress
from stages.runtime import Arrays, Session
from stages.runtime.triton import TritonSession
from stages.verify.answers import Comparison, difference

__all__ = ["AtOnce", "Trial"]

_ROUNDS = 8


class AtOnce(NamedTuple):
    """Requests sent together, the executions that they took, and the drift of answers beside others (by output)."""

    requests: int
    executions: int
    drift: dict[str, float]


class _Question(NamedTuple):
    """A request of one sample, and the answers that are right."""

    sample: int
    arrays: Arrays
    answers: list[dict[str, NDArray[Any]]]


class Trial:
    """`samples`, number `chosen[i]` of the data each, asked of a server (`Session`) and of this process (`local`).

    `request_size`: how many samples a request may hold. `max_batch_size`: how many Triton puts together, 0 for none.
    `depends_on_batch`: whether what the model answers to a sample depends on what else is in the batch.
    """

    def __init__(
        self,
        local: Session,
        chosen: list[int],
        samples: Samples,
        request_size: int,
        max_batch_size: int,
        concurrency: int,
        depends_on_batch: bool,
        progress: Progress,
    ) -> None:
        self._local = local
        self._chosen = chosen
        self._samples = samples
        self._progress = progress
        self._alone: dict[int, dict[str, NDArray[Any]]] = {}
        self._request_size = request_size
        self._max_batch_size = max_batch_size
        self._concurrency = concurrency
        self._depends_on_batch = depends_on_batch and max_batch_size > 1
        # In equal shapes, because Triton puts only such requests together; the shorter half, to pad little.
        shortest_first = np.argsort(samples.lengths(), kind="stable").tolist()
        self._members = shortest_first[: max(2 * concurrency, len(samples) // 2)]
        self._alike = samples.batch(self._members)

    def one_by_one(self, session: Session, comparison: Comparison) -> Comparison:
        """Each sample in a request of its own, one after the other, in its own length."""
        self._progress.update(f"asking {comparison.requests}")
        for position, sample in enumerate(self._chosen):
            answer = session(self._samples.batch([position]))
            comparison.hold([sample], [self._answer_alone(position)], answer)
        return comparison

    def in_batches(self, session: Session, comparison: Comparison) -> Comparison:
        """Requests of `request_size` samples, put together here: the shortest, and the longest."""
        size = min(self._request_size, len(self._samples))
        if size > 1:
            self._progress.update(f"asking {comparison.requests}")
            by_length = np.argsort(self._samples.lengths(), kind="stable").tolist()
            for positions in (by_length[:size], by_length[-size:]):
                request = self._samples.batch(positions)
                comparison.hold([self._chosen[p] for p in positions], [self._local(request)], session(request))
        return comparison

    def shift(self, session: Session) -> dict[str, float]:
        """By output: the largest difference of the answers of another `session` in this process, samples alone."""
        largest: dict[str, float] = {}
        for position in range(len(self._chosen)):
            other = session(self._samples.batch([position]))
            for name, own in self._answer_alone(position).items():
                largest[name] = max(difference(own, other[name]), largest.get(name, 0.0))
        return largest

    def at_once(self, session: TritonSession, comparison: Comparison, server: Server, name: str) -> AtOnce:
        """Samples of one shape, `concurrency` requests in flight, two different samples at a time.

        Triton chooses what it puts together, and what is in a batch decides the scale in which a dynamically quantised
        graph rounds: the smallest and largest value of a tensor, over all of its rows. Rows that are there several
        times do not change these, so that among copies of two samples there are just two answers to each: that of the
        sample alone, and that beside the other.

        Whether requests meet in the server's queue is a matter of timing, so it may take several rounds.
        """
        self._progress.update(f"asking {comparison.requests}")
        pairs = [self._pair(rows) for rows in _pairs(len(self._members))]
        before = _counted(server, name, 0)
        requests = 0
        for _ in range(_ROUNDS):
            for pair in pairs:
                order = [index % len(pair) for index in range(2 * self._concurrency)]
                asked = [question.arrays for question in pair]
                for index, answer in _burst(session, asked, order, self._concurrency):
                    comparison.hold([pair[index].sample], pair[index].answers, answer)
                requests += len(order)
            executions = _counted(server, name, before[0] + requests)[1] - before[1]
            if executions < requests or self._max_batch_size <= 1 or self._concurrency == 1:
                return AtOnce(requests, executions, _drift([question for pair in pairs for question in pair]))
        raise StageError(
            f"the server does not batch: {requests} requests, {self._concurrency} in flight, took {executions} "
            f"executions although max_batch_size is {self._max_batch_size}. Does the configuration have "
            "`dynamic_batching`?"
        )

    def _pair(self, rows: list[int]) -> list[_Question]:
        """Rows of the samples of one shape, with what may be answered to each where it meets nothing but the others."""
        asked = [_rows(self._alike, [row]) for row in rows]
        answers = [[self._local(arrays)] for arrays in asked]
        if self._depends_on_batch and len(rows) > 1:
            beside = self._local(_rows(self._alike, rows))
            for index, expected in enumerate(answers):
                expected.append(_rows(beside, [index]))
        return [
            _Question(self._chosen[self._members[row]], arrays, expected)
            for row, arrays, expected in zip(rows, asked, answers, strict=True)
        ]

    def _answer_alone(self, position: int) -> dict[str, NDArray[Any]]:
        if position not in self._alone:
            self._alone[position] = self._local(self._samples.batch([position]))
        return self._alone[position]


def _pairs(count: int) -> list[list[int]]:
    """The numbers below `count` by twos; an odd one comes beside the one before it."""
    if count < 2:
        return [list(range(count))]
    return [[min(first, count - 2), min(first, count - 2) + 1] for first in range(0, count, 2)]


def _drift(questions: Sequence[_Question]) -> dict[str, float]:
    """By output: the largest difference of a sample's answer beside another from its answer alone."""
    largest: dict[str, float] = {}
    for question in questions:
        alone, *others = question.answers
        for beside in others:
            for name, wanted in alone.items():
                largest[name] = max(difference(wanted, beside[name]), largest.get(name, 0.0))
    return largest


def _burst(
    session: TritonSession, requests: Sequence[Arrays], order: Sequence[int], concurrency: int
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """Send requests, at most `concurrency` unanswered at a time, and give the answers in the order of sending."""
    free = threading.BoundedSemaphore(concurrency)
    sent: list[tuple[int, Future[dict[str, NDArray[Any]]]]] = []
    for member in order:
        free.acquire()
        future = session.submit(requests[member])
        future.add_done_callback(lambda _: free.release())
        sent.append((member, future))
    for member, future in sent:
        yield member, future.result()


def _counted(server: Server, name: str, at_least: int) -> tuple[int, int]:
    """Requests answered and executions of a model so far, once `at_least` requests have been counted.

    The server counts a request a moment after it has answered it.
    """
    last = (-1, -1)
    for _ in range(200):
        metrics = server.metrics()
        now = tuple(
            int(metrics.total(f"nv_inference_{what}", model=name)) for what in ("request_success", "exec_count")
        )
        if now[0] >= at_least and now == last:
            return now[0], now[1]
        last = (now[0], now[1])
        time.sleep(0.02)
    raise StageError(f"the server counts {last[0]} answered requests of {name!r}, where {at_least} were answered")


def _rows(batch: Arrays, positions: list[int]) -> dict[str, NDArray[Any]]:
    return {name: array[positions] for name, array in batch.items()}
