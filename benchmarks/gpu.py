"""What a GPU makes of the same models: PyTorch, ONNX Runtime's CUDA provider, and TensorRT, each where it is installed.

    .venv/bin/python benchmarks/gpu.py [--rounds 50] [--models minilm,bert-base,resnet50] [--batches 1,8,64]
    PYTHONPATH=. python3 benchmarks/gpu.py # where there is no more than PyTorch with CUDA, NumPy and transformers

Three models: all-MiniLM-L6-v2 (where its package is missing, random weights of its size), a BERT of base size and a
ResNet of the size of ResNet-50 (random weights: speed does not depend on them). Texts have 128 tokens, images 224 x 224
pixels. PyTorch runs them in FP32, BF16 and compiled (`torch.compile`, BF16), ONNX Runtime in FP32 and FP16, TensorRT in
FP32 and FP16. TF32 is allowed everywhere. A call goes from NumPy arrays to NumPy arrays, so both transfers are part of
it; `device` is the computing alone, by CUDA events. All of them take turns, one call each, in a new random order every
round, after rounds that do not count. The table has medians. Nothing is locked: clocks are read meanwhile and told
under the table.

Every model has a process of its own and `--seconds` for everything; rounds that there was no time for are told. What
fails stands in the table with its reason, what was measured stands beside it, and the exit code is 1. What is not
installed is told above the table. Without an NVIDIA GPU, or a PyTorch that can use it, nothing is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_models import MODELS, engine, exported, inputs_of, model_of, variant

from stages.gpu import GpuWatch, gpus

WARM_UP = 10
GRACE_S = 30
MAKING = 0.6
"""The share of the time after which nothing more is made, so that what there is gets measured."""

Call = Callable[[dict[str, np.ndarray]], float]
"""Runs one batch and returns the milliseconds of computing on the device."""


class OutOfTime(BaseException):
    """No `Exception`: what is tried and told here must not catch it."""


@dataclass
class Contender:
    name: str
    call: Call
    taken: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    failed: str = ""

    def tried(self, inputs: dict[str, np.ndarray]) -> tuple[float, float] | None:
        """Milliseconds of a call, whole and on the device; None where it fails."""
        import torch

        try:
            torch.cuda.synchronize()
            started = time.perf_counter_ns()
            device = self.call(inputs)
            return (time.perf_counter_ns() - started) / 1e6, device
        except Exception as error:  # noqa: BLE001 - it is told in the table
            self.failed = reason(error)
            return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--seconds", type=int, default=150, help="for each model, the making included")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = [int(size) for size in given.batches.split(",")]
    if given.one:
        return measured(given.one, sizes, given.rounds, given.seconds)
    import torch

    if not torch.cuda.is_available():
        print(
            "benchmarks/gpu.py needs an NVIDIA GPU and a PyTorch built for CUDA; nothing was measured", file=sys.stderr
        )
        return 0
    tell_machine()
    print("\n| model | runtime | " + " | ".join(f"batch {size}: call, device (ms)" for size in sizes) + " |")
    print("|---|---|" + "---|" * len(sizes), flush=True)
    failed = False
    with GpuWatch() as watch:
        for name in given.models.split(","):
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            try:
                failed |= subprocess.run(command, timeout=given.seconds + 2 * GRACE_S).returncode != 0
            except subprocess.TimeoutExpired:
                print(f"| {name} | did not end in time, and was ended |", flush=True)
                failed = True
    print(f"\n{watch.figures()}")
    return int(failed)


def tell_machine() -> None:
    import torch

    major, minor = torch.cuda.get_device_capability()
    driver = f", driver {gpus()[0].driver} (CUDA {gpus()[0].cuda})" if gpus() else ""
    print(f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}{driver}")
    names = ("torch", "transformers", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12", "tensorrt-cu13")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    print(", ".join(f"{name} {version}" for name, version in found.items()))
    for target in ("cuda", "tensorrt"):
        if why := absent(target):
            print(f"without {target}: it {why}")


def absent(target: Any) -> str | None:
    """What a target lacks here; None if nothing."""
    try:
        from stages.target import lacking
        from stages.variants import parse_variant  # noqa: F401 - what the graphs are made with
    except ImportError as error:
        return f"needs this project installed ({error})"
    return lacking(target)


def measured(name: str, sizes: list[int], rounds: int, seconds: int) -> int:
    """Measure one model and print its rows. 1 if anything failed."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    deadline = time.monotonic() + seconds

    def too_late(number: int, frame: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, too_late)
    contenders: list[Contender] = []
    late = ""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        try:
            for label, make in makers(name, sizes, Path(folder), opened):
                contenders.append(made(label, make, deadline - (1 - MAKING) * seconds))
            signal.alarm(max(1, int(deadline - time.monotonic())) + GRACE_S)
            for number, size in enumerate(sizes):
                measure(contenders, inputs_of(name, size), size, rounds, deadline, len(sizes) - number)
        except OutOfTime:
            late = "no time was left"
        except Exception as error:  # noqa: BLE001 - it is told in the table
            late = reason(error)
        finally:
            signal.alarm(0)
        for contender in contenders:
            row(name, contender, sizes, rounds, late)
        if late and not contenders:
            print(f"| {name} | {late} |", flush=True)
    return int(bool(late) or any(contender.failed for contender in contenders))


