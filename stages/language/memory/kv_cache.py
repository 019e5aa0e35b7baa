"""The key-value cache: what a token takes in it, and how vLLM cuts it into blocks.

The blocks are those of vLLM 0.32 (`vllm/v1/core/kv_cache_utils.py`, `vllm/v1/kv_cache_interface.py`).
"""

from __future__ import annotations

from collections import Counter
from math import ceil

from stages.language.checkpoint import Attention

__all__ = ["BLOCK_TOKENS", "blocks_of_sequence", "bytes_of_block", "kv_bytes_of_sequence", "kv_bytes_per_token"]

BLOCK_TOKENS = 16
"""Tokens whose keys and values vLLM keeps together on a GPU."""


def kv_bytes_per_token(attention: Attention, dtype_bytes: int) -> int:
    """Bytes that one more token takes: a key and a value for each KV head of each layer, of `dtype_bytes` a number.

    A layer with a window gives as much back once the sequence is longer than that: see `kv_bytes_of_sequence`.
    """
    return 2 * attention.layers * attention.kv_heads * attention.head_size * dtype_bytes


def kv_bytes_of_sequence(attention: Attention, tokens: int, dtype_bytes: int) -> int:
    """Bytes that a sequence of `tokens` holds: in a layer with a window, of its last tokens only."""
    held = sum(tokens if window is None else min(tokens, window) for window in attention.windows)
    return 2 * held * attention.kv_heads * attention.head_size * dtype_bytes


def blocks_of_sequence(attention: Attention, tokens: int, in_flight: int, block_tokens: int = BLOCK_TOKENS) -> int:
    """Blocks that vLLM sets aside for a sequence of `tokens`.

    In a layer with a window these are for the window and for the tokens that are being computed (`in_flight`), which
    may begin within a block (`SlidingWindowSpec.max_admission_blocks_per_request`).
    """
    _, windows = _groups(attention)
    return sum(
        ceil(tokens / block_tokens) if window is None else ceil(min(window - 1 + in_flight, tokens) / block_tokens) + 1
        for window in windows
    )


def bytes_of_block(
    attention: Attention, dtype_bytes: int, tensor_parallel_size: int = 1, block_tokens: int = BLOCK_TOKENS
) -> int:
    """Bytes of a block on each GPU. With fewer KV heads than GPUs, every GPU holds one."""
    layers, _ = _groups(attention)
    heads = max(1, attention.kv_heads // tensor_parallel_size)
    return 2 * block_tokens * layers * heads * attention.head_size * dtype_bytes


def _groups(attention: Attention) -> tuple[int, list[int | None]]:
    """How vLLM divides the layers: how many there are in a group, and the window of each group.

    A block holds some tokens of all layers of one group. All groups are of one size, so layers of one kind whose number
    is no multiple of it waste some (`_get_kv_cache_groups_uniform_page_size`).
    """
    counts = Counter(attention.windows)
    fewest, most = min(counts.values()), max(counts.values())
    size = most if most < fewest * 1.5 else fewest
    return size, [window for window, count in counts.items() for _ in range(ceil(count / size))]
