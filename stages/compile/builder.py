"""TensorRT's builder: one way for 10.12 and later and for 11."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stages.compile.options import CompileOptions
from stages.compile.profiles import Profile
from stages.errors import InputError, RequirementError, StageError
from stages.progress import Progress

__all__ = ["Built", "begin", "build_engine", "logger", "parser_errors"]

_MIB = 2**20


@dataclass(frozen=True)
class Built:
    """A serialised engine, the timing cache as it is now, and what TensorRT warned of."""

    plan: bytes
    cache: bytes
    warnings: tuple[str, ...]


def build_engine(
    tensorrt: Any, graph: Path, profiles: Sequence[Profile], options: CompileOptions, timings: bytes, progress: Progress
) -> Built:
    """Build an engine of the ONNX file `graph`, strongly typed: it computes in the dtypes of the graph.

    Ctrl-C ends the build at its next step, and is raised then. Raises `StageError` if the parser refuses an operator
    (named with its node) or no engine comes of it, with what TensorRT said, and `RequirementError` where it cannot use
    the GPU.
    """
    log = logger(tensorrt)
    builder = begin(tensorrt, tensorrt.Builder, log)
    # Bit 0 in TensorRT 11, which knows nothing else, and bit 1 in 10.
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, log)
    progress.update("reading the graph")
    if not parser.parse_from_file(str(graph)):
        raise StageError(f"TensorRT's parser refuses {graph.name}: {parser_errors(parser)}")
    config = builder.create_builder_config()
    _configure(tensorrt, config, parser, options)
    for profile in profiles:
        _add_profile(builder, config, profile)
    _set_timings(config, timings)
    log.forget()  # what it says of a cache that it does not take is not why a build fails
    stop = threading.Event()
    monitor = _monitor(tensorrt, progress, stop)
    config.progress_monitor = monitor
    plan = _interruptible(lambda: builder.build_serialized_network(network, config), stop)
    if monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        raise StageError(f"TensorRT built no engine: {log.said() or 'it gave no reason'}")
    return Built(bytes(plan), bytes(config.get_timing_cache().serialize()), tuple(log.warnings))


def parser_errors(parser: Any) -> str:
    """What the parser refused: operator, name and number of the node, and why."""
    told = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node, code = f"node {error.node()}", str(error.code()).rsplit(".", 1)[-1]
        named = " ".join(filter(None, (error.node_operator(), repr(error.node_name()) if error.node_name() else "")))
        told.append(f"{named} ({node}): {error.desc()} [{code}]" if named else f"{error.desc()} [{code}]")
    return "; ".join(told) or "it gave no reason"


def begin(tensorrt: Any, kind: Callable[[Any], Any], log: Any) -> Any:
    """A `tensorrt.Builder` or `tensorrt.Runtime`. Raises `RequirementError` where TensorRT cannot use the GPU."""
    try:
        return kind(log)
    except TypeError as error:  # so its Python package says that the library gave none
        raise RequirementError(
            f"TensorRT {tensorrt.__version__} cannot begin; is the driver new enough for its CUDA? It says: "
            f"{log.said() or error}"
        ) from error


def logger(tensorrt: Any) -> Any:
    """A `tensorrt.ILogger` that keeps errors and warnings. `said()` gives the errors, or else the last warnings.

    There is one in a process, emptied here: TensorRT holds on to the first that it is given, and complains of others.
    """
    log = _log(tensorrt)
    log.forget()
    return log


@cache
def _log(tensorrt: Any) -> Any:
    class Log(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.forget()

        def log(self, severity: Any, msg: str) -> None:
            levels = tensorrt.ILogger.Severity
            if severity in (levels.ERROR, levels.INTERNAL_ERROR):
                self.errors.append(msg)
            elif severity == levels.WARNING:
                self.warnings.append(msg)

        def said(self) -> str:
            return "; ".join(self.errors or self.warnings[-3:])

        def forget(self) -> None:
            self.errors: list[str] = []
            self.warnings: list[str] = []

    log = Log()
    # The parser makes plugins of some operators (ScatterElements, RoiAlign), and an engine with one looks for it too.
    # They are registered once, with the logger that stays.
    tensorrt.init_libnvinfer_plugins(log, "")
    return log


def _configure(tensorrt: Any, config: Any, parser: Any, options: CompileOptions) -> None:
    flags = tensorrt.BuilderFlag
    # Without it the inspector could not say what the layers compute in.
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = options.optimisation_level
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    if not options.tf32:
        config.clear_flag(flags.TF32)
    for wanted, flag in (
        (options.weight_streaming, flags.WEIGHT_STREAMING),
        (options.strip, flags.STRIP_PLAN),
        (options.refit, flags.REFIT),
        (options.reproducible, flags.EDITABLE_TIMING_CACHE),
        (options.reproducible, flags.ERROR_ON_TIMING_CACHE_MISS),
        (options.version_compatible, flags.VERSION_COMPATIBLE),
    ):
        if wanted:
            config.set_flag(flag)
    if options.version_compatible:
        config.plugins_to_serialize = parser.get_used_vc_plugin_libraries()
    levels = tensorrt.HardwareCompatibilityLevel
    if options.hardware_compatible == "ampere-plus":
        config.hardware_compatibility_level = levels.AMPERE_PLUS
    elif options.hardware_compatible == "same-compute-capability":
        config.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY


def _add_profile(builder: Any, config: Any, profile: Profile) -> None:
    made = builder.create_optimization_profile()
    try:
        for name, shapes in profile.items():
            made.set_shape(name, shapes.min, shapes.opt, shapes.max)
    except ValueError as error:
        raise InputError(f"TensorRT refuses the profile {dict(profile)}: {error}") from error
    if config.add_optimization_profile(made) < 0:
        raise InputError(f"TensorRT refuses the profile {dict(profile)}")


def _set_timings(config: Any, content: bytes) -> None:
    """Attach the timing cache that was kept or, where it is damaged or of another device or version, an empty one."""
    for each in dict.fromkeys((content, b"")):
        timings = config.create_timing_cache(each)
        if timings is not None and config.set_timing_cache(timings, False):
            return
    raise StageError("TensorRT takes no timing cache, not even an empty one")


def _monitor(tensorrt: Any, progress: Progress, stop: threading.Event) -> Any:
    """Tells the outermost phase's steps. TensorRT calls it from several threads of its own.

    What goes wrong in here is kept as `failure` and ends the build: TensorRT would do no more than print it.
    """

    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.IProgressMonitor.__init__(self)
            self.failure: Exception | None = None
            self._steps: dict[str, int] = {}
            self._one_at_a_time = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._one_at_a_time:
                steps = self._steps.get(phase_name)
                try:
                    if steps is not None:
                        progress.update(phase_name, step + 1, steps)
                except Exception as error:  # noqa: BLE001 - raised by who waits for the build
                    self.failure = self.failure or error
                    stop.set()
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def _interruptible(build: Callable[[], Any], stop: threading.Event) -> Any:
    """Build in another thread: this one stays where Ctrl-C can reach it, passes the wish to stop on, and waits for it
    to be heard."""
    built: Future[Any] = Future()

    def work() -> None:
        try:
            built.set_result(build())
        except BaseException as error:  # noqa: BLE001 - handed on to who waits
            built.set_exception(error)

    thread = threading.Thread(target=work, name="tensorrt-build")
    try:
        thread.start()
        return built.result()
    except BaseException:
        stop.set()
        if thread.is_alive():
            thread.join()
        raise
