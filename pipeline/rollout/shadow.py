"""A shadow: the same requests are put to both versions, and their answers compared, while no client sees the candidate.

The requests are those of live clients, which the front door keeps a part of, or samples from a file. Both versions are
asked through the operator's socket, one request at a time, so that a shadow costs the stable version what it samples
and no client waits for it.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from pipeline.rollout.document import Agreement, Estimate, Verdict
from pipeline.rollout.runtime_socket import FrontDoorSocket
from pipeline.rollout.sequences import rate_sequence
from stages.deploy.front_door import CANDIDATE, OPERATOR_SOCKET, STABLE, VERSION_HEADER
from stages.errors import InputError, RequirementError, StageError
from stages.progress import Progress

if TYPE_CHECKING:
    import httpx

__all__ = ["Question", "ShadowOptions", "compare_answers", "live_questions", "relative_error", "stored_questions"]

_JSON_BYTES = "inference-header-content-length"
_LOOK_EVERY_S = 0.2
_EXAMPLES = 5
_Fraction = Annotated[float, Field(gt=0, lt=1)]


class ShadowOptions(BaseModel):
    """How alike answers have to be.

    `tolerance`: the largest relative error (L2 norm of the difference over that of the stable version's answer) of an
    output of floating-point numbers; others must be equal. `max_differing`: the share of samples that may differ by
    more. After `samples`, or `seconds`, what is not known is a refusal. `timeout_s`: for one answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance: Annotated[float, Field(ge=0)] = 0.05
    max_differing: _Fraction = 0.01
    confidence: _Fraction = 0.95
    samples: PositiveInt = 5000
    seconds: Annotated[float, Field(gt=0)] = 3600.0
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    data: Path | None = None


@dataclass(frozen=True)
class Question:
    """One inference request: the body, and how many bytes of it are JSON (None: all)."""

    path: str
    body: bytes
    json_bytes: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        kind = "application/json" if self.json_bytes is None else "application/octet-stream"
        return {"content-type": kind} | ({} if self.json_bytes is None else {_JSON_BYTES: self.json_bytes})


def live_questions(front: FrontDoorSocket, seconds: float) -> Iterator[Question | None]:
    """What clients ask, as the front door samples it; None now and then while nobody asks.

    Raises `StageError` if the front door goes.
    """
    deadline = time.monotonic() + seconds
    stream = front.stream()
    try:
        while time.monotonic() < deadline:
            for line in stream.take():
                if line.get("path", "-") != "-" and line["body"] != "-":
                    length = line["json_bytes"]
                    body = base64.b64decode(line["body"])
                    yield Question(line["path"], body, None if length in ("-", "0") else length)
                    if time.monotonic() >= deadline:
                        return
            yield None
            time.sleep(_LOOK_EVERY_S)
    finally:
        stream.close()


def stored_questions(model: str, data: Path) -> Iterator[Question | None]:
    """One request for each sample of an `.npz`: one array for each input, the first axis the samples.

    Raises `InputError` if the file is no such thing.
    """
    from tritonclient import http
    from tritonclient.utils import np_to_triton_dtype

    try:
        with np.load(data, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "labels"}
    except (OSError, ValueError) as error:
        raise InputError(f"{data} cannot be read as .npz: {error}") from error
    lengths = {len(array) for array in arrays.values() if array.ndim}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"{data}: one array for each input of the model, all with the same number of samples first")
    for row in range(lengths.pop()):
        inputs = []
        for name, array in arrays.items():
            one = array[row : row + 1]
            given = http.InferInput(name, list(one.shape), np_to_triton_dtype(one.dtype))
            given.set_data_from_numpy(one)
            inputs.append(given)
        body, json_bytes = http.InferenceServerClient.generate_request_body(inputs)
        yield Question(f"/v2/models/{model}/infer", bytes(body), None if json_bytes is None else str(json_bytes))


def relative_error(stable: NDArray[Any], candidate: NDArray[Any]) -> float:
    """How far one output is from the other: 0 for equal ones, infinite for another shape, dtype or a lost NaN.

    Floating-point numbers by the L2 norm of the difference over that of `stable`; anything else is equal or not.
    """
    if stable.dtype != candidate.dtype or stable.shape != candidate.shape:
        return math.inf
    if not np.issubdtype(stable.dtype, np.floating):
        return 0.0 if np.array_equal(stable, candidate) else math.inf
    ours, theirs = stable.astype(np.float64), candidate.astype(np.float64)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):  # infinity less infinity, where both are the same
        distance = float(np.linalg.norm(np.where(same, 0.0, theirs - ours)))
    size = float(np.linalg.norm(np.where(same & ~np.isfinite(ours), 0.0, ours)))
    if not math.isfinite(distance) or not math.isfinite(size):
        return math.inf
    return distance / size if size else math.inf


