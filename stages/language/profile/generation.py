"""The figures of prefill and decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.profile.latency import percentile_figures
from stages.profile.rounds import Size

__all__ = ["Point", "first_token_ms", "generation_figures"]


@dataclass
class Point(Size):
    """What is measured at one batch size and one length of prompt; `prompt_tokens` None: a mix. `lengths` are those of
    its inputs."""

    prompt_tokens: int | None = None
    lengths: tuple[int, ...] = ()

    @property
    def key(self) -> int | str:
        return self.batch_size if self.prompt_tokens is None else f"{self.batch_size}/{self.prompt_tokens}"

    @property
    def label(self) -> str:
        prompts = "prompts of all lengths" if self.prompt_tokens is None else f"prompts of {self.prompt_tokens} tokens"
        return f"batch size {self.batch_size}, {prompts}"


def first_token_ms(point: Point, name: str) -> NDArray[np.float64]:
    """[requests] milliseconds, in the order taken."""
    return point.times(name)[:, :, 1].ravel()


def generation_figures(point: Point, name: str, new_tokens: int) -> dict[str, Any]:
    """One variant's figures at one point.

    `ttft_ms`: the time to the first token, which is that of reading the prompt. `tpot_ms`: the time for each token
    after it. Both have p50, p95 and p99 over the requests, each with `_low` and `_high`, their 95 % interval.
    `prefill_tokens_per_s` and `decode_tokens_per_s` count the tokens of all sequences of the batch.
    """
    total, first, kinds = point.latencies(name).ravel(), first_token_ms(point, name), point.kinds(name)
    after = total - first
    read = np.array(point.lengths)[kinds].sum()
    return {
        "batch_size": point.batch_size,
        "prompt_tokens": point.prompt_tokens,
        "new_tokens": new_tokens,
        "ttft_ms": percentile_figures(first, kinds),
        "tpot_ms": percentile_figures(after / (new_tokens - 1), kinds),
        "prefill_tokens_per_s": float(1000 * point.batch_size * read / first.sum()),
        "decode_tokens_per_s": float(1000 * point.batch_size * (new_tokens - 1) * len(after) / after.sum()),
        "requests": len(total),
    }
