"""What the model repository and its server raise. The message says what was wrong, where, and what to do."""

from __future__ import annotations

__all__ = ["RepositoryError", "ServerError"]


class RepositoryError(Exception):
    """A model repository, one of its releases or a configuration is not what it should be, or could not be written."""


class ServerError(Exception):
    """A Triton server could not be set up, did not start, did not load a model, or did not answer."""
