"""Bringing a candidate to traffic and back: a canary by sequential test, a shadow that compares answers.

`runtime_socket` talks to the front door, `sequences` has the intervals, `evidence` judges, `canary` and `shadow` drive.
"""

from __future__ import annotations

from pipeline.rollout.canary import CanaryOptions
from pipeline.rollout.document import RolloutResult
from pipeline.rollout.rollout import rollout
from pipeline.rollout.shadow import ShadowOptions

__all__ = ["CanaryOptions", "RolloutResult", "ShadowOptions", "rollout"]
