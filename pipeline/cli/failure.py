"""From an exception to a message and an exit code."""

from __future__ import annotations

__all__ = ["explain"]


def explain(error: Exception) -> tuple[str, int]:
    """What to tell a person, and the documented exit code."""
    import sqlite3

    from calibration.errors import DataError
    from model_repository.errors import RepositoryError, ServerError
    from pipeline.worker import WorkerError
    from stages.errors import InputError, RequirementError, StageError

    if isinstance(error, (InputError, DataError, RepositoryError)):
        return str(error), 2
    if isinstance(error, RequirementError):
        return str(error), 5
    if isinstance(error, (StageError, ServerError)):
        return str(error), 4
    if isinstance(error, sqlite3.OperationalError):  # a full disk, a lock that is not let go
        return f"the database of the queue cannot be used: {error}", 4
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{place}", 4
    name = "" if isinstance(error, WorkerError) else f"{type(error).__name__}: "
    return (
        f"{name}{error}\nThis is a bug in optimize. Run the same command with --debug and report what it prints.",
        1,
    )
