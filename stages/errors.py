"""What a stage raises. The message says what was wrong, where, and what to do; `pipeline` gives the exit code."""

from __future__ import annotations

__all__ = ["InputError", "RequirementError", "StageError"]


class StageError(Exception):
    """A stage could not do what it promised (exit code 4)."""


class InputError(Exception):
    """The model, the recipe or the data that the user gave is wrong (exit code 2)."""


class RequirementError(Exception):
    """Something that was asked for is missing on this machine: a library, a server, a GPU (exit code 5)."""
