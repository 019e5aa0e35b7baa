"""The questions that a served release is asked, and what this process answers to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.samples import Samples
from model_repository.server import Server
from stages.errors import StageError
from stages.progress import Progress
from stages.runtime import Arrays, Session
from stages.runtime.triton import TritonSession
from stages.verify.answers import Comparison, difference

__all__ = ["Trial"]

_BURSTS = 8


class Trial:
    """`samples`, number `chosen[i]` of the data each, asked of a server (`Session`) and of this process (`local`).

    `request_size`: how many samples a request may hold. `max_batch_size`: how many Triton puts together, 0 for none.
    """

    def __init__(
        self,
        local: Session,
        chosen: list[int],
        samples: Samples,
        request_size: int,
        max_batch_size: int,
        concurrency: int,
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
        # In equal shapes, because Triton puts only such requests together; the shorter half, to pad little.
        shortest_first = np.argsort(samples.lengths(), kind="stable").tolist()
        self._members = shortest_first[: max(2 * concurrency, len(samples) // 2)]
        together = samples.batch(self._members)
        self._alike = [_rows(together, [row]) for row in range(len(self._members))]
        self._alike_answers: list[dict[str, NDArray[Any]]] = []

    def one_by_one(self, session: Session, comparison: Comparison) -> Comparison:
        """Each sample in a request of its own, one after the other, in its own length."""
        self._progress.update(f"asking {comparison.requests}")
        for position, sample in enumerate(self._chosen):
            answer = session(self._samples.batch([position]))
            comparison.hold([sample], self._answer_alone(position), answer)
        return comparison

    def in_batches(self, session: Session, comparison: Comparison) -> Comparison:
        """Requests of `request_size` samples, put together here: the shortest, and the longest."""
        size = min(self._request_size, len(self._samples))
        if size > 1:
            self._progress.update(f"asking {comparison.requests}")
            by_length = np.argsort(self._samples.lengths(), kind="stable").tolist()
            for positions in (by_length[:size], by_length[-size:]):
                request = self._samples.batch(positions)
                comparison.hold([self._chosen[p] for p in positions], self._local(request), session(request))
        return comparison

    def shift(self, session: Session) -> dict[str, float]:
        """By output: the largest difference of the answers of another `session` in this process, samples alone."""
        largest: dict[str, float] = {}
        for position in range(len(self._chosen)):
            other = session(self._samples.batch([position]))
            for name, own in self._answer_alone(position).items():
                largest[name] = max(difference(own, other[name]), largest.get(name, 0.0))
        return largest

    def drift(self) -> dict[str, float]:
        """By output: the largest difference of a sample's answer in a batch from its answer alone, in this process."""
        largest: dict[str, float] = {}
        for size in sorted({2, self._max_batch_size}):
            for start in range(0, len(self._alike) - size + 1, size):
                members = range(start, start + size)
                batch = {
                    name: np.concatenate([self._alike[member][name] for member in members]) for name in self._alike[0]
                }
                answers = self._local(batch)
                for offset, member in enumerate(members):
                    for name, alone in self._answer(member).items():
                        off = difference(alone, answers[name][offset : offset + 1])
                        largest[name] = max(off, largest.get(name, 0.0))
        return largest if self._max_batch_size > 1 else {}

    def at_once(self, session: TritonSession, comparison: Comparison, server: Server, name: str) -> tuple[int, int]:
        """Samples of one shape, `concurrency` requests in flight. Returns how many requests and executions there were.

        Whether requests meet in the server's queue is a matter of timing, so it may take several bursts.
        """
        concurrency = self._concurrency
        self._progress.update(f"asking {comparison.requests}")
        before = _counted(server, name, 0)
        burst = [index % len(self._alike) for index in range(max(len(self._alike), 4 * concurrency))]
        requests = 0
        for _ in range(_BURSTS):
            for member, answer in _burst(session, self._alike, burst, concurrency):
                comparison.hold([self._chosen[self._members[member]]], self._answer(member), answer)
            requests += len(burst)
            executions = _counted(server, name, before[0] + requests)[1] - before[1]
            if executions < requests or self._max_batch_size <= 1 or concurrency == 1:
                return requests, executions
        raise StageError(
            f"the server does not batch: {requests} requests, {concurrency} in flight, took {executions} executions "
            f"although max_batch_size is {self._max_batch_size}. Does the configuration have `dynamic_batching`?"
        )

    def _answer_alone(self, position: int) -> dict[str, NDArray[Any]]:
        if position not in self._alone:
            self._alone[position] = self._local(self._samples.batch([position]))
        return self._alone[position]

    def _answer(self, member: int) -> dict[str, NDArray[Any]]:
        while len(self._alike_answers) <= member:
            self._alike_answers.append(self._local(self._alike[len(self._alike_answers)]))
        return self._alike_answers[member]


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
