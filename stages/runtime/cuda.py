"""Memory, streams and events of a CUDA device, as far as the runtimes on a GPU need them (NVIDIA's `cuda-bindings`)."""

from __future__ import annotations

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
        self.call(self._cuda.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, kind, self.stream)

    def to_host(self, array: NDArray[Any], address: int) -> None:
        """Fill a contiguous array, in the order of the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call(self._cuda.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, kind, self.stream)

    def wait(self) -> None:
        """Wait until all that was put on the stream is done."""
        self.call(self._cuda.cudaStreamSynchronize, self.stream)

    def event(self) -> Any:
        return self.call(self._cuda.cudaEventCreate)

    def record(self, event: Any) -> None:
        self.call(self._cuda.cudaEventRecord, event, self.stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self.call(self._cuda.cudaEventElapsedTime, start, end))

    def begin_capture(self) -> None:
        """What is put on the stream from here on is noted for a CUDA graph, not done."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call(self._cuda.cudaStreamBeginCapture, self.stream, mode)

    def end_capture(self) -> Any:
        """The CUDA graph, ready to be launched."""
        graph = self.call(self._cuda.cudaStreamEndCapture, self.stream)
        return self.call(self._cuda.cudaGraphInstantiate, graph, 0)

    def launch(self, graph: Any) -> None:
        self.call(self._cuda.cudaGraphLaunch, graph, self.stream)

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
                self._device.free(address)
            address = self._device.allocate(size_bytes)
            self._held[name] = (address, size_bytes)
        return address

    def close(self) -> None:
        for address, _ in self._held.values():
            self._device.free(address)
        self._held.clear()


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
