"""The stage `verify`: a release is served by the real Triton, asked, and its answers compared."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from calibration.errors import DataError
from calibration.samples import Samples
from model_repository import Repository, RepositoryError, ServerError
from model_repository.config import read
from model_repository.environment import ServerEnvironment, server_environment
from model_repository.layout import CONFIG
from model_repository.server import Server
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.model import Model
from stages.progress import SILENT, Progress
from stages.runtime import Arrays, RuntimeOptions, Session, open_session
from stages.runtime.triton import TritonSession
from stages.stage import Stage
from stages.verify.answers import Comparison, difference
from stages.verify.configuration import changes

__all__ = ["REPORT", "VERIFY", "VerifyOptions", "verify"]

REPORT = "verification.json"
_BURSTS = 8
_DRIFT_FACTOR = 2.0
_QUANTISED = re.compile(r"Quantize|Integer|QLinear|QGemm|QAttention|QMoE|NBits")


class VerifyOptions(BaseModel):
    """How a release is verified.

    `cache`: where the server's environment is kept (default: the user's cache directory). `samples` are sent, evenly
    spaced over the data, `concurrency` at a time in the end. `timeout_s`: for the server's start, and for one answer.
    `tolerances`: by precision, the largest difference from the in-process answer, relative to the largest magnitude
    in that answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: Path | None = None
    samples: PositiveInt = 32
    concurrency: PositiveInt = 8
    timeout_s: PositiveFloat = 120
    tolerances: dict[str, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2, "int8": 1e-2, "int4": 1e-2}


