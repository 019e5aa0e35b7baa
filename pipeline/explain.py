"""Explain a variant of a finished run: gathered from its result and from what the store still has of its steps."""

from __future__ import annotations

import difflib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from calibration.origins import TextReader, row_of
from calibration.samples import Samples
from pipeline.finished import find_job
from pipeline.plan import Step
from pipeline.result import FallbackResult, RunResult, VariantResult, Verdict
from pipeline.runner import Runner
from pipeline.screen import Screen
from pipeline.store import Store
from stages.artifact import Artifact
from stages.check.per_sample import PerSample
from stages.errors import InputError
from stages.explain import EXPLAIN, ExplainOptions
from stages.host import fingerprint_digest, host_fingerprint
from stages.model import ASSETS, Model

__all__ = ["Explanation", "LayerNoise", "WorstSample", "explain_variant"]

_STEP = "explain"
_TIMEOUT_S = 1800.0


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LayerNoise(_Document):
    """One operator with constant weights. `sqnr_db`: the signal-to-quantisation-noise ratio of what it gives in the
    variant, in decibels within ±120; null where the variant no longer has that tensor.

    `operator`: the name of its output in the graph, as `exclude` names it. `kept`: fallback returned it to higher
    precision.
    """

    name: str
    operator: str
    type: str
    group: str
    quantised: bool
    kept: bool = False
    sqnr_db: float | None


class WorstSample(_Document):
    """A sample that is far from the baseline.

    `row`: of the data, counted from 1, null where that is not known; `text`: as the tokenizer gives it back; `figures`:
    `cosine`, `agreement` and `relative_error`, those that there are.
    """

    sample: int
    row: int | None = None
    text: str | None = None
    figures: dict[str, float]


class Explanation(_Document):
    """Where the error of a variant comes from (`optimize explain --json`).

    `layers` in the graph's order, cumulative, on `samples` samples; `outputs`: the same ratio of the model's outputs.
    `worst` has the farthest samples first. `fallback`: the search that this variant started or came from. `missing`
    says in words what cannot be told, and why.
    """

    job_id: str
    model: str
    variant: str
    verdict: Verdict
    reason: str | None
    evidence: str
    samples: int = 0
    layers: list[LayerNoise] = []
    outputs: dict[str, float | None] = {}
    worst: list[WorstSample] = []
    fallback: FallbackResult | None = None
    missing: list[str] = []


def explain_variant(store: Path, run: str, variant: str, screen: Screen) -> Explanation:
    """What is known of where the error of `variant` in the job `run` comes from. Looking inside it is a step like any
    other: done once, it is in the store.

    Raises `InputError` for an unknown run or variant, for the baseline, and for a variant that was never made;
    `StageError` if it cannot be run.
    """
    result = find_job(store, run)
    row = _row(result, variant)
    kept = _Kept(result, Store(store))
    told = Explanation(
        job_id=result.job_id,
        model=result.model,
        variant=row.name,
        verdict=row.verdict,
        reason=row.reason,
        evidence=result.evidence,
        fallback=next((search for search in result.fallbacks if row.name in (search.variant, search.found)), None),
    )
    made = kept.artifact("the variant", row.digest)
    model = kept.artifact("the graph that it was made from", made.made_from["model"]) if made else None
    data = kept.artifact("the evaluation samples", _evaluation_data(result))
    evaluation = kept.evaluation(row.digest, data)
    if made and model and data:
        _look_inside(told, row, kept.store, screen, model, made, data)
    if evaluation and data:
        told.worst = _worst(evaluation, data, made)
    told.missing = kept.missing
    return told


def _row(result: RunResult, variant: str) -> VariantResult:
    rows = {row.name: row for row in result.variants}
    if variant not in rows:
        near = difflib.get_close_matches(variant, rows, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(rows)}"
        raise InputError(f"the run {result.job_id} has no variant {variant!r}; {hint}")
    row = rows[variant]
    if row.baseline:
        raise InputError(f"{variant} is the baseline, which the others are compared with: it has no error to explain")
    if row.digest is None:
        raise InputError(f"{variant} was not made in the run {result.job_id}: {row.reason}")
    return row


def _evaluation_data(result: RunResult) -> str | None:
    return next((used.digest for used in result.data if used.role == "evaluation"), None)


class _Kept:
    """What the store still has of a run's steps."""

    def __init__(self, result: RunResult, store: Store) -> None:
        self.store = store
        self.missing: list[str] = []
        found = {stage.name: _find(store, stage.key) for stage in result.stages}
        self._artifacts = [artifact for artifact in found.values() if artifact is not None]
        self._removed = [name for name, artifact in found.items() if artifact is None]

    def artifact(self, what: str, digest: str | None) -> Artifact | None:
        found = next((artifact for artifact in self._artifacts if artifact.digest == digest), None)
        if found is None:
            self._miss(what)
        return found

    def evaluation(self, model: str | None, data: Artifact | None) -> Artifact | None:
        """That of a model on these data."""
        if data is None:
            return None
        for artifact in self._artifacts:
            origins = artifact.made_from
            if artifact.kind == "evaluation" and (origins["model"], origins["data"]) == (model, data.digest):
                return artifact
        self._miss("its evaluation")
        return None

    def _miss(self, what: str) -> None:
        removed = f" (gone: {', '.join(self._removed)})" if self._removed else ""
        self.missing.append(
            f"{what} is no longer in the store {self.store.path}{removed}: run the job again, and only what is missing "
            "is made anew"
        )


def _find(store: Store, key: str) -> Artifact | None:
    try:
        found = store.find(key)
    except InputError:  # its folder is there, but not its manifest
        return None
    return None if found is None else found.artifact


def _look_inside(
    told: Explanation,
    row: VariantResult,
    store: Store,
    screen: Screen,
    model: Artifact,
    made: Artifact,
    data: Artifact,
) -> None:
    runner = Runner(store, screen, fingerprint_digest(host_fingerprint()), _TIMEOUT_S, lambda: None)
    inputs = {"model": model, "variant": made, "data": data}
    for name, artifact in inputs.items():
        runner.give(name, artifact)
    libraries = ("openvino",) if Model.of(made).runtime == "openvino" else ()
    runner.run([Step(_STEP, EXPLAIN, ExplainOptions(), {name: name for name in inputs}, libraries=libraries)])
    about = runner.artifacts[_STEP].metadata
    returned = {name for group in row.kept for name in group.operators}
    told.layers = [LayerNoise(**layer, kept=layer["operator"] in returned) for layer in about["layers"]]
    told.outputs, told.samples = about["outputs"], about["samples"]
    if unseen := [layer.name for layer in told.layers if layer.sqnr_db is None]:
        told.missing.append(f"the variant no longer has the tensors of {', '.join(unseen)}: they cannot be compared")


def _worst(evaluation: Artifact, data: Artifact, made: Artifact | None) -> list[WorstSample]:
    results = PerSample.of(evaluation)
    samples = Samples.load(data.path)
    reader = None if made is None else TextReader(made.path / ASSETS)
    return [
        WorstSample(
            sample=number,
            row=row_of(samples, number, data.metadata.get("rows")),
            text=reader.text_of(samples, number) if reader else None,
            figures={name: float(column[number]) for name, column in results.fidelity.items()},
        )
        for number in evaluation.metadata["worst"]
    ]
