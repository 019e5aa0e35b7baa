"""HTML and SVG by nesting calls. What is not `Html` already is escaped, so nothing can be forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["Html", "element", "joined"]

_VOID = {"meta", "br", "col"}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *content: str | None, **attributes: str | float | None) -> Html:
    """`element("td", "a < b", class_="x", data_label="y")` is `<td class="x" data-label="y">a &lt; b</td>`.

    Content and attributes that are None are left out. Numbers are written with two decimals at most.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(content)}</{name}>")


def joined(parts: Iterable[str | None]) -> Html:
    """The parts one after another, escaped where they are not HTML."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts if part is not None))


def _text(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
