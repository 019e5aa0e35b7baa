"""What a rollout leaves: the document that `--json` prints, and that the record is made from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.result import MlflowLink

__all__ = ["Agreement", "Estimate", "Measure", "Mode", "RolloutResult", "Status", "StepEvidence", "Verdict"]

Mode = Literal["canary", "shadow", "promote", "roll-back"]
Status = Literal["promoted", "rolled_back", "agreed", "refused"]
Verdict = Literal["worse", "not_worse", "undecided"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Estimate(_Document):
    """A figure with an interval that holds at every moment at once. `value` is null without data, `high` unbounded."""

    value: float | None
    low: float
    high: float | None


class Measure(_Document):
    """One figure of both versions (`error_rate`, `latency_p50_ms`, …) and what it says of the candidate."""

    name: str
    stable: Estimate
    candidate: Estimate
    verdict: Verdict


class StepEvidence(_Document):
    """One step of a canary. `reason`: why it ended. `out_of_budget`: it was left undecided, and nothing else."""

    candidate_percent: int
    verdict: Verdict
    reason: str
    out_of_budget: bool = False
    seconds: float
    requests: dict[str, int]
    errors: dict[str, int]
    measures: list[Measure]


class Agreement(_Document):
    """Answers compared by a shadow: `differing` of `samples` lay beyond `tolerance` (relative error, L2).

    `differing_rate` with its interval; `worst`: the largest relative error of a sample (null: one that cannot be
    compared); `examples`: what differed, in words, of the first few. `skipped`: samples that the stable version did not
    answer either.
    """

    samples: int
    differing: int
    skipped: int
    differing_rate: Estimate
    tolerance: float
    max_differing: float
    worst: float | None
    median_ms: dict[str, float]
    examples: list[str]
    verdict: Verdict


class RolloutResult(_Document):
    """A rollout and how it ended. `exit_code`: 0 promoted (or agreed, by a shadow), 3 rolled back (or refused)."""

    status: Status
    exit_code: int
    reason: str
    mode: Mode
    model: str
    stable_version: int
    candidate_version: int
    candidate_percent: int
    """The candidate's share of the traffic when the rollout had ended."""
    interrupted: bool = False
    steps: list[StepEvidence] = []
    agreement: Agreement | None = None
    options: dict[str, str | int | float | bool | list[int] | list[float] | None] = {}
    started_at: str
    seconds: float
    mlflow: MlflowLink | None = None
