"""The machine that a measurement was taken on: what of it can change a figure, and a digest of that."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import NotRequired, TypedDict

from stages.artifact import canonical_json
from stages.gpu import gpus

__all__ = ["Host", "fingerprint_digest", "host_fingerprint", "usable_cores", "versions"]

# The instruction sets that decide how fast, and for 8-bit products also how exactly, a CPU computes.
_INSTRUCTION_SETS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16", "amx_fp16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

_CGROUP = Path("/sys/fs/cgroup")
_GIB = 2**30


class Host(TypedDict):
    """What `host_fingerprint` returns. `cpu_quota` is in cores; null: no limit is set. `gpus`: name, compute capability
    and driver of each NVIDIA GPU, only where there are any."""

    cpu: str
    instruction_sets: list[str]
    cores: int
    cpu_quota: float | None
    memory_gib: float
    system: str
    kernel: str
    python: str
    gpus: NotRequired[list[str]]


def host_fingerprint() -> Host:
    """Describe this machine as this process may use it. The same machine gives the same answer at any time.

    Memory is rounded to a tenth of a GiB, because what a kernel reports as its total differs by some pages from boot
    to boot.
    """
    name, flags = _processor()
    found = [f"{gpu.name}, compute capability {gpu.capability}, driver {gpu.driver}" for gpu in gpus()]
    host = Host(
        cpu=name,
        instruction_sets=[flag for flag in _INSTRUCTION_SETS if flag in flags],
        cores=len(os.sched_getaffinity(0)),
        cpu_quota=_cpu_quota(),
        memory_gib=round(_memory_bytes() / _GIB, 1),
        system=f"{platform.system()} {platform.machine()}",
        kernel=platform.release(),
        python=platform.python_version(),
    )
    return {**host, "gpus": found} if found else host


def fingerprint_digest(host: Host) -> str:
    """The SHA-256 of a fingerprint: measurements are kept under it."""
    return hashlib.sha256(canonical_json(host).encode()).hexdigest()


def usable_cores() -> int:
    """How many threads can run at once in this process: its CPU affinity, or the container's quota if that is less."""
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of those of `distributions` that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> tuple[str, set[str]]:
    name, flags = "", set[str]()
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name" and not name:
            name = value
        if key in ("flags", "Features") and not flags:
            flags = set(value.split())
    return name or platform.processor() or platform.machine(), flags


def _cpu_quota() -> float | None:
    """The container's limit in cores: cgroup v2's `cpu.max`, or v1's quota and period."""
    limit = _lines(_CGROUP / "cpu.max")
    if limit:
        quota, period = limit[0].split()
    else:
        v1 = _CGROUP / "cpu"
        quota = "".join(_lines(v1 / "cpu.cfs_quota_us")) or "-1"
        period = "".join(_lines(v1 / "cpu.cfs_period_us")) or "100000"
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _memory_bytes() -> int:
    """The machine's memory, or the container's limit if that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in (_CGROUP / "memory.max", _CGROUP / "memory" / "memory.limit_in_bytes"):
        limit = "".join(_lines(file))
        if limit.isdigit():
            total = min(total, int(limit))
    return total


def _lines(file: Path) -> list[str]:
    """The lines of a file of the kernel's; none where this machine does not have it."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
