"""Perplexity on held-out text, and how far the next-token distributions are from the original's, window by window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from calibration.windows import Windows
from stages.artifact import Artifact
from stages.check.metrics import FORMS
from stages.check.outputs import ReferenceReader, ReferenceWriter, thinned
from stages.check.per_sample import FILE, PerSample
from stages.errors import InputError, StageError
from stages.language.checkpoint import Checkpoint
from stages.language.likelihood import divergences, losses
from stages.language.session import Floats, LanguageSession, open_language
from stages.progress import SILENT, Progress
from stages.stage import Stage

__all__ = ["CHECK_LANGUAGE", "CheckLanguageOptions", "check_language"]

_LIKELIEST = "likeliest.npy"
_SCORES = "logits"
_WORST = 10
_BATCH_VALUES = 1 << 28  # a GiB of scores


class CheckLanguageOptions(BaseModel):
    """How a language model is evaluated.

    `batch_size`: windows at once, fewer where their scores would take more than a GiB. `threads`: 0 is every usable
    core. `most_values` bounds the scores that are kept of the baseline's (the default is 256 MB of float32): the
    divergence is taken over evenly spaced positions of each window, at least one. Perplexity, agreement and the search
    for NaN always see everything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=8, ge=1)
    threads: int = Field(default=0, ge=0)
    most_values: int = Field(default=64 * 1024 * 1024, ge=1)


