"""From documents to windows: the tokens of a text, one after the other, cut into sequences of one length."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.chat import documents
from calibration.errors import DataError
from calibration.rows import Rows
from calibration.windows import Windows

__all__ = ["TokenStream", "draw_windows", "load_language_tokenizer", "pack", "put_before", "slide", "token_stream"]

_PART = 1 << 20
"""Characters. What a tokenizer keeps of a text while it reads it takes a hundred times the text's memory."""


@dataclass(frozen=True)
class TokenStream:
    """Documents in the order of a seed, joined by the token that ends a text where there is one.

    `tokens`: [n] int64. `prefix`: the tokens that the tokenizer puts before a text; they are not among `tokens`, but
    begin every window. `lengths`: [documents] int64, how many tokens each has. `rows`: how many rows were read.
    `kind`: `documents` or `chats`. `source`: where they are from.
    """

    tokens: NDArray[np.int64]
    prefix: tuple[int, ...]
    lengths: NDArray[np.int64]
    rows: int
    kind: Literal["documents", "chats"]
    source: str


def load_language_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint's directory, as transformers loads it; nothing is fetched.

    Raises `DataError` if there is none, it is damaged, or it takes code of the checkpoint's that is not trusted.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises plain `Exception`, and transformers what a damaged file leads to
        raise DataError(f"the tokenizer in {directory} cannot be read ({type(error).__name__}: {error})") from error


def put_before(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that a tokenizer puts before every text: the one that begins a sequence (BOS) as a rule, or none.

    What it does counts, not what its settings name: many name a BOS token that they put nowhere.
    """
    bare, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
    return tuple(whole[: next(starts, 0)])


def token_stream(rows: Rows, tokenizer: Any, *, seed: int = 0, enough: int | None = None) -> TokenStream:
    """The tokens of the documents in rows (see `calibration.chat.documents`), in an order that `seed` decides.

    Between two documents stands the token that ends a text (EOS), if the tokenizer has one and the first of the two
    does not end with it by itself, as a chat may. What the template of chats writes before them is left out where it
    is what begins every window already. Texts of more than a million characters are cut at the ends of lines, into
    several documents. Once there are `enough` tokens no further documents are read, and that bounds the memory, too.

    Raises `DataError` as `documents` does, and for a document of which the tokenizer makes no tokens.
    """
    found = documents(rows, tokenizer)
    prefix = put_before(tokenizer)
    end_id, end = tokenizer.eos_token_id, tokenizer.eos_token
    parts = [(index, *part) for index in range(len(found)) for part in _parts(found.parts[index])]
    random.Random(seed).shuffle(parts)
    tokens: list[NDArray[np.int64]] = []
    lengths: list[int] = []
    read: set[int] = set()
    ended = True
    for batch in _batches((index, found.text(index)[start:stop]) for index, start, stop in parts):
        texts = [text for _, text in batch]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for (index, text), ids in zip(batch, encoded["input_ids"], strict=True):
            begun = found.kind == "chats" and bool(prefix) and tuple(ids[: len(prefix)]) == prefix
            own = np.array(ids[len(prefix) :] if begun else ids, dtype=np.int64)
            if not own.size:
                raise DataError(f"{rows.where(index)}: the tokenizer makes no tokens of it")
            if not ended:
                tokens.append(np.array([end_id], dtype=np.int64))
            tokens.append(own)
            lengths.append(own.size)
            read.add(index)
            ended = end_id is None or text.rstrip().endswith(end)
        if enough is not None and sum(lengths) >= enough:
            break
    joined = np.concatenate(tokens) if tokens else np.zeros(0, dtype=np.int64)
    return TokenStream(joined, prefix, np.array(lengths, dtype=np.int64), len(read), found.kind, rows.source)


def pack(stream: TokenStream, length: int) -> Windows:
    """Windows of `length` tokens that share no token of the text, for calibration. What is left at the end is dropped.

    Raises `DataError` if there is not one whole window.
    """
    size = _text_in_window(stream, length)
    count = len(stream.tokens) // size
    first = np.full(count, max(1, len(stream.prefix)), dtype=np.int64)
    return Windows(_begun(stream.tokens[: count * size].reshape(count, size), stream.prefix), first, stream.lengths)


def slide(stream: TokenStream, length: int, stride: int | None = None) -> Windows:
    """Windows of `length` tokens, each `stride` (default: half of the length) further on, for perplexity.

    All of the first one counts, and of every other one the last `stride` tokens, so that each token of the text
    counts once (but the first of all, if nothing is put before it) and those after the first window are seen with
    `length - stride` tokens before them, or more. The last window ends with the text, and only what no other one
    counted counts there. (The strided sliding window of Hugging Face's guide to perplexity; there the last window is
    shorter, here all are of one length.)

    Raises `DataError` if there is not one whole window, or with a stride that would leave tokens out.
    """
    size = _text_in_window(stream, length)
    stride = max(1, length // 2) if stride is None else stride
    begins = max(1, len(stream.prefix))
    if not 1 <= stride <= length - begins:
        raise DataError(f"windows of {length} tokens cannot be {stride} apart: the stride is 1 to {length - begins}")
    total = len(stream.tokens)
    ends = np.append(np.arange(size, total, stride), total)
    tokens = stream.tokens[(ends - size)[:, None] + np.arange(size)]
    first = np.append(begins, length - np.diff(ends))
    return Windows(_begun(tokens, stream.prefix), first.astype(np.int64), stream.lengths)


def draw_windows(windows: Windows, samples: int | None, seed: int = 0) -> Windows:
    """At most `samples` of the windows, drawn with `seed`, in their own order."""
    if samples is None or samples >= len(windows):
        return windows
    chosen = sorted(random.Random(seed).sample(range(len(windows)), samples))
    return Windows(windows.tokens[chosen], windows.first[chosen], windows.lengths)


def _parts(part: object) -> Iterator[tuple[int, int | None]]:
    """Where the pieces of a text begin and end; a chat is one piece."""
    start = 0
    while isinstance(part, str) and len(part) - start > _PART:
        # Most tokenizers begin a new token at the end of a line or after it: the tokens are those of the whole text.
        line_end = part.rfind("\n", start, start + _PART) + 1
        stop = line_end if part[start:line_end].strip() else start + _PART
        yield start, stop
        start = stop
    yield start, None


def _batches(texts: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """What is tokenised at once: bounded, because all of it is held with the places of its tokens in the text."""
    batch: list[tuple[int, str]] = []
    size = 0
    for index, text in texts:
        batch.append((index, text))
        size += len(text)
        if size >= _PART:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _text_in_window(stream: TokenStream, length: int) -> int:
    """How many tokens of the text a window holds."""
    size = length - len(stream.prefix)
    if size < 1 or length < 2:
        raise DataError(f"a window of {length} tokens holds no prediction: give a length of {len(stream.prefix) + 2}")
    if len(stream.tokens) < size:
        raise DataError(
            f"{stream.source} holds {len(stream.tokens)} tokens, and one window has {length}: give more text, or "
            "shorter windows"
        )
    return size


def _begun(tokens: NDArray[np.int64], prefix: Sequence[int]) -> NDArray[np.int64]:
    return np.hstack([np.tile(np.array(prefix, dtype=np.int64), (len(tokens), 1)), tokens])
