"""The NVIDIA GPUs of this machine as its driver tells of them (NVML), and what they do while something is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
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
_BUS_ID_LENGTH = 16
"""`0000:65:00.0` and the byte behind it, as CUDA writes them."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. `sm`: its compute capability, (9, 0) for an H100. `cuda`: the newest CUDA that the driver knows, "13.0".
    `memory_bytes`: all that it has; 0 where the driver does not tell (a GPU in slices, seen from a container)."""

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
        handles = _answer(nvml, lambda: [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())])
        return [_gpu(nvml, index, handle) for index, handle in enumerate(handles or [])]


def require_gpu(what: str) -> Gpu:
    """The GPU that CUDA uses: its device 0. Raises `RequirementError` with `what` needs one, where there is none.

    CUDA has an order of its own (the fastest first, or that of `CUDA_VISIBLE_DEVICES`); NVML numbers by the bus.
    """
    with _nvml() as nvml:
        handle = None if nvml is None else _used_by_cuda(nvml)
        if handle is None:
            raise RequirementError(
                f"{what} {NEEDS_GPU}, and the driver of this machine shows none (`optimize doctor` tells more)"
            )
        return _gpu(nvml, int(nvml.nvmlDeviceGetIndex(handle)), handle)


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    return Gpu(
        index=index,
        name=str(nvml.nvmlDeviceGetName(handle)),
        sm=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        memory_bytes=int(_answer(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total) or 0),
        driver=str(nvml.nvmlSystemGetDriverVersion()),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
    )


def _used_by_cuda(nvml: Any) -> Any:
    """NVML's handle of CUDA's device 0; that of its own first where CUDA cannot be asked, None where there is none."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        status, bus = None, None
    else:
        status, bus = runtime.cudaDeviceGetPCIBusId(_BUS_ID_LENGTH, 0)
    if bus and status == runtime.cudaError_t.cudaSuccess:
        where = bus.split(b"\0")[0]
        if (handle := _answer(nvml, lambda: nvml.nvmlDeviceGetHandleByPciBusId(where))) is not None:
            return handle
    return _answer(nvml, lambda: nvml.nvmlDeviceGetHandleByIndex(0))


@dataclass
class GpuWatch:
    """Samples the clocks, the power and the temperature of the GPU that CUDA uses, twice a second, while it is entered.

    Nothing is locked or set: what the GPU did is recorded, so that a figure taken at a lowered clock can be told. What
    the driver does not tell, or not to this process, is left out.
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
            handle = _used_by_cuda(nvml)
            while handle is not None:
                self._sample(nvml, handle)
                if self._end.wait(_EVERY_S):
                    return

    def _sample(self, nvml: Any, handle: Any) -> None:
        for kept, ask in (
            (self.clocks_mhz, lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            (self.power_w, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            (self.temperature_c, lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
        ):
            value = _answer(nvml, ask)
            if value is not None:
                kept.append(value)
        reasons = _answer(nvml, lambda: int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))) or 0
        self.throttled |= {name for name, bit in _REASONS.items() if reasons & bit}


_REASONS = {
    "power cap": 0x4,
    "hardware slowdown": 0x8,
    "software thermal slowdown": 0x20,
    "hardware thermal slowdown": 0x40,
    "hardware power brake": 0x80,
}
"""Reasons for a clock below the highest that mean that a figure is too low (`nvmlClocksEventReasons` in nvml.h)."""


def _answer(nvml: Any, ask: Callable[[], Any]) -> Any:
    """None where NVML gives no answer: a slice of a GPU has no power of its own, a container may not ask for all, and
    an older driver lacks a function."""
    try:
        return ask()
    except nvml.NVMLError:
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
