"""Which version was current when: `.history.json` in a model's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from model_repository.errors import RepositoryError

__all__ = ["HISTORY", "Event", "History"]

HISTORY = ".history.json"


class Event(BaseModel):
    """A version became current, at a time (ISO 8601, UTC)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["publish", "promote", "rollback"]
    version: int
    at: str


class History(BaseModel):
    """All events in their order, and the one that a writer has begun (`pending`).

    A writer notes what it begins, does it, then notes that it is done. If it dies in between, the next writer knows
    what to finish or take back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    events: tuple[Event, ...] = ()
    pending: Event | None = None

    @classmethod
    def read(cls, directory: Path) -> History:
        """The history of the model in `directory`; empty if it has none. Raises `RepositoryError` if it is damaged."""
        file = directory / HISTORY
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            raise RepositoryError(
                f"{file} cannot be read ({error.errors()[0]['msg']}); restore it, or remove it: without it "
                "the versions stay as they are and only the order of rollbacks is forgotten"
            ) from error

    def begin(self, event: Event) -> History:
        return History(events=self.events, pending=event)

    def finish(self) -> History:
        assert self.pending is not None
        return History(events=(*self.events, self.pending))

    def abandon(self) -> History:
        return History(events=self.events)

    def encode(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()

    def line(self, current: int | None) -> list[int]:
        """The versions that a rollback walks back through, the current one last.

        Publishing and promoting add to the line; rolling back shortens it to the version gone back to. `current` is
        what the configuration says: someone may have written it by hand, and it is right.
        """
        line: list[int] = []
        for event in self.events:
            if event.action == "rollback" and event.version in line:
                while line[-1] != event.version:
                    line.pop()
            elif not line or line[-1] != event.version:
                line.append(event.version)
        if current is not None and (not line or line[-1] != current):
            line.append(current)
        return line

    @property
    def highest(self) -> int:
        """The highest number that was ever given, also to a version that has been removed since; 0 if none."""
        return max((event.version for event in self.events), default=0)
