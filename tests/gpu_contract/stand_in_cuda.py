"""A stand-in for CUDA's runtime (`cuda.bindings.runtime`): a device whose memory is this machine's.

What is put on its stream is done at once or, while the stream is captured, when the graph is launched. It counts what
is held, and refuses what CUDA refuses: memory that was not allocated, and anything but work on a captured stream.
"""

from __future__ import annotations

import ctypes
import enum
import types
from collections.abc import Callable
from typing import Any

import numpy as np


class Device:
    """What is held on the device, by kind. `refuses`: names of functions that fail."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.held: dict[str, set[int]] = {"stream": set(), "event": set(), "graph": set(), "launchable": set()}
        self.refuses: set[str] = set()
        self.calls: list[str] = []
        self.captured: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = 1000

    def make(self, kind: str) -> int:
        self._next += 1
        self.held[kind].add(self._next)
        return self._next

    def leftovers(self) -> dict[str, int]:
        """How many of each are still held."""
        counts = {kind: len(held) for kind, held in self.held.items()} | {"memory": len(self.memory)}
        return {kind: count for kind, count in counts.items() if count}


_devices: list[Device] = []


def on_stream(work: Callable[[], None], captures: bool) -> bool:
    """Do `work` on the newest device's stream. False: the stream is captured, and `work` cannot be."""
    device = _devices[-1]
    if device.captured is None:
        work()
    elif captures:
        device.captured.append(work)
    else:
        return False
    return True


def values(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """The 32-bit floats at `address`."""
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


class _Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900


def runtime(device: Device) -> Any:
    """A module `cuda.bindings.runtime` with that device."""
    _devices.append(device)
    module = types.ModuleType("cuda.bindings.runtime")
    module.cudaError_t = _Error  # type: ignore[attr-defined]
    module.cudaMemcpyKind = types.SimpleNamespace(  # type: ignore[attr-defined]
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2
    )
    module.cudaStreamCaptureMode = types.SimpleNamespace(  # type: ignore[attr-defined]
        cudaStreamCaptureModeThreadLocal=1
    )

    def function(answer: Callable[..., Any]) -> None:
        def called(*arguments: Any) -> tuple[Any, ...]:
            device.calls.append(answer.__name__)
            if answer.__name__ in device.refuses:
                return _Error.cudaErrorMemoryAllocation, None
            given = answer(*arguments)
            if isinstance(given, _Error):
                return given, None
            return (_Error.cudaSuccess,) if given is None else (_Error.cudaSuccess, given)

        called.__name__ = answer.__name__
        called.parameters = answer.__code__.co_varnames[: answer.__code__.co_argcount]  # type: ignore[attr-defined]
        setattr(module, answer.__name__, called)

    def cudaGetErrorString(error: Any) -> Any:
        return error.name.encode()

    def cudaGetLastError() -> None: ...

    def cudaDeviceGetPCIBusId(length: int, device: int) -> bytes:
        return b"0000:65:00.0\0".ljust(length)

    def cudaStreamCreate() -> int:
        return device.make("stream")

    def cudaStreamDestroy(stream: int) -> None:
        device.held["stream"].remove(stream)

    def cudaStreamSynchronize(stream: int) -> Any:
        return _Error.cudaErrorStreamCaptureUnsupported if device.captured is not None else None

    def cudaMalloc(size: int) -> int:
        block = ctypes.create_string_buffer(size)
        device.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cudaFree(devPtr: int) -> None:
        del device.memory[devPtr]

    def cudaMemcpyAsync(dst: int, src: int, count: int, kind: int, stream: int) -> Any:
        on_device = dst if kind == 1 else src
        inside = [at for at, block in device.memory.items() if at <= on_device and on_device + count <= at + len(block)]
        if not inside:
            return _Error.cudaErrorMemoryAllocation
        ctypes.memmove(dst, src, count)
        return None

    def cudaEventCreate() -> int:
        return device.make("event")

    def cudaEventDestroy(event: int) -> None:
        device.held["event"].remove(event)

    def cudaEventRecord(event: int, stream: int) -> None: ...

    def cudaEventElapsedTime(start: int, end: int) -> float:
        return 0.25

    def cudaStreamBeginCapture(stream: int, mode: Any) -> None:
        device.captured = []

    def cudaStreamEndCapture(stream: int) -> Any:
        work, device.captured = device.captured, None
        if not work:
            return _Error.cudaErrorStreamCaptureUnsupported
        graph = device.make("graph")
        device.graphs[graph] = work
        return graph

    def cudaGraphInstantiate(graph: int, flags: int) -> int:
        launchable = device.make("launchable")
        device.graphs[launchable] = device.graphs[graph]
        return launchable

    def cudaGraphLaunch(graphExec: int, stream: int) -> None:
        for work in device.graphs[graphExec]:
            work()

    def cudaGraphDestroy(graph: int) -> None:
        device.held["graph"].remove(graph)

    def cudaGraphExecDestroy(graphExec: int) -> None:
        device.held["launchable"].remove(graphExec)

    for each in [value for name, value in locals().items() if name.startswith("cuda")]:
        function(each)
    return module


def functions() -> dict[str, tuple[str, ...]]:
    """Every function of the stand-in, with its parameters."""
    module = runtime(Device())
    return {name: value.parameters for name, value in vars(module).items() if hasattr(value, "parameters")}