def made(label: str, make: Callable[[], Call], until: float) -> Contender:
    contender = Contender(label, lambda inputs: 0.0)
    if time.monotonic() > until:
        contender.failed = "no time was left to make it"
        return contender
    signal.alarm(1 + int(until - time.monotonic()))
    try:
        contender.call = make()
    except OutOfTime:
        contender.failed = "took too long to make"
    except Exception as error:  # noqa: BLE001 - it is told in the table
        contender.failed = reason(error)
    finally:
        signal.alarm(0)
    return contender


def measure(
    contenders: list[Contender], inputs: dict[str, np.ndarray], size: int, rounds: int, deadline: float, left: int
) -> None:
    """`rounds` rounds of one batch size, or as many as an even share of the time that is left allows."""
    for contender in contenders:
        if not contender.failed:
            contender.tried(inputs)  # compiles, captures and searches: takes seconds
    until = time.monotonic() + max(deadline - time.monotonic(), 0) / left
    for number in range(WARM_UP + rounds):
        if time.monotonic() > until:
            return
        for contender in random.sample(contenders, len(contenders)):
            taken = None if contender.failed else contender.tried(inputs)
            if taken is not None and number >= WARM_UP:
                contender.taken.setdefault(size, []).append(taken)


def row(name: str, contender: Contender, sizes: list[int], rounds: int, late: str) -> None:
    cells = []
    for size in sizes:
        if not (taken := contender.taken.get(size)):
            cells.append(contender.failed or late or "no time was left")
            continue
        calls, device = zip(*taken, strict=True)
        few = f" ({len(taken)} rounds)" if len(taken) < rounds else ""
        cells.append(f"{statistics.median(calls):.3g}, {statistics.median(device):.3g}{few}")
    print(f"| {name} | {contender.name} | " + " | ".join(cells) + " |", flush=True)


def reason(error: BaseException) -> str:
    """The first line of what is wrong, fit for a cell of a table."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:200].replace("|", "/")


def makers(
    name: str, sizes: list[int], folder: Path, opened: contextlib.ExitStack
) -> Iterator[tuple[str, Callable[[], Call]]]:
    """What is compared, each with what makes it. One that cannot be made is no hindrance to the next."""
    import torch

    module = model_of(name)
    graphs: list[Any] = []

    def graph() -> Any:
        if not graphs:
            graphs.append(exported(module, inputs_of(name, 2), folder / "graph"))
        return graphs[0]

    def session(target: str, kind: str) -> Call:
        from stages.runtime import open_session

        form = variant(graph(), kind, "tensorrt" if target == "tensorrt" else "onnxruntime-cuda", folder)
        one = open_session(engine(form, sizes, folder / f"{kind}-engine") if target == "tensorrt" else form)
        opened.callback(one.close)
        return of_session(one)

    yield "PyTorch FP32", lambda: of_module(copy.deepcopy(module).cuda())
    yield "PyTorch BF16", lambda: of_module(copy.deepcopy(module).cuda().bfloat16())
    yield "PyTorch BF16, torch.compile", lambda: of_module(torch.compile(copy.deepcopy(module).cuda().bfloat16()))
    for target, label in (("cuda", "ONNX Runtime CUDA"), ("tensorrt", "TensorRT")):
        for kind in () if absent(target) else ("fp32", "fp16"):
            yield f"{label} {kind.upper()}", partial(session, target, kind)


def of_module(module: Any) -> Call:
    import torch

    dtype = next(module.parameters()).dtype
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def call(inputs: dict[str, np.ndarray]) -> float:
        with torch.inference_mode():
            tensors = [torch.from_numpy(array).cuda(non_blocking=True) for array in inputs.values()]
            start.record()
            answer = module(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors))
            end.record()
            answer.float().cpu().numpy()
        return float(start.elapsed_time(end))

    return call


def of_session(session: Any) -> Call:
    def call(inputs: dict[str, np.ndarray]) -> float:
        session(inputs)
        return float(session.device_ms[1])

    return call


if __name__ == "__main__":
    sys.exit(main())
