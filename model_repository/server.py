"""The real `tritonserver` on this machine, as a context manager that leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from model_repository import supervisor
from model_repository.environment import ServerEnvironment
from model_repository.errors import ServerError
from model_repository.metrics import Metrics

__all__ = ["Server", "serve"]

_CACHE_BYTES = 64 * 1024 * 1024
_ATTEMPTS = 5
_LOG_LINE = re.compile(r"[EF]\d{4} \S+ \d+ \S+\] (.*)")
_STRAY_LINE = re.compile(
    r"\[libprotobuf ERROR [^\]]*\] (.*)|(?:error: |terminate called)(.*)|(.*error while loading.*)"
)
_HARMLESS = ("CudaDriverHelper", "NVML")
_PORT_TAKEN = re.compile(r"already in use|failed to (?:bind|start)|bind on", re.IGNORECASE)


class Server:
    """A running `tritonserver` over one model repository.

    `models` loads these only (default: all of the repository). A port of 0 takes a free one. `log` receives the
    server's own output. With `exit_on_error` a model that does not load ends the start with a `ServerError` that quotes
    the server's reason; without it the server runs with the models that did load.

    Entering starts the server and returns when it is ready; leaving stops it. Its processes and its shared memory go
    when this process ends in whatever way (see `supervisor`). One thread starts and stops; any may read the rest.
    """

    def __init__(
        self,
        repository: Path,
        environment: ServerEnvironment,
        *,
        models: Sequence[str] | None = None,
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        exit_on_error: bool = True,
        log: Path | None = None,
        timeout_s: float = 300,
        grace_s: float = 10,
    ) -> None:
        self._repository = repository
        self._environment = environment
        self._models = models
        self._host = host
        self._wanted = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self._ports: dict[str, int] = {}
        self._exit_on_error = exit_on_error
        self._log_path = log
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._prefix = ""
        self._identity = f"optimize-{secrets.token_hex(8)}"
        self.pid = 0
        """The number of the `tritonserver` process, 0 while none runs."""
        self.ready_s = 0.0
        """Seconds from the start to the server's being ready, models loaded and warmed up."""

    @property
    def http_address(self) -> str:
        """`http://host:port`"""
        return f"http://{self._reachable}:{self._ports['http']}"

    @property
    def grpc_address(self) -> str:
        """`grpc://host:port`"""
        return f"grpc://{self._reachable}:{self._ports['grpc']}"

    @property
    def metrics_address(self) -> str:
        """`http://host:port/metrics`"""
        return f"http://{self._reachable}:{self._ports['metrics']}/metrics"

    @property
    def _reachable(self) -> str:
        return "127.0.0.1" if self._host == "0.0.0.0" else self._host  # noqa: S104 - read, not bound

    def start(self) -> None:
        """Start the server and wait until it is ready.

        Raises `ServerError`: a port is taken, a model does not load, the server dies or is not ready in time.
        """
        if self._process is not None:
            raise ServerError("the server runs already")
        if not self._repository.is_dir():
            raise ServerError(f"there is no model repository {self._repository}")
        for attempt in range(1, _ATTEMPTS + 1):
            self._ports = _choose_ports(self._host, self._wanted)
            try:
                self._launch()
                self._await_ready()
                return
            except ServerError as error:
                self.stop()
                # Between our choosing a free port and the server's taking it somebody else may have been quicker.
                lost_race = _PORT_TAKEN.search(str(error)) and 0 in self._wanted.values()
                if attempt == _ATTEMPTS or not lost_race:
                    raise
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End the server and wait until nothing is left of it. Does nothing if it does not run."""
        process, self._process, self.pid = self._process, None, 0
        if process is not None:
            assert process.stdin is not None
            try:
                process.stdin.write(b"stop\n")
                process.stdin.close()
            except BrokenPipeError:  # it has ended by itself
                pass
            try:
                process.wait(self._grace_s + 10)
            except subprocess.TimeoutExpired:
                process.kill()  # and with it, by the kernel, the server
                process.wait()
            if self._prefix:
                supervisor.remove_regions(self._prefix)  # where the supervisor was killed before it could
        if self._log is not None:
            self._log.close()
            self._log = None

    def wait(self) -> None:
        """Block until the server ends by itself, which is an error: raises `ServerError` with its reason."""
        assert self._process is not None, "the server does not run"
        self._process.wait()
        raise ServerError(self.death())

    def death(self, patience_s: float = 0) -> str | None:
        """How and why a server that was started has ended by itself; None if it has not, within `patience_s`."""
        if self._process is None:
            return None
        try:
            code = self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return None
        return f"the Triton server ended ({_ending(code)}): {self._reason()}"

    def metrics(self) -> Metrics:
        """What the server has counted up to now."""
        status, body = self._get("metrics", "/metrics")
        if status != http.client.OK:
            raise ServerError(f"{self.metrics_address} answered {status}")
        return Metrics.parse(body)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        environment, ports = self._environment, self._ports
        command = [
            str(environment.tritonserver),
            f"--model-repository={self._repository.resolve()}",
            f"--backend-directory={environment.backends}",
            f"--cache-directory={environment.caches}",
            f"--cache-config=local,size={_CACHE_BYTES}",
            f"--exit-on-error={str(self._exit_on_error).lower()}",
            f"--exit-timeout-secs={max(1, int(self._grace_s) - 2)}",
            "--pinned-memory-pool-byte-size=0",
            f"--id={self._identity}",
            f"--http-address={self._host}",
            f"--http-port={ports['http']}",
            f"--grpc-address={self._host}",
            f"--grpc-port={ports['grpc']}",
            f"--metrics-address={self._host}",
            f"--metrics-port={ports['metrics']}",
        ]
        if self._models is not None:
            command += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in self._models)]
        return command

    def _launch(self) -> None:
        """Start the supervisor, and through it the server."""
        if self._log_path is not None:
            self._log = self._log_path.open("w+b")
        else:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server; nameless, so it goes with us
        program = [str(self._environment.python), "-I", "-S", str(Path(supervisor.__file__))]
        self._process = subprocess.Popen(
            [*program, str(os.getpid()), str(self._grace_s), *self._command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment.variables(os.environ),
            cwd=self._environment.path,  # the stub looks for modules there first: none of the caller's may be found
            start_new_session=True,  # Ctrl-C in a terminal is for us; the server ends when we say so
        )
        assert self._process.stdout is not None
        with self._process.stdout as said:
            words = said.readline().split()
        if len(words) != 2:
            raise ServerError(f"the Triton server cannot be started: {self._reason()}")
        self.pid, self._prefix = int(words[0]), words[1].decode()

    def _await_ready(self) -> None:
        assert self._process is not None
        started = time.monotonic()
        path = "/v2/health/ready" if self._exit_on_error else "/v2/health/live"
        while True:
            code = self._process.poll()
            if code is not None:
                raise ServerError(f"the Triton server did not start ({_ending(code)}): {self._reason()}")
            try:
                if self._get("http", path)[0] == http.client.OK and self._is_ours():
                    self.ready_s = time.monotonic() - started
                    return
            except (OSError, ValueError, http.client.HTTPException):
                pass  # it opens its ports when its models are loaded; until then anybody may have this one
            if time.monotonic() - started > self._timeout_s:
                raise ServerError(f"the Triton server was not ready after {self._timeout_s:g} s: {self._reason()}")
            time.sleep(0.05)

    def _is_ours(self) -> bool:
        """Whether the server that answers is the one we started, with its last port (the metrics') open too."""
        about = json.loads(self._get("http", "/v2")[1])
        return about["name"] == self._identity and self._get("metrics", "/metrics")[0] == http.client.OK

    def _get(self, service: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._reachable, self._ports[service], timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def _reason(self) -> str:
        """The lines of the server's log that say what went wrong, without its tables and traces."""
        assert self._log is not None
        text = os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")
        return "; ".join(_decisive(text)) or "its log does not say why"


def _decisive(log: str) -> list[str]:
    found: list[str] = []
    fallback: list[str] = []
    for line in log.splitlines():
        logged, stray = _LOG_LINE.match(line), _STRAY_LINE.match(line)
        if logged and not any(word in line for word in _HARMLESS):
            # A model's Python exception comes quoted, with its call stack behind the first blank line.
            found.append(logged[1].strip('"').split("\\n\\nAt:")[0].replace('\\"', '"').replace("\\'", "'"))
        elif stray:
            message = next(group for group in stray.groups() if group is not None)
            (fallback if line.startswith("error: ") else found).append(message.strip())
    # The same reason is logged by every layer that it passes; the outermost says it with the model's name.
    reasons = [line.rpartition("instance: ")[2] for line in found]
    kept = [
        line
        for position, line in enumerate(found)
        if not any(reasons[position] in other for other in found[position + 1 :])
    ]
    return kept or fallback


def _ending(code: int) -> str:
    """An exit status in words: 128 + a signal is how the server ended, minus a signal how its supervisor did."""
    number = -code if code < 0 else code - 128
    return f"killed by {signal.Signals(number).name}" if number > 0 else f"exit status {code}"


def _choose_ports(host: str, wanted: dict[str, int]) -> dict[str, int]:
    """A port for each service: the one asked for if it is free, any free one for 0."""
    fixed = [port for port in wanted.values() if port]
    if len(set(fixed)) != len(fixed):
        raise ServerError(f"two services cannot share a port: {wanted}")
    chosen = {}
    with ExitStack() as held:
        # Fixed ones first, so that none of them is handed out as a free one.
        for service, port in sorted(wanted.items(), key=lambda item: -item[1]):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            probe = held.enter_context(socket.socket(family))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ServerError(
                    f"the Triton server's {service} port {port} on {host} cannot be used ({error.strerror}): "
                    f"choose another, or 0 for a free one"
                ) from error
            chosen[service] = probe.getsockname()[1]
    return chosen


def serve(repository: Path, environment: ServerEnvironment, ready: Callable[[Server], None], **options: Any) -> None:
    """Serve `repository` until Ctrl-C, SIGTERM or the closing of the terminal, then clean up and return.

    `ready` is called once with the running server (its addresses, its log). `options` are those of `Server`.
    Raises `ServerError` if the server does not start, or dies. For the main thread only: it takes over the signals.
    """
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # started with nohup
        before[number] = signal.signal(number, signal.default_int_handler)
    try:
        with Server(repository, environment, **options) as server:
            ready(server)
            server.wait()
    except KeyboardInterrupt:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
