"""Keeps what libraries print while they are imported and load a model off the screen."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

__all__ = ["silence"]


class _Nowhere(io.TextIOBase):
    """Takes whatever is printed. It is never closed: some libraries keep the stream that they saw first."""

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No progress bars, banners and advice, on standard output neither; what is raised is raised.

    GPTQModel and compressed-tensors print what they do and cannot be told not to; torchao, PyTorch and transformers
    warn of what is nobody's business here.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(_Nowhere()), contextlib.redirect_stderr(_Nowhere()):
            yield
    finally:
        logging.disable(disabled)
