"""The NVIDIA GPUs of this machine as its driver tells of them (NVML), and what they do while something is measured."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from stages.errors import RequirementError

__all__ = ["NEEDS_GPU", "Gpu", "GpuWatch", "gpus", "require_gpu"]

NEEDS_GPU = "needs an NVIDIA GPU"
"""Why a step was not run where there is none."""

_EVERY_S = 0.5


@dataclass(frozen=True)
class Gpu:
    """One GPU. `sm`: its compute capability, (9, 0) for an H100. `cuda`: the newest CUDA that the driver knows, "13.0".
    `memory_bytes`: all that it has."""

    index: int
    name: str
    sm: tuple[int, int]
    memory_bytes: int
    driver: str
    cuda: str

    @property
    def capability(self) -> str:
        """The compute capability as Triton writes it: "9.0"."""
        return f"{self.sm[0]}.{self.sm[1]}"


def gpus() -> list[Gpu]:
    """The GPUs that the driver sees, in its order; none where there is no driver or no NVML."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        driver, cuda = str(nvml.nvmlSystemGetDriverVersion()), int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [
            Gpu(
                index=index,
                name=str(nvml.nvmlDeviceGetName(handle)),
                sm=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
                memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                driver=driver,
                cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
            )
            for index, handle in enumerate(handles)
        ]


def require_gpu(what: str) -> Gpu:
    """The first GPU. Raises `RequirementError` saying that `what` needs one, where there is none."""
    found = gpus()
    if not found:
        raise RequirementError(
            f"{what} {NEEDS_GPU}, and the driver of this machine shows none (`optimize doctor` tells more)"
        )
    return found[0]


@dataclass
class GpuWatch:
    """Samples the clocks, the power and the temperature of the first GPU, twice a second, while it is entered.

    Nothing is locked or set: what the GPU did is recorded, so that a figure taken at a lowered clock can be told.
    """

    clocks_mhz: list[int] = field(default_factory=list)
    power_w: list[float] = field(default_factory=list)
    temperature_c: list[int] = field(default_factory=list)
    throttled: set[str] = field(default_factory=set)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        assert self._thread is not None
        self._thread.join()

    def figures(self) -> dict[str, Any]:
        """Least, median and most of each, and the reasons that the driver gave for a lowered clock."""
        return {
            "sm_clock_mhz": _spread(self.clocks_mhz),
            "power_w": _spread(self.power_w),
            "temperature_c": _spread(self.temperature_c),
            "throttled": sorted(self.throttled),
        }

    def _watch(self) -> None:
        with _nvml() as nvml:
            if nvml is None:
                return
            handle = nvml.nvmlDeviceGetHandleByIndex(0)
            while True:
                self._sample(nvml, handle)
                if self._end.wait(_EVERY_S):
                    return

    def _sample(self, nvml: Any, handle: Any) -> None:
        # Not every board tells everything (a slice of a GPU has no power of its own).
        for kept, ask in (
            (self.clocks_mhz, lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            (self.power_w, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            (self.temperature_c, lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
        ):
            value = _or_none(nvml, ask)
            if value is not None:
                kept.append(value)
        reasons = _or_none(nvml, lambda: int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))) or 0
        self.throttled |= {name for name, bit in _REASONS.items() if reasons & bit}


_REASONS = {
    "power cap": 0x4,
    "hardware slowdown": 0x8,
    "software thermal slowdown": 0x20,
    "hardware thermal slowdown": 0x40,
    "hardware power brake": 0x80,
}
"""Reasons for a clock below the highest that mean that a figure is too low (`nvmlClocksEventReasons` in nvml.h)."""


def _or_none(nvml: Any, ask: Any) -> Any:
    try:
        return ask()
    except nvml.NVMLError_NotSupported:
        return None


def _spread(values: list[int] | list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"least": float(min(values)), "median": float(np.median(values)), "most": float(max(values))}


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML, opened; None where it is not installed or finds no driver."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()
