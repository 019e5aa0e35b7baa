"""How two things differ in one figure, how sure that is, and by what it is known."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.compare.subject import Subject
from pipeline.figures import drop_word
from pipeline.result import Latency
from stages.check.per_sample import PerSample
from stages.errors import InputError
from stages.gate.drop import metric_figures
from stages.gate.judgement import Limits
from stages.profile.race import faster

__all__ = ["Basis", "Difference", "differences"]

Basis = Literal["paired", "intervals", "own-baselines", "exact", "none"]
"""`paired`: turn by turn or sample by sample of one measurement. `intervals`: whether the two 95 % intervals are apart,
which misses small differences. `own-baselines`: each against the baseline it was measured beside, for what was measured
at other times or on other machines. `exact`: nothing was estimated. `none`: cannot be told."""

_SURE = 0.975
"""For each of two one-sided bounds: together they are a two-sided interval of 95 %."""


class Difference(BaseModel):
    """One figure of `of` beside that of `over`.

    `ratio`: of's speed, latency, size or memory over the other's. `drop`: the relative loss of a metric (a rise where
    lower is better), as a fraction. `low` and `high` are its 95 % interval. `real`: whether it excludes that nothing
    differs; null where that cannot be told. `note` says in words by what, or why not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    figure: str
    kind: Literal["ratio", "drop"]
    of: str
    over: str
    value: float | None
    low: float | None = None
    high: float | None = None
    real: bool | None
    basis: Basis
    note: str


def differences(over: Subject, of: Subject, batch: int) -> list[Difference]:
    """Every figure that both have, or that one should have had: speed, its tail, accuracy, size and memory."""
    found = [_speed(over, of, batch)]
    found += [one for name in ("p95", "p99") if (one := _tail(over, of, batch, name)) is not None]
    accuracy = _metric(over, of)
    found += _fidelities(over, of) if accuracy is None else [accuracy]
    for figure, before, after in (
        ("size", over.row.size_bytes, of.row.size_bytes),
        ("memory", over.row.peak_memory_bytes, of.row.peak_memory_bytes),
    ):
        if before and after:
            found.append(_amount(figure, over, of, before, after))
    return found


def _made(figure: str, kind: Literal["ratio", "drop"], over: Subject, of: Subject) -> dict[str, str]:
    return {"figure": figure, "kind": kind, "of": of.reference, "over": over.reference}


def _same_measurement(over: Subject, of: Subject) -> bool:
    return over.measured is not None and of.measured is not None and over.measured.key == of.measured.key


def _speed(over: Subject, of: Subject, batch: int) -> Difference:
    made = _made("speed", "ratio", over, of)
    before, after = over.batch(batch), of.batch(batch)
    if before is None or after is None:
        lacks = over if before is None else of
        note = f"{lacks.reference} was not measured at batch size {batch}"
        return Difference(**made, value=None, real=None, basis="none", note=note)
    if _same_measurement(over, of) and over.measurement is not None:
        try:
            race = faster(over.measurement, of.row.form or of.row.name, over.row.form or over.row.name, batch)
        except InputError as error:
            return Difference(**made, value=None, real=None, basis="none", note=str(error))
        real = race.decided if race.low is not None else None
        note = "turn by turn in one measurement" if race.low is not None else "too few turns for an interval"
        return Difference(**made, value=race.ratio, low=race.low, high=race.high, real=real, basis="paired", note=note)
    return _by_baselines(over, of, batch)


def _by_baselines(over: Subject, of: Subject, batch: int) -> Difference:
    made = _made("speed", "ratio", over, of)
    before, after = over.batch(batch), of.batch(batch)
    one = None if before is None else before.speedup
    other = None if after is None else after.speedup
    apart = f"{over.reference} was measured {_when(over)}, {of.reference} {_when(of)}"
    if _same_measurement(over, of):
        apart = "measured together, turn by turn, but the times are not in this store"
    if one is None or other is None:
        note = f"{apart}, and without a baseline beside both: times of different minutes cannot be compared"
        return Difference(**made, value=None, real=None, basis="none", note=note)
    note = f"{apart}: what is compared is how much faster each is than its own baseline"
    if over.source_digest != of.source_digest:
        note += "; the baselines are different models"
    value = other.value / one.value
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Difference(**made, value=value, real=None, basis="own-baselines", note=f"{note}; too few turns")
    low, high = other.low / one.high, other.high / one.low  # both ends at their worst: wider than 95 % would be
    return Difference(
        **made, value=value, low=low, high=high, real=low > 1 or high < 1, basis="own-baselines", note=note
    )


