"""Whether two directories hold the same tokenizer, token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.errors import DataError
from calibration.language import load_language_tokenizer
from stages.errors import StageError

__all__ = ["ensure_same_tokenizer"]

_TEXT = (
    "def area(radius: float) -> float:\n\treturn 3.14159 * radius ** 2  # π·r²\n\n"
    "Grüße aus Köln, 東京と서울 — “naïve” façade, Привет, שלום, नमस्ते! 👩‍🚀🏳️‍🌈 1,000,000 x²≤y\r\n   </s>\x00"
)
"""Code, whitespace of all sorts, several scripts, characters of more than one code point, and what looks special."""

_CHAT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "Grüße!"},
]


def ensure_same_tokenizer(before: Path, after: Path, *, trust_remote_code: bool = False) -> None:
    """Compare the tokenizers of two checkpoints on a text, on all their special tokens, and on a chat.

    Raises `StageError` for the first difference, or if one of them cannot be loaded.
    """
    try:
        old, new = (load_language_tokenizer(path, trust_remote_code=trust_remote_code) for path in (before, after))
    except DataError as error:
        raise StageError(str(error)) from error
    found = _answers(new, old)
    for what, expected in _answers(old, old).items():
        if found[what] != expected:
            difference = _first(found[what], expected)
            raise StageError(f"the tokenizer in {after} differs from the original's in {what}: {difference}")


def _answers(tokenizer: Any, original: Any) -> dict[str, Any]:
    """What the tokenizer makes of probes that follow from the `original` one."""
    special = " ".join([_TEXT[:20], *original.all_special_tokens, *original.get_added_vocab(), _TEXT[-20:]])
    return {
        "the tokens of a text": list(tokenizer(_TEXT)["input_ids"]),
        "the tokens of a text without special ones": list(tokenizer(_TEXT, add_special_tokens=False)["input_ids"]),
        "the tokens of special tokens": list(tokenizer(special)["input_ids"]),
        "the text of tokens": tokenizer.decode(original(special)["input_ids"]),
        "its special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "its chat template": tokenizer.chat_template,
        "the tokens of a chat": _chat(tokenizer),
    }


def _chat(tokenizer: Any) -> Any:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    try:
        text = tokenizer.apply_chat_template(_CHAT, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:  # some refuse what is no chat of theirs: both must
        return str(error)
    return [text, list(tokenizer(text, add_special_tokens=False)["input_ids"])]


def _first(found: Any, expected: Any) -> str:
    """The first place in which two answers differ."""
    if isinstance(found, list) and isinstance(expected, list):
        pairs = enumerate(zip(found, expected, strict=False))
        at = next((index for index, (one, other) in pairs if one != other), min(len(found), len(expected)))
        found, expected = found[at : at + 1], expected[at : at + 1]
        return f"{found} at {at}, and {expected} there before"
    return f"{found!r}, and {expected!r} before"
