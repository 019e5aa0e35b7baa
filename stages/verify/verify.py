"""The stage `verify`: a release is served by the real Triton, asked, and its answers compared."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from stages.runtime import RuntimeOptions, open_session
from stages.runtime.triton import TritonSession
from stages.stage import Stage
from stages.verify.answers import Comparison
from stages.verify.configuration import changes
from stages.verify.trial import Trial

__all__ = ["REPORT", "VERIFY", "VerifyOptions", "verify"]

REPORT = "verification.json"
_CLIENTS_BATCH = 8
"""So many samples a request holds where the server sets no limit."""
_DYNAMIC = re.compile(r"DynamicQuantize|MatMulInteger|ConvInteger")


class VerifyOptions(BaseModel):
    """How a release is verified.

    `cache`: where the server's environment is kept (default: the user's cache directory). `samples` are sent, evenly
    spaced over the data, `concurrency` at a time in the end. `timeout_s`: for the server's start, and for one answer.
    `tolerances`: by precision, the largest difference from the in-process answer, relative to the largest magnitude
    in that answer. `bf16_shift`: how far, in the same measure, answers in BF16 may be from those in FP32 where a model
    that was measured in FP32 is served in BF16.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: Path | None = None
    samples: PositiveInt = 32
    concurrency: PositiveInt = 8
    timeout_s: PositiveFloat = 120
    tolerances: dict[str, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-2, "int8": 1e-2, "int4": 1e-2}
    bf16_shift: PositiveFloat = 3e-2


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

    What a dynamically quantised graph answers depends on what else is in the batch: `DynamicQuantizeLinear` takes its
    scale from the whole tensor, neighbours and padding included. MiniLM in dynamic INT8 moves by 20 % of the largest
    magnitude (cosine down to 0.98) between two batches of a server that does everything right (`drift`). In 2 it is
    known what is in each batch. In 3 Triton chooses, so two samples are asked at a time, over and over: what is in a
    batch is then the one, the other or both, and the answer is held to the nearer of two (`Trial.at_once`). Other
    quantised graphs (static, or of the weights alone) answer alike in every batch, and have one right answer.

    Triton's OpenVINO backend puts no requests together and cannot be asked for FP32 (`model_repository.config.build`).
    The server is held to the tolerance by the answers of this process in the precision that it computes in; how far
    those are from FP32, if it is that in which the model was measured, is held to `bf16_shift` (`arithmetic_shift`).

    Writes an artifact of kind `verification`: `verification.json`, whose content is the metadata too.

    Raises `StageError` if the server does not load the release (with the server's reason), changes its configuration,
    answers wrongly (with sample, output and difference), does not batch or computes in another precision than the model
    was measured in, with too much of a difference; `RequirementError` if this machine cannot
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
    runtime = RuntimeOptions(threads=int(release.metadata["threads"]))
    name = str(release.metadata["name"])
    scratch = out / "repository"
    try:
        version = Repository(scratch).publish(name, release.path, {}).version
        progress.update(f"starting Triton {environment.version} with {name}")
        with (
            # No grace at the end: every answer is in by then.
            Server(scratch, environment, models=[name], timeout_s=options.timeout_s, grace_s=0) as server,
            _with_its_reason(server),
            open_session(_as_served(model, described), runtime) as local,
            TritonSession(server.http_address, name, str(version), options.timeout_s) as http,
            TritonSession(server.grpc_address, name, str(version), options.timeout_s) as grpc,
        ):
            if found := changes(read(scratch / name / CONFIG), grpc.config()):
                raise StageError(f"the server has changed the configuration of {name!r}: {'; '.join(found)}")
            max_batch_size = int(release.metadata["max_batch_size"])
            request_size = max_batch_size or (_CLIENTS_BATCH if release.metadata["batched"] else 1)
            trial = Trial(
                local,
                chosen,
                samples,
                request_size,
                max_batch_size,
                options.concurrency,
                _depends_on_batch(described),
                progress,
            )
            tolerance = options.tolerances[described.precision]
            over_http = trial.one_by_one(http, Comparison("over HTTP", tolerance))
            over_grpc = trial.one_by_one(grpc, Comparison("over gRPC", tolerance))
            in_batches = trial.in_batches(grpc, Comparison("over gRPC, in one request", tolerance))
            at_once = Comparison("over gRPC, among other requests", tolerance)
            requests, executions, drift = trial.at_once(grpc, at_once, server, name)
            shift = _shift(trial, model, described, runtime, options.bf16_shift)
            metadata = {
                "server_version": environment.version,
                "ready_s": round(server.ready_s, 3),
                "samples": len(samples),
                "concurrency": options.concurrency,
                "max_batch_size": max_batch_size,
                "requests": requests,
                "executions": executions,
                "batching_ratio": round(requests / executions, 3),
                "tolerance": tolerance,
                "drift": drift,
                "arithmetic_shift": shift,
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


def _as_served(model: Artifact, described: Model) -> Artifact:
    """The model as Triton computes it: in OpenVINO in BF16, where the processor has it."""
    if described.runtime != "openvino":
        return model
    return replace(model, metadata={**model.metadata, "arithmetic": "bf16"})


def _shift(
    trial: Trial, model: Artifact, described: Model, runtime: RuntimeOptions, allowed: float
) -> dict[str, float]:
    """By output: how far the model as it is served is from the model as it was measured, if that is in FP32."""
    if described.runtime != "openvino" or described.arithmetic == "bf16":
        return {}
    with open_session(model, runtime) as measured:
        shift = trial.shift(measured)
    for output, off in shift.items():
        if not off <= allowed:
            raise StageError(
                "Triton's OpenVINO backend computes in BF16 on this processor, the model was measured in FP32, and "
                f"output {output!r} differs by {off:.3g} (allowed {allowed:.3g}): publish a variant that is measured "
                "in BF16, or one for ONNX Runtime"
            )
    return shift


def _depends_on_batch(model: Model) -> bool:
    if model.operators:
        return any(_DYNAMIC.search(operator) for operator in model.operators)
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
        if (reason := server.death(patience_s=1)) is not None:
            raise StageError(reason) from error
        raise


VERIFY = Stage(
    name="verify",
    revision=3,
    function=verify,
    libraries=("onnxruntime", "tritonclient"),
    preload=("onnxruntime",),
)