@dataclass
class _Tally:
    samples: int = 0
    differing: int = 0
    skipped: int = 0
    worst: float = 0.0
    took_ms: dict[str, list[float]] = field(default_factory=lambda: {STABLE: [], CANDIDATE: []})
    examples: list[str] = field(default_factory=list)

    def rate(self, alpha: float) -> Estimate:
        low, high = rate_sequence(self.differing, self.samples, alpha)
        return Estimate(value=self.differing / self.samples if self.samples else None, low=low, high=high)


def compare_answers(
    run: Path, questions: Iterator[Question | None], options: ShadowOptions, progress: Progress
) -> Agreement:
    """Put questions to both versions until it is known whether more of the answers differ than may.

    `run`: the directory of the front door's sockets. Raises `RequirementError` if nobody answers there.
    """
    tally = _Tally()
    alpha = 1 - options.confidence
    with _Operator(run, options.timeout_s) as operator:
        for question in questions:
            if question is None:
                continue
            _ask_both(operator, question, options.tolerance, tally)
            progress.update(f"{tally.samples} answers compared, {tally.differing} differ", tally.samples)
            known = _verdict(tally.rate(alpha), options.max_differing) != "undecided"
            if known or tally.samples + tally.skipped >= options.samples:
                break
    return Agreement(
        samples=tally.samples,
        differing=tally.differing,
        skipped=tally.skipped,
        differing_rate=tally.rate(alpha),
        tolerance=options.tolerance,
        max_differing=options.max_differing,
        worst=tally.worst if math.isfinite(tally.worst) else None,
        median_ms={name: float(np.median(values)) for name, values in tally.took_ms.items() if values},
        examples=tally.examples,
        verdict=_verdict(tally.rate(alpha), options.max_differing),
    )


def _verdict(rate: Estimate, limit: float) -> Verdict:
    return "worse" if rate.low > limit else "not_worse" if rate.high is not None and rate.high <= limit else "undecided"


def _ask_both(operator: _Operator, question: Question, tolerance: float, tally: _Tally) -> None:
    stable, stable_ms = operator.answer(STABLE, question)
    if isinstance(stable, str):
        tally.skipped += 1  # what the stable version does not answer says nothing about the candidate
        return
    candidate, candidate_ms = operator.answer(CANDIDATE, question)
    tally.samples += 1
    tally.took_ms[STABLE].append(stable_ms)
    tally.took_ms[CANDIDATE].append(candidate_ms)
    if isinstance(candidate, str):
        error, what = math.inf, f"the candidate answered {candidate}"
    elif missing := sorted(stable.keys() ^ candidate.keys()):
        error, what = math.inf, f"only one version has the output {missing[0]}"
    else:
        errors = {name: relative_error(stable[name], candidate[name]) for name in stable}
        name = max(errors, key=lambda name: errors[name])
        error, what = errors[name], f"{name}: relative error {errors[name]:.3g}"
    tally.worst = max(tally.worst, error)
    if error > tolerance:
        tally.differing += 1
        if len(tally.examples) < _EXAMPLES:
            tally.examples.append(what)


class _Operator:
    """Asks a version by name, through the front door's second socket."""

    def __init__(self, run: Path, timeout_s: float) -> None:
        import httpx

        self._path = run / OPERATOR_SOCKET
        transport = httpx.HTTPTransport(uds=str(self._path))
        self._client: httpx.Client = httpx.Client(transport=transport, base_url="http://operator", timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def answer(self, version: str, question: Question) -> tuple[dict[str, NDArray[Any]] | str, float]:
        """The outputs by name, or the refusal in words; and the milliseconds that it took."""
        import httpx

        started = time.perf_counter()
        try:
            response = self._client.post(
                question.path,
                content=question.body,
                headers=question.headers | {VERSION_HEADER: version, "accept-encoding": "identity"},
            )
        except httpx.ConnectError as error:
            raise RequirementError(f"no front door answers at {self._path} ({error})") from error
        except httpx.TimeoutException:
            return "nothing in time", 1000 * (time.perf_counter() - started)
        except httpx.HTTPError as error:
            raise StageError(f"the front door at {self._path} broke off: {error}") from error
        took_ms = 1000 * (time.perf_counter() - started)
        if response.status_code != httpx.codes.OK:
            return f"{response.status_code}: {response.text[:200]}", took_ms
        return _outputs(response.content, response.headers.get(_JSON_BYTES)), took_ms


def _outputs(body: bytes, json_bytes: str | None) -> dict[str, NDArray[Any]]:
    from tritonclient.http import InferResult

    result = InferResult.from_response_body(body, header_length=None if json_bytes is None else int(json_bytes))
    names = [output["name"] for output in result.get_response().get("outputs", [])]
    return {name: np.asarray(result.as_numpy(name)) for name in names}
