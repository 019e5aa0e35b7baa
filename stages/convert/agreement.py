"""Whether two runtimes give the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import StageError
from stages.runtime import Arrays, Session

__all__ = ["answers", "require_agreement"]


def answers(session: Session, batches: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
    """What a session says to each of the batches."""
    return [session(batch) for batch in batches]


def require_agreement(
    session: Session,
    batches: Sequence[Arrays],
    expected: Sequence[dict[str, NDArray[Any]]],
    *,
    atol: float,
    rtol: float,
) -> None:
    """Raise `StageError` with the figures if `session` answers otherwise than `expected`.

    Each element must be within `atol + rtol * |expected|`; NaN agrees with NaN only.
    """
    for batch, wanted in zip(batches, expected, strict=True):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in batch.items())
        given = session(batch)
        for name, reference in wanted.items():
            answer = given[name]
            if answer.shape != reference.shape:
                raise StageError(
                    f"{name} has the shape {answer.shape} in ONNX Runtime and {reference.shape} in PyTorch for {shapes}"
                )
            close = np.isclose(answer, reference, atol=atol, rtol=rtol, equal_nan=True)
            if not close.all():
                error = np.abs(answer.astype(np.float64) - reference.astype(np.float64))
                raise StageError(
                    f"ONNX Runtime and PyTorch disagree on {name} for {shapes}: {np.count_nonzero(~close)} of "
                    f"{close.size} values differ, by up to {np.nanmax(error):.3g} where the largest is "
                    f"{np.nanmax(np.abs(reference)):.3g} (allowed: {atol:g} + {rtol:g} · value)"
                )
