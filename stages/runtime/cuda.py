"""Memory, streams and events of a CUDA device, as far as the runtimes on a GPU need them (NVIDIA's `cuda-bindings`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from stages.errors import RequirementError, StageError

__all__ = ["Buffers", "Device", "Stopwatch"]


class Device:
    """The first CUDA device and one stream on it. Every method raises `StageError` with CUDA's own words.

    Raises `RequirementError` where `cuda-bindings` is not installed or there is no device.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise RequirementError(
                "cuda-bindings is not installed, which sessions on a GPU need: `pip install 'optimize-pipeline[gpu]'`"
            ) from error
        self._cuda: Any = runtime
        try:
            self.stream: Any = self.call(runtime.cudaStreamCreate)
        except StageError as error:
            raise RequirementError(f"this machine has no CUDA device that can be used: {error}") from error

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime and return what it gives beside its status."""
        status, *given = function(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            _, words = self._cuda.cudaGetErrorString(status)
            raise StageError(f"{function.__name__}: {words.decode() if isinstance(words, bytes) else words}")
        return given[0] if len(given) == 1 else None

    def allocate(self, size_bytes: int) -> int:
        return int(self.call(self._cuda.cudaMalloc, max(size_bytes, 1)))

    def free(self, address: int) -> None:
        self.call(self._cuda.cudaFree, address)

    def to_device(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array, in the order of the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, kind)

    def to_host(self, array: NDArray[Any], address: int) -> None:
        """Fill a contiguous array, in the order of the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, array.nbytes, kind)

    def _copy(self, to: int, source: int, size_bytes: int, kind: Any) -> None:
        if size_bytes:  # an empty tensor need not have an address
            self.call(self._cuda.cudaMemcpyAsync, to, source, size_bytes, kind, self.stream)

    def wait(self) -> None:
        """Wait until all that was put on the stream is done."""
        self.call(self._cuda.cudaStreamSynchronize, self.stream)

    def event(self) -> Any:
        return self.call(self._cuda.cudaEventCreate)

    def record(self, event: Any) -> None:
        self.call(self._cuda.cudaEventRecord, event, self.stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self.call(self._cuda.cudaEventElapsedTime, start, end))

    def drop_event(self, event: Any) -> None:
        self.call(self._cuda.cudaEventDestroy, event)

    def captured(self, enqueue: Callable[[], None]) -> Any | None:
        """What `enqueue` puts on the stream, noted as a CUDA graph that can be launched, and not done.

        None where it cannot be captured; the stream is then as it was before.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call(self._cuda.cudaStreamBeginCapture, self.stream, mode)
        graph = None
        try:
            try:
                enqueue()
            finally:  # whatever happened: a stream that is left capturing takes nothing else
                graph = self.call(self._cuda.cudaStreamEndCapture, self.stream)
            return self.call(self._cuda.cudaGraphInstantiate, graph, 0)
        except StageError:
            self._cuda.cudaGetLastError()  # else the next call would be told of this error
            return None
        finally:
            if graph is not None:
                self.call(self._cuda.cudaGraphDestroy, graph)

    def launch(self, graph: Any) -> None:
        self.call(self._cuda.cudaGraphLaunch, graph, self.stream)

    def drop_graph(self, graph: Any) -> None:
        self.call(self._cuda.cudaGraphExecDestroy, graph)

    def close(self) -> None:
        self.call(self._cuda.cudaStreamDestroy, self.stream)


class Buffers:
    """Device memory by the name of a tensor. A buffer only grows, so that its address is the same for equal sizes."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, tuple[int, int]] = {}

    def address(self, name: str, size_bytes: int) -> int:
        """Where at least so many bytes are held for `name`."""
        address, held = self._held.get(name, (0, -1))
        if held < size_bytes:
            if held >= 0:
                self._device.wait()
                del self._held[name]
                self._device.free(address)
            address = self._device.allocate(size_bytes)
            self._held[name] = (address, size_bytes)
        return address

    def close(self) -> None:
        held, self._held = self._held, {}
        for address, _ in held.values():
            self._device.free(address)


class Stopwatch:
    """The device's own times between four marks on its stream: before the inputs go over, after, when the answer is
    computed, and when it is back."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._events = [device.event() for _ in range(4)]

    def mark(self, position: int) -> None:
        self._device.record(self._events[position])

    def read_ms(self) -> tuple[float, float, float]:
        """Host to device, computing, device to host (`stages.runtime.DEVICE_TIMES`), once all is done."""
        first, second, third, fourth = self._events
        elapsed = self._device.elapsed_ms
        return elapsed(first, second), elapsed(second, third), elapsed(third, fourth)

    def close(self) -> None:
        events, self._events = self._events, []
        for event in events:
            self._device.drop_event(event)
