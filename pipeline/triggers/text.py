"""Text from a registry, which anybody may have written, as a terminal or an XML file can take it."""

from __future__ import annotations

import re

__all__ = ["one_line", "readable"]

_UNREADABLE = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 does not allow, and the other control characters: DEL, and those from 0x80 that some terminals obey."""


def readable(text: str) -> str:
    """The text with a sign in place of every control character but tabs and ends of lines."""
    return _UNREADABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """The text in one line, without what a terminal would obey."""
    return readable(" ".join(text.split()))
