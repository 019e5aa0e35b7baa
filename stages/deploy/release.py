"""What a deployment has to know of a release: what it needs to run, and how fast it was when it was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repository import Repository
from model_repository.config import read
from model_repository.layout import CONFIG
from stages.errors import InputError

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

__all__ = ["Baseline", "Deployed", "read_deployed", "split_version"]

_MIB = 1024 * 1024
_SERVER_BYTES = 1024 * _MIB
"""For the server itself, beside the model. A reserve, not a measurement."""
_UNMEASURED = 3
"""How many times its files' size a model is taken to need where nobody measured it."""
_GPU_BACKENDS = ("tensorrt", "vllm", "tensorrtllm")


@dataclass(frozen=True)
class Baseline:
    """Latencies of the release as they were recorded when it was made: one call of the first batch size (ms)."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Deployed:
    """One version. `memory_bytes`: what a server of it is given; `memory_measured`: whether that comes from a
    measurement. `gpus`: 0 if it runs without. `baseline` and `cold_start_ms` are null where nothing was recorded."""

    model: str
    version: int
    digest: str | None
    variant: str | None
    backend: str
    gpus: int
    memory_bytes: int
    memory_measured: bool
    baseline: Baseline | None
    cold_start_ms: float | None


def split_version(text: str) -> tuple[str, int | None]:
    """`MODEL` or `MODEL@VERSION`. Raises `InputError` if the version is no number."""
    model, mark, version = text.partition("@")
    if mark and not re.fullmatch(r"[1-9][0-9]*", version):
        raise InputError(f"{text!r}: write MODEL, or MODEL@VERSION with the number of a version")
    return model, int(version) if mark else None


def read_deployed(repository: Repository, model: str, version: int | None = None) -> Deployed:
    """A version of a model, by default the current one. Raises `RepositoryError` if there is none."""
    folder = repository.directory(model, version)
    info = next(info for info in repository.versions(model) if str(info.version) == folder.name)
    config = read(folder / CONFIG if (folder / CONFIG).is_file() else folder.parent / CONFIG)
    measured: Mapping[str, Any] = info.provenance.get("measured") or {}
    peak, latency = measured.get("peak_memory_bytes"), measured.get("latency_ms")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Deployed(
        model=model,
        version=info.version,
        digest=info.digest,
        variant=(info.provenance.get("variant") or {}).get("name"),
        backend=config.backend or config.platform,
        gpus=_gpus(config, folder),
        memory_bytes=_rounded(_SERVER_BYTES + (peak or _UNMEASURED * size)),
        memory_measured=peak is not None,
        baseline=None if not latency else Baseline(latency["p50"], latency["p95"], latency["p99"]),
        cold_start_ms=measured.get("cold_start_ms"),
    )


def _gpus(config: ModelConfig, folder: Path) -> int:
    """How many GPUs a server of this needs."""
    arguments = folder / "model.json"
    if config.backend == "vllm" and arguments.is_file():
        return int(json.loads(arguments.read_text()).get("tensor_parallel_size", 1))
    kinds = {group.Kind.Name(group.kind) for group in config.instance_group}
    named = {gpu for group in config.instance_group for gpu in group.gpus}
    if config.backend in _GPU_BACKENDS or "KIND_GPU" in kinds:
        return max(1, len(named))
    return 0


def _rounded(size: int) -> int:
    step = 64 * _MIB
    return -(-size // step) * step