def _when(subject: Subject) -> str:
    measured = subject.measured
    if measured is None or measured.measured_at is None:
        return "at a time that is not known"
    return f"{measured.measured_at[:16].replace('T', ' ')} on {measured.measured_on or subject.host.get('cpu', '?')}"


def _tail(over: Subject, of: Subject, batch: int, name: str) -> Difference | None:
    before, after = over.batch(batch), of.batch(batch)
    if before is None or after is None:
        return None
    made = _made(f"latency {name}", "ratio", over, of)
    (low, value, high), (low_of, value_of, high_of) = _ends(before.latency_ms, name), _ends(after.latency_ms, name)
    if not _same_measurement(over, of):
        note = "times of different minutes or machines cannot be compared"
        return Difference(**made, value=None, real=None, basis="none", note=note)
    return Difference(
        **made,
        value=value_of / value,
        low=low_of / high,
        high=high_of / low,
        real=low_of > high or high_of < low,
        basis="intervals",
        note="of one measurement, by the intervals of the percentiles",
    )


def _ends(latency: Latency, name: str) -> tuple[float, float, float]:
    low, value, high = (getattr(latency, f"{name}{end}") for end in ("_low", "", "_high"))
    return float(low), float(value), float(high)


def _metric(over: Subject, of: Subject) -> Difference | None:
    before, after = over.row.metric, of.row.metric
    if before is None or after is None:
        return None
    made = _made(after.name, "drop", over, of)
    if before.name != after.name:
        note = f"{before.name} and {after.name} are different metrics"
        return Difference(**made, value=None, real=None, basis="none", note=note)
    if over.data is None or over.data != of.data:
        note = "they were judged on different data"
        return Difference(**made, value=None, real=None, basis="none", note=note)
    worse = after.value - before.value if drop_word(after.name) == "rise" else before.value - after.value
    drop = worse / before.value if before.value else None
    if over.evaluation is not None and of.evaluation is not None:
        given, reference = PerSample.of(of.evaluation), PerSample.of(over.evaluation)
        if given.form == reference.form and given.statistics is not None and reference.statistics is not None:
            figures = metric_figures(given, reference, Limits(confidence=_SURE))
            return Difference(
                **made,
                value=figures.drop,
                low=figures.drop_lower,
                high=figures.drop_upper,
                real=figures.drop_lower > 0 or figures.drop_upper < 0,
                basis="paired",
                note=f"sample by sample, on {len(given.statistics)} {given.units}",
            )
    note = "the samples' own results are not in this store; by the two intervals, which miss small differences"
    apart = before.low > after.high or after.low > before.high
    return Difference(**made, value=drop, real=apart, basis="intervals", note=note)


def _fidelities(over: Subject, of: Subject) -> list[Difference]:
    """Where there was no truth: how near each is to the outputs of its baseline."""
    if over.source_digest != of.source_digest or over.data != of.data:
        return []
    found = []
    for name in (name for name in of.row.fidelity if name in over.row.fidelity):
        before, after = over.row.fidelity[name], of.row.fidelity[name]
        worse = after.value - before.value if name in ("relative_error", "kl") else before.value - after.value
        found.append(
            Difference(
                **_made(name, "drop", over, of),
                value=worse / before.value if before.value else None,
                real=after.low > before.high or before.low > after.high,
                basis="intervals",
                note="to the baseline's outputs, by the two intervals, which miss small differences",
            )
        )
    return found


def _amount(figure: str, over: Subject, of: Subject, before: int, after: int) -> Difference:
    made = _made(figure, "ratio", over, of)
    if figure == "size":
        note = "bytes of the model's files"
        return Difference(**made, value=after / before, real=after != before, basis="exact", note=note)
    note = "one peak each, which has no interval"
    return Difference(**made, value=after / before, real=None, basis="none", note=note)
