"""Waiting longer and longer, at times that no two waiters share."""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """Delays that double from `first_s` to `longest_s`, each shortened by up to a half at random.

    (Full and equal jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015; this is equal.)
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self.failures = 0

    def failed(self) -> float:
        """Seconds to wait after one more failure."""
        delay = min(self._first_s * 2.0 ** min(self.failures, 30), self._longest_s)
        self.failures += 1
        return delay * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures = 0
