"""Real models in their converted form, with what calibration says of them: MiniLM, and a small convolutional network
that has learnt handwritten digits."""

from __future__ import annotations

import inspect
import json
import statistics
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.calibrate import CalibrateOptions, calibrate
from stages.convert import convert
from stages.fuse import FuseOptions, fuse
from stages.model import ASSETS, Model
from stages.onnx_model import signature_of, write_model
from stages.prepare import PrepareOptions, locate_data, prepare
from stages.progress import SILENT
from stages.runtime import open_session
from stages.source import locate
from stages.variants import parse_variant, quantise

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="session")
def minilm(minilm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    source = locate(str(minilm_checkpoint))
    assert source is not None
    return convert(source=source, out=tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="session")
def minilm_fused(minilm: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return fuse(minilm, FuseOptions(), tmp_path_factory.mktemp("minilm_fused"))


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Artifact], Artifact]:
    """The statistics of a model, from docstrings of the standard library or from digits that it was trained on."""
    made: dict[str, Artifact] = {}

    def statistics_of(model: Artifact) -> Artifact:
        if model.digest not in made:
            data = tmp_path_factory.mktemp("calibration")
            if Model.of(model).task == "image-classification":
                from sklearn.datasets import load_digits

                np.savez(data / "digits.npz", image=load_digits().images[:128, None].astype(np.float32) / 16)
                options = PrepareOptions(role="calibration")
                given = locate_data(str(data / "digits.npz"))
            else:
                options = PrepareOptions(role="calibration", samples=96, max_length=64)
                given = None
            samples = prepare(model, options, tmp_path_factory.mktemp("samples"), SILENT, given)
            out = tmp_path_factory.mktemp("statistics")
            made[model.digest] = calibrate(model, samples, CalibrateOptions(gram=True), out)
        return made[model.digest]

    return statistics_of


@pytest.fixture(scope="session")
def make(
    tmp_path_factory: pytest.TempPathFactory, calibrated: Callable[[Artifact], Artifact]
) -> Callable[[Artifact, str | Mapping[str, Any]], Artifact]:
    """Make a variant, or take the one that another test made."""
    made: dict[str, Artifact] = {}

    def variant(model: Artifact, spec: str | Mapping[str, Any]) -> Artifact:
        config = parse_variant(spec)
        key = f"{model.digest} {config!r}"
        if key not in made:
            statistics = calibrated(model) if config.needs_data else None
            made[key] = quantise(model, config, tmp_path_factory.mktemp(config.name), SILENT, statistics)
        return made[key]

    return variant


@pytest.fixture(scope="session")
def sentences(minilm: Artifact) -> list[Arrays]:
    """Docstrings of the standard library as padded batches."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm.path / ASSETS / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(64)
    texts = sorted(
        {
            inspect.getdoc(member) or ""
            for module in (json, statistics, textwrap)
            for member in vars(module).values()
            if inspect.isfunction(member) and inspect.getdoc(member)
        }
    )
    batches = []
    for start in range(0, len(texts), 8):
        encoded = tokenizer.encode_batch(texts[start : start + 8])
        batches.append(
            {
                "input_ids": np.array([text.ids for text in encoded]),
                "attention_mask": np.array([text.attention_mask for text in encoded]),
                "token_type_ids": np.array([text.type_ids for text in encoded]),
            }
        )
    return batches


@pytest.fixture(scope="session")
def embed(sentences: list[Arrays]) -> Callable[[Artifact], NDArray[Any]]:
    """The sentences' embeddings as a model artifact gives them, of length 1: [sentences, hidden]."""

    def embeddings(model: Artifact) -> NDArray[Any]:
        with open_session(model) as session:
            taken = [{spec.name: batch[spec.name] for spec in session.signature.inputs} for batch in sentences]
            rows = np.concatenate([next(iter(session(batch).values())) for batch in taken])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return embeddings


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two convolutions with batch normalisation and two linear layers, trained for some seconds."""
    import onnx_ir
    import torch
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images = torch.from_numpy(load_digits().images[:1200, None].astype(np.float32) / 16)
    labels = torch.from_numpy(load_digits().target[:1200])
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, padding=1, bias=False),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(12):
        for rows in torch.randperm(1200).split(64):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimiser.step()
    out = tmp_path_factory.mktemp("digits")
    program = torch.onnx.export(
        network.eval(),
        (images[:2],),
        dynamo=True,
        verbose=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    program.save(out / "exported.onnx")
    graph = onnx_ir.load(out / "exported.onnx")
    (out / ASSETS).mkdir()
    (out / ASSETS / "labels.txt").write_text("\n".join("0123456789"))
    return write_model(
        graph,
        tmp_path_factory.mktemp("digits_model"),
        signature=signature_of(graph),
        task="image-classification",
        labels=tuple("0123456789"),
        assets=out / ASSETS,
    )


@pytest.fixture(scope="session")
def digits_images() -> NDArray[np.float32]:
    """597 digits that were not trained on: [597, 1, 8, 8], 0 to 1."""
    from sklearn.datasets import load_digits

    images: NDArray[np.float32] = load_digits().images[1200:, None].astype(np.float32) / 16
    return images


@pytest.fixture(scope="session")
def digits_accuracy() -> Callable[[Artifact], float]:
    """The share of right answers on 597 digits that were not trained on."""
    from sklearn.datasets import load_digits

    def accuracy(model: Artifact) -> float:
        images = load_digits().images[1200:, None].astype(np.float32) / 16
        with open_session(model) as session:
            logits = session({"image": images})["logits"]
        return float((logits.argmax(axis=1) == load_digits().target[1200:]).mean())

    return accuracy


@pytest.fixture
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """A model artifact from ONNX's textual form and the values of its initialisers."""
    import onnx
    import onnx_ir

    def artifact(text: str, **initialisers: NDArray[Any]) -> Artifact:
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        model.graph.initializer.extend(onnx.numpy_helper.from_array(array, n) for n, array in initialisers.items())
        graph = onnx_ir.from_proto(model)
        return write_model(graph, tmp_path_factory.mktemp("graph"), signature=signature_of(graph))

    return artifact
