"""What reading data raises."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """The data are not what they should be. The message names the file, the row or the column, and the remedy."""
