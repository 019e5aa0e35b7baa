"""Sensitivity: which groups of operators lose the most by being quantised, each alone."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from calibration.samples import Samples
from calibration.statistics import Statistics
from stages.artifact import Artifact
from stages.check.outputs import OutputSplitter, thinned
from stages.errors import InputError, StageError
from stages.inner_values import quantised_operators
from stages.model import Model
from stages.noise import MOST_DB, Noise, decibels
from stages.progress import SILENT, Progress
from stages.quantise.groups import Group, groups, quantisable_graph
from stages.quantise.operators import operators
from stages.quantise.variant import NonFiniteError, VariantConfig, build
from stages.runtime import RuntimeOptions, open_session
from stages.runtime.batch import batches
from stages.stage import Stage
from stages.variants import QUANTISE

__all__ = ["SENSITIVITY", "SensitivityOptions", "sensitivity"]

_MOST_VALUES = 2**19
"""Of one sample's outputs so many are compared, evenly spaced."""

_MOST_EFFECT = 10 ** (MOST_DB / 10)


class SensitivityOptions(BaseModel):
    """`variant`: what is made of each group. `samples`: on so many of the data, of all lengths. `threads`: 0 is every
    usable core."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: SerializeAsAny[VariantConfig]
    samples: int = Field(default=32, ge=1)
    batch_size: int = Field(default=8, ge=1)
    threads: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class _Effect:
    """`ratio`: noise over signal at the model's outputs, of the worst of them. `cosine_error`: 1 - cosine, its mean
    over the samples, None for single numbers. `operators`: those of the group that really were quantised."""

    ratio: float
    cosine_error: float | None
    operators: frozenset[str]


def sensitivity(
    model: Artifact,
    data: Artifact,
    options: SensitivityOptions,
    out: Path,
    progress: Progress = SILENT,
    statistics: Artifact | None = None,
) -> Artifact:
    """What quantising each group of operators alone does to the answers of `model`: an artifact of kind `sensitivity`.

    A variant is made for each group that leaves all others as they are, and run on some samples of `data`. Noise powers
    are nearly additive where errors are small and independent, so that the order of the groups says which to return to
    higher precision first.

    Metadata: `groups`, worst first, each with its `name`, its quantised `operators` (by the names of their outputs),
    `effect` (noise power over signal power at the model's outputs, at most 1e12), `sqnr_db` (the same in decibels,
    within ±120) and `cosine_error` (1 - cosine, or null for single numbers); `unquantised`: the operators that the
    variant leaves as they are in any case; `samples`, `evidence`.

    Raises `StageError` if the variant quantises none of the groups, `InputError` if the data do not fit the model.
    """
    if data.kind != "dataset":
        raise InputError(f"{data.path} is a {data.kind}, not a dataset")
    graph = quantisable_graph(model)
    found = groups(graph, options.variant.exclude)
    present = [operator.name for operator in operators(graph)]
    del graph
    samples = _spread(Samples.load(data.path), options.samples)
    effects = _effects(_Probe(model, options, samples, statistics, found), found, progress)
    if not effects:
        raise StageError(f"{options.variant.name} quantises none of the model's {len(found)} groups of operators")
    ranked = sorted(effects, key=lambda group: -effects[group].ratio)
    quantised = {name for effect in effects.values() for name in effect.operators}
    metadata = {
        "groups": [_told(group, effects[group]) for group in ranked],
        "unquantised": [name for name in present if name not in quantised],
        "samples": len(samples),
        "evidence": data.metadata.get("evidence", data.path.name),
    }
    made_from = {"model": model, "data": data} | ({} if statistics is None else {"statistics": statistics})
    return Artifact.write(out, "sensitivity", metadata, made_from)


SENSITIVITY = Stage(
    name="sensitivity",
    revision=100 * QUANTISE.revision + 1,  # its probes are made by the variants' handlers
    function=sensitivity,
    libraries=QUANTISE.libraries,
    preload=QUANTISE.preload,
    host_bound=True,  # 8-bit products saturate on CPUs without VNNI
)


def _effects(probe: _Probe, found: Sequence[Group], progress: Progress) -> dict[Group, _Effect]:
    """Of the groups of which at least one operator is quantised."""
    effects: dict[Group, _Effect] = {}
    refused = []
    for number, group in enumerate(found):
        progress.update(f"quantising only {group.name}", number, len(found))
        effect = probe.effect(group)
        if effect is None:
            refused.append(group)
        elif effect.operators:
            effects[group] = effect
    if not effects:
        return {}
    # Some variants do not stand on embeddings alone: these get company, whose noise is taken off again.
    company = min(effects, key=lambda group: effects[group].ratio)
    for group in refused:
        progress.update(f"quantising {group.name} beside {company.name}")
        effect = probe.effect(group, company)
        if effect is not None and (own := effect.operators & set(group.operators)):
            effects[group] = _Effect(
                max(0.0, effect.ratio - effects[company].ratio),
                _less(effect.cosine_error, effects[company].cosine_error),
                own,
            )
    return effects


class _Probe:
    """Makes a variant of some groups only, and tells what it does to the answers."""

    def __init__(
        self,
        model: Artifact,
        options: SensitivityOptions,
        samples: Samples,
        statistics: Artifact | None,
        found: Sequence[Group],
    ) -> None:
        self._model = model
        self._options = options
        self._samples = samples
        self._statistics = None if statistics is None else Statistics.load(statistics.path)
        self._found = found
        self._signature = Model.of(model).signature
        self._wanted = dict(self._answers(model))

    def effect(self, *quantised: Group) -> _Effect | None:
        """None if the variant cannot be made of these groups alone."""
        own = {name for group in quantised for name in group.operators}
        others = [name for group in self._found for name in group.operators if name not in own]
        config = self._options.variant.model_copy(update={"exclude": (*self._options.variant.exclude, *others)})
        with tempfile.TemporaryDirectory() as folder:
            try:
                variant = build(config, self._model, Path(folder), SILENT, self._statistics)
            except NonFiniteError:
                return _Effect(math.inf, None, frozenset(own))
            except StageError:
                return None
            return self._compare(variant, quantised_operators(variant, own))

    def _compare(self, variant: Artifact, operators: frozenset[str]) -> _Effect:
        noises = {spec.name: Noise() for spec in self._signature.outputs}
        cosines = []
        try:
            for sample, answer in self._answers(variant):
                for name, noise in noises.items():
                    noise.add(answer[name], self._wanted[sample][name])
                    cosines.append(_cosine(answer[name], self._wanted[sample][name]))
        except StageError:  # it gives NaN, or fails, on one of the samples: nothing is worse
            return _Effect(math.inf, None, operators)
        known = [cosine for cosine in cosines if cosine is not None]
        cosine_error = 1 - float(np.mean(known)) if known else None
        return _Effect(max(noise.ratio for noise in noises.values()), cosine_error, operators)

    def _answers(self, model: Artifact) -> Iterator[tuple[int, Mapping[str, NDArray[Any]]]]:
        splitter = OutputSplitter(self._signature, self._samples)
        most = max(1, _MOST_VALUES // len(self._signature.outputs))
        with open_session(model, RuntimeOptions(threads=self._options.threads, spinning=False)) as session:
            for indices, batch in batches(self._samples, self._signature, self._options.batch_size):
                for sample, answer in splitter.split(indices, session(batch)):
                    kept = {name: thinned(array, splitter.has_positions(name), most) for name, array in answer.items()}
                    yield sample, kept


def _spread(samples: Samples, count: int) -> Samples:
    """At most `count` samples, evenly spaced over all in order of length."""
    order = np.argsort(samples.lengths(), kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)
    return samples.take(order[places].tolist())


def _cosine(given: NDArray[Any], wanted: NDArray[Any]) -> float | None:
    if wanted.dtype.kind != "f" or wanted.size < 2:
        return None
    a, b = given.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(not a.any() and not b.any())


def _less(both: float | None, one: float | None) -> float | None:
    return None if both is None or one is None else max(0.0, both - one)


def _told(group: Group, effect: _Effect) -> dict[str, Any]:
    return {
        "name": group.name,
        "operators": [name for name in group.operators if name in effect.operators],
        "effect": min(effect.ratio, _MOST_EFFECT),
        "sqnr_db": decibels(effect.ratio),
        "cosine_error": effect.cosine_error,
    }