def verify(
    *,
    release: Artifact,
    model: Artifact,
    data: Artifact,
    options: VerifyOptions,
    out: Path,
    progress: Progress = SILENT,
) -> Artifact:
    """Serve `release` from a scratch repository and hold its answers against those of `model` in this process.

    1. The server loads it, warm-up included, and its configuration is ours: auto-completion has changed nothing.
    2. Samples one by one over HTTP and over gRPC, and in requests of `max_batch_size` samples: within the tolerance.
    3. Many requests at once over gRPC: the same, and fewer executions than requests where batching is configured.

    What a quantised graph answers depends on what else is in the batch: `DynamicQuantizeLinear` takes its scale from
    the whole tensor, neighbours and padding included. MiniLM in dynamic INT8 moves by 20 % of the largest magnitude
    (cosine down to 0.98) between two batches of a server that does everything right. In 2 it is known what is in each
    batch, and such a graph is held to its tolerance like any other. In 3 Triton chooses, and it may differ by twice as
    much as the same samples do in this process, alone against in batches (`drift`).

    Writes an artifact of kind `verification`: `verification.json`, whose content is the metadata too.

    Raises `StageError` if the server does not load the release (with the server's reason), changes its configuration,
    answers wrongly (with sample, output and difference) or does not batch; `RequirementError` if this machine cannot
    run the server; `InputError` if the artifacts or the data do not go together.
    """
    if release.kind != "release":
        raise InputError(f"{release.path} is a {release.kind}, not a release")
    described = Model.of(model)
    if described.precision not in options.tolerances:
        raise InputError(
            f"there is no tolerance for the precision {described.precision!r}: give one in `tolerances`, which has "
            f"{', '.join(options.tolerances)}"
        )
    chosen, samples = _choose(data, options.samples)
    environment = _environment(options, progress)
    name = str(release.metadata["name"])
    scratch = out / "repository"
    try:
        version = Repository(scratch).publish(name, release.path, {}).version
        progress.update(f"starting Triton {environment.version} with {name}")
        with (
            Server(scratch, environment, models=[name], timeout_s=options.timeout_s) as server,
            _with_its_reason(server),
            open_session(model, RuntimeOptions(threads=int(release.metadata["threads"]))) as local,
            TritonSession(server.http_address, name, str(version), options.timeout_s) as http,
            TritonSession(server.grpc_address, name, str(version), options.timeout_s) as grpc,
        ):
            if found := changes(read(scratch / name / CONFIG), grpc.config()):
                raise StageError(f"the server has changed the configuration of {name!r}: {'; '.join(found)}")
            trial = _Trial(local, chosen, samples, int(release.metadata["max_batch_size"]), progress)
            tolerance = options.tolerances[described.precision]
            over_http = trial.one_by_one(http, Comparison("over HTTP", tolerance))
            over_grpc = trial.one_by_one(grpc, Comparison("over gRPC", tolerance))
            in_batches = trial.in_batches(grpc, Comparison("over gRPC, in one request", tolerance))
            drift = trial.drift() if _is_quantised(described) else {}
            allowed = max(tolerance, _DRIFT_FACTOR * max(drift.values(), default=0.0))
            at_once = Comparison("over gRPC, among other requests", allowed)
            requests, executions = trial.at_once(grpc, at_once, server, name, options.concurrency)
            metadata = {
                "server_version": environment.version,
                "ready_s": round(server.ready_s, 3),
                "samples": len(samples),
                "concurrency": options.concurrency,
                "max_batch_size": trial.max_batch_size,
                "requests": requests,
                "executions": executions,
                "batching_ratio": round(requests / executions, 3),
                "tolerance": tolerance,
                "tolerance_at_once": allowed,
                "drift": drift,
                "largest_difference": {
                    "http": over_http.largest,
                    "grpc": over_grpc.largest,
                    "batches": in_batches.largest,
                    "at_once": at_once.largest,
                },
            }
    except (ServerError, RepositoryError) as error:
        raise StageError(f"the release {name!r} is not served: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    (out / REPORT).write_text(json.dumps(metadata, indent=1, sort_keys=True) + "\n")
    return Artifact.write(out, "verification", metadata, {"release": release, "model": model, "data": data})


class _Trial:
    """The samples, and what this process answers to them."""

    def __init__(
        self, local: Session, chosen: list[int], samples: Samples, max_batch_size: int, progress: Progress
    ) -> None:
        self._local = local
        self._chosen = chosen
        self._samples = samples
        self._progress = progress
        self.max_batch_size = max_batch_size
        # In equal shapes, because Triton puts only such requests together.
        together = samples.batch(range(len(samples)))
        self._alike = [_rows(together, [position]) for position in range(len(samples))]
        self._alike_answers: list[dict[str, NDArray[Any]]] = []

    def one_by_one(self, session: Session, comparison: Comparison) -> Comparison:
        """Each sample in a request of its own, one after the other, in its own length."""
        self._progress.update(f"asking {comparison.requests}")
        for position, sample in enumerate(self._chosen):
            request = self._samples.batch([position])
            comparison.hold([sample], self._local(request), session(request))
        return comparison

    def in_batches(self, session: Session, comparison: Comparison) -> Comparison:
        """Full batches, put together here, one after the other: all of `max_batch_size` that the samples give."""
        size = min(self.max_batch_size, len(self._samples))
        if size > 1:
            self._progress.update(f"asking {comparison.requests}")
            for start in range(0, len(self._samples) - size + 1, size):
                positions = list(range(start, start + size))
                request = self._samples.batch(positions)
                comparison.hold([self._chosen[p] for p in positions], self._local(request), session(request))
        return comparison

    def drift(self) -> dict[str, float]:
        """By output: the largest difference of a sample's answer in a batch from its answer alone, in this process."""
        largest: dict[str, float] = {}
        for size in sorted({2, self.max_batch_size}):
            for start in range(0, len(self._alike) - size + 1, size):
                members = range(start, start + size)
                batch = {
                    name: np.concatenate([self._alike[member][name] for member in members]) for name in self._alike[0]
                }
                answers = self._local(batch)
                for offset, member in enumerate(members):
                    for name, alone in self._answer(member).items():
                        off = difference(alone, answers[name][offset : offset + 1])
                        largest[name] = max(off, largest.get(name, 0.0))
        return largest if self.max_batch_size > 1 else {}

    def at_once(
        self, session: TritonSession, comparison: Comparison, server: Server, name: str, concurrency: int
    ) -> tuple[int, int]:
        """Samples of one shape, `concurrency` requests in flight. Returns how many requests and executions there were.

        Whether requests meet in the server's queue is a matter of timing, so it may take several bursts.
        """
        self._progress.update(f"asking {comparison.requests}")
        before = _counted(server, name, 0)
        burst = [index % len(self._alike) for index in range(max(len(self._alike), 4 * concurrency))]
        requests = 0
        for _ in range(_BURSTS):
            for member, answer in _burst(session, self._alike, burst, concurrency):
                comparison.hold([self._chosen[member]], self._answer(member), answer)
            requests += len(burst)
            executions = _counted(server, name, before[0] + requests)[1] - before[1]
            if executions < requests or self.max_batch_size <= 1 or concurrency == 1:
                return requests, executions
        raise StageError(
            f"the server does not batch: {requests} requests, {concurrency} in flight, took {executions} executions "
            f"although max_batch_size is {self.max_batch_size}. Does the configuration have `dynamic_batching`?"
        )

    def _answer(self, member: int) -> dict[str, NDArray[Any]]:
        while len(self._alike_answers) <= member:
            self._alike_answers.append(self._local(self._alike[len(self._alike_answers)]))
        return self._alike_answers[member]


def _burst(
    session: TritonSession, requests: Sequence[Arrays], order: Sequence[int], concurrency: int
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """Send requests, at most `concurrency` unanswered at a time, and give the answers in the order of sending."""
    free = threading.BoundedSemaphore(concurrency)
    sent: list[tuple[int, Future[dict[str, NDArray[Any]]]]] = []
    for member in order:
        free.acquire()
        future = session.submit(requests[member])
        future.add_done_callback(lambda _: free.release())
        sent.append((member, future))
    for member, future in sent:
        yield member, future.result()


def _counted(server: Server, name: str, at_least: int) -> tuple[int, int]:
    """Requests answered and executions of a model so far, once `at_least` requests have been counted.

    The server counts a request a moment after it has answered it.
    """
    last = (-1, -1)
    for _ in range(200):
        metrics = server.metrics()
        now = tuple(
            int(metrics.total(f"nv_inference_{what}", model=name)) for what in ("request_success", "exec_count")
        )
        if now[0] >= at_least and now == last:
            return now[0], now[1]
        last = (now[0], now[1])
        time.sleep(0.02)
    raise StageError(f"the server counts {last[0]} answered requests of {name!r}, where {at_least} were answered")


def _rows(batch: Arrays, positions: list[int]) -> dict[str, NDArray[Any]]:
    return {name: array[positions] for name, array in batch.items()}


def _is_quantised(model: Model) -> bool:
    if model.operators:
        return any(_QUANTISED.search(operator) for operator in model.operators)
    return model.precision.startswith("int")


def _choose(data: Artifact, count: int) -> tuple[list[int], Samples]:
    """Samples evenly spaced over the data, and their numbers there."""
    try:
        samples = Samples.load(data.path)
    except DataError as error:
        raise InputError(str(error)) from error
    if not len(samples):
        raise InputError(f"{data.path} holds no samples to verify with")
    chosen = sorted(set(np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int).tolist()))
    return chosen, samples.take(chosen)


def _environment(options: VerifyOptions, progress: Progress) -> ServerEnvironment:
    try:
        return server_environment(options.cache, progress.update)
    except ServerError as error:
        raise RequirementError(f"the release cannot be verified on this machine: {error}") from error


@contextmanager
def _with_its_reason(server: Server) -> Iterator[None]:
    """If the server has died under a request, say what it died of, not only that it does not answer."""
    try:
        yield
    except (StageError, RequirementError) as error:
        if (reason := server.death()) is not None:
            raise StageError(reason) from error
        raise


VERIFY = Stage(
    name="verify",
    revision=1,
    function=verify,
    libraries=("onnxruntime", "tritonclient"),
    preload=("onnxruntime",),
)