def check_language(
    model: Artifact,
    data: Artifact,
    options: CheckLanguageOptions,
    out: Path,
    progress: Progress = SILENT,
    reference: Artifact | None = None,
) -> Artifact:
    """Evaluate a checkpoint, loaded from where it lies, on windows of text. Returns an artifact of kind `evaluation`.

    `reference` is the baseline's evaluation; without one, `model` is the baseline, and its likeliest tokens and some of
    its scores are kept. Memory holds one batch. The loss of a window is the sum of the negative log-likelihoods of its
    tokens from `Windows.first` on, each given all tokens of the window before it; the perplexity is the exponential of
    the mean over all of them.

    Files: `per_sample.npz` with `statistics` ([windows, 2] float64: the loss in nats and the number of predictions) and
    against a reference `agreement` (the share of predictions whose likeliest token is the same) and `kl` (the mean of
    KL(original ‖ variant), in nats, over the positions that are kept), [windows] float64 each; for the baseline
    `outputs/` and `likeliest.npy` ([predictions] int32) too. Metadata as that of `stages.check.check`, and
    `vocabulary`, how many tokens are scored; a variant's `worst` are the ten windows in which its mean loss rises most.

    Raises `InputError` if the windows are not for this model (too long, other tokens) or the reference is of other
    data; `StageError` if scores are NaN or infinite, or of other tokens than the baseline's.
    """
    checkpoint = Checkpoint.of(model)
    windows = _windows(data, checkpoint)
    baseline = _Baseline(reference, data, windows) if reference else None
    statistics = np.empty((len(windows), 2))
    agreement, divergence = np.empty(len(windows)), np.empty(len(windows))
    likeliest: list[NDArray[np.int32]] = []
    metadata: dict[str, Any] = {}
    share = max(1, options.most_values // len(windows))
    size = max(1, min(options.batch_size, _BATCH_VALUES // (windows.length * checkpoint.vocabulary)))
    with open_language(model, options.threads) as session, ReferenceWriter(out, len(windows), share) as writer:
        for window, scores in _scored(session, windows, size):
            _refuse_nan(window, scores)
            targets = windows.tokens[window, windows.first[window] :]
            best = scores.argmax(axis=1).astype(np.int32)
            statistics[window] = losses(scores, targets).sum(), len(targets)
            metadata["vocabulary"] = scores.shape[1]  # that of the head, which may be padded
            if baseline is None:
                likeliest.append(best)
                writer.add(window, {_SCORES: scores}, {_SCORES: True})
            else:
                agreement[window] = (best == baseline.likeliest(window)).mean()
                divergence[window] = baseline.divergence(window, scores)
            del scores  # or two batches would be held while the next one is computed
            progress.update("reading", window + 1, len(windows))
        if baseline is None:
            metadata["outputs"] = writer.finish()

    kept: dict[str, NDArray[np.float64]] = {"statistics": statistics}
    if baseline is None:
        np.save(out / _LIKELIEST, np.concatenate(likeliest))
    else:
        kept |= {"agreement": agreement, "kl": divergence}
        metadata["fidelity"] = {"agreement": float(agreement.mean()), "kl": float(divergence.mean())}
        rise = (statistics[:, 0] - baseline.losses) / statistics[:, 1]
        metadata["worst"] = [int(window) for window in np.argsort(-rise, kind="stable")[:_WORST]]
    np.savez_compressed(out / FILE, **kept)  # type: ignore[arg-type]

    value = float(FORMS["perplexity"].value(statistics.sum(axis=0)))
    about = {
        "metric": {"name": "perplexity", "value": value, "form": "perplexity", "units": "windows"},
        "fidelity": {},
        "decisive": [],
        "samples": len(windows),
        "evidence": str(data.metadata.get("evidence", data.path.name)),
        "evidence_kind": data.metadata.get("evidence_kind", "data"),
        **metadata,
    }
    made_from = {"model": model, "data": data} | ({"reference": reference} if reference else {})
    return Artifact.write(out, "evaluation", about, made_from)


CHECK_LANGUAGE = Stage(
    name="check-language",
    revision=1,
    function=check_language,
    libraries=("numpy",),  # the runtime's come with the step: which one it is, the variant says
    preload=("numpy", "stages.language.runtime.preload"),
    host_bound=True,  # products in bfloat16 or of integers differ between processors, and between them and GPUs
)


def _windows(data: Artifact, checkpoint: Checkpoint) -> Windows:
    if data.kind != "dataset":
        raise InputError(f"{data.path} is a {data.kind}, not a dataset")
    windows = Windows.load(data.path)
    if not len(windows):
        raise InputError(f"there are no windows of text in {data.path}")
    if windows.length > checkpoint.positions:
        raise InputError(
            f"the windows in {data.path} have {windows.length} tokens, the model was made for at most "
            f"{checkpoint.positions}: cut shorter ones"
        )
    if windows.tokens.min() < 0 or windows.tokens.max() >= checkpoint.vocabulary:
        raise InputError(
            f"the windows in {data.path} hold the token {windows.tokens.max()}, the model has "
            f"{checkpoint.vocabulary}: they were made with another tokenizer"
        )
    if windows.first.min() < 1 or windows.first.max() >= windows.length:
        raise InputError(f"a window in {data.path} counts no prediction: its first position must be 1 to its last")
    return windows


def _scored(session: LanguageSession, windows: Windows, size: int) -> Iterator[tuple[int, Floats]]:
    """Each window with the scores of its counted tokens [predictions, vocabulary]: those at position p are of p + 1."""
    for start in range(0, len(windows), size):
        scores = session.logits(windows.tokens[start : start + size])
        for row, one in enumerate(scores):
            window = start + row
            yield window, one[windows.first[window] - 1 : -1]
        del scores, one


def _refuse_nan(window: int, scores: Floats) -> None:
    least, greatest = scores.min(), scores.max()
    if not (np.isfinite(least) and np.isfinite(greatest)):
        found = "NaN" if np.isnan(least) else "Inf"
        raise StageError(f"the scores of window {window} hold {found}: the model is broken, or its dtype overflows")


class _Baseline:
    """What is kept of the baseline's evaluation."""

    def __init__(self, reference: Artifact, data: Artifact, windows: Windows) -> None:
        if reference.made_from.get("data") != data.digest:
            raise InputError(f"{reference.path} is the evaluation of other data than {data.path}")
        statistics = PerSample.of(reference).statistics
        assert statistics is not None
        self.losses: NDArray[np.float64] = statistics[:, 0]
        self._vocabulary: int = reference.metadata["vocabulary"]
        self._outputs = ReferenceReader(reference)
        self._likeliest = np.load(reference.path / _LIKELIEST, mmap_mode="r")
        self._ends = np.cumsum(windows.length - windows.first)

    def likeliest(self, window: int) -> NDArray[np.int32]:
        """[predictions] the tokens that it thought likeliest."""
        start = self._ends[window - 1] if window else 0
        return np.asarray(self._likeliest[start : self._ends[window]])

    def divergence(self, window: int, scores: Floats) -> float:
        """The mean over the positions that are kept. Raises `StageError` if other tokens are scored."""
        if scores.shape[1] != self._vocabulary:
            raise StageError(f"the model scores {scores.shape[1]} tokens, the baseline {self._vocabulary}")
        after = thinned(scores, True, self._outputs.most)
        before = self._outputs.answer(window)[_SCORES].reshape(after.shape)
        return float(divergences(before, after).mean())
