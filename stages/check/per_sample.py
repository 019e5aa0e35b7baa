"""The per-sample results of an evaluation, as the gate reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.errors import InputError

__all__ = ["COLUMNS", "ERRORS", "FILE", "PerSample"]

FILE = "per_sample.npz"

COLUMNS = ("cosine", "relative_error", "agreement", "kl")
"""What is compared with the baseline, sample by sample. `kl`: of next-token distributions, in nats."""

ERRORS = ("relative_error", "kl")
"""Those of `COLUMNS` that are 0 where nothing differs, and grow. The others are 1 there, and fall."""


@dataclass(frozen=True)
class PerSample:
    """What a model did on each sample.

    `fidelity`: the columns of `COLUMNS` that exist, [samples] float64 each; empty for the baseline.
    `decisive`: which of them say, where there is no truth, whether the variant still does its task.
    `statistics`: [units, k] float64 of `metric` in the given `form` (see `stages.check.metrics`), None without truth; a
    unit is what `units` names: samples, queries, pairs or windows.
    `data`: the digest of the samples, so that only like is compared with like.
    """

    samples: int
    evidence: str = ""
    evidence_kind: str = "data"
    data: str = ""
    fidelity: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    decisive: tuple[str, ...] = ()
    metric: str | None = None
    form: str | None = None
    units: str = "samples"
    statistics: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, evaluation: Artifact) -> PerSample:
        """Read an artifact of kind `evaluation`. Raises `InputError` for another kind."""
        if evaluation.kind != "evaluation":
            raise InputError(f"{evaluation.path} is a {evaluation.kind}, not an evaluation")
        about: Mapping[str, Any] = evaluation.metadata
        with np.load(evaluation.path / FILE, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in COLUMNS if name in arrays}
            statistics = arrays.get("statistics")
        metric = about["metric"] or {}
        return cls(
            samples=about["samples"],
            evidence=about["evidence"],
            evidence_kind=about["evidence_kind"],
            data=evaluation.made_from.get("data", ""),
            fidelity=columns,
            decisive=tuple(about["decisive"]),
            metric=metric.get("name"),
            form=metric.get("form"),
            units=metric.get("units", "samples"),
            statistics=statistics,
        )
