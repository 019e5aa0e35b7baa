"""What a search tells of each of its candidates. (`RunResult.candidates`)"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["CandidateResult", "Reached"]

Reached = Literal["none", "make", "check", "race", "full"]


class CandidateResult(BaseModel):
    """One variant that `variants: auto` thought of. Figures are null where it was not measured.

    `reached` is the last thing that was begun with it: none (not tried), make, check (on few samples), race (short
    measuring beside the baseline), full (it is among the variants of the result). `reason` says why it went no further.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    type: str
    runtime: str
    precision: str
    reached: Reached = "none"
    reason: str | None = None
    samples: int | None = None
    """How many samples it was checked on."""
    size_bytes: int | None = None
    speedup: float | None = None
    """How many times faster than the baseline in the race, with its 95 % interval (null: fewer than six turns)."""
    speedup_low: float | None = None
    speedup_high: float | None = None
    fidelity: dict[str, float] = {}
    """Means over these samples: `cosine`, `agreement`, `relative_error`, each against the baseline's outputs."""
    drop: float | None = None
    """Of the metric on these samples, relative to the baseline's, as a fraction."""
