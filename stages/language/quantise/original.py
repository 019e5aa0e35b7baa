"""The checkpoint as it came: the baseline."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.language.variant import LanguageVariant

__all__ = ["Original"]


class Original(LanguageVariant):
    """The checkpoint as it came: the baseline of language models. Nothing makes it."""

    precision: ClassVar[str] = "original"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "vllm")

    type: Literal["original"] = "original"
    runtime: Literal["transformers"] = "transformers"
