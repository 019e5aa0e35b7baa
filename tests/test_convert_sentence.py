"""Sentence-transformers directories: pooling, dense layers and normalisation are in the graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import save_text_model, sentence_module

from stages.artifact import Artifact
from stages.convert import convert
from stages.errors import InputError
from stages.model import Model
from stages.runtime import open_session
from stages.source import locate


def converted(path: Path, out: Path) -> Artifact:
    source = locate(str(path))
    assert source is not None
    out.mkdir(exist_ok=True)
    return convert(source=source, out=out)


@pytest.fixture(scope="session")
def minilm(minilm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return converted(minilm_checkpoint, tmp_path_factory.mktemp("minilm"))


def test_minilm_answers_with_embeddings(minilm: Artifact) -> None:
    model = Model.of(minilm)
    assert model.task == "sentence-embedding"
    assert [(tensor.name, tensor.shape) for tensor in model.signature.outputs] == [
        ("sentence_embedding", ("batch", 384))
    ]
    assert "model.onnx.data" not in minilm.files
    assert {"assets/tokenizer.json", "assets/modules.json", "assets/sentence_bert_config.json"} <= set(minilm.files)


def test_minilm_pools_and_normalises_as_by_hand(minilm: Artifact, minilm_checkpoint: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = [
        "Return the absolute value of a number.",
        "Short.",
        "Sort the list in place, in ascending order, and wait.",
    ]
    encoded = AutoTokenizer.from_pretrained(minilm_checkpoint)(texts, padding=True, return_tensors="pt")
    bert = AutoModel.from_pretrained(minilm_checkpoint).eval()
    with torch.inference_mode():
        hidden = bert(**encoded).last_hidden_state
    by_hand = []
    for row, mask in zip(hidden, encoded["attention_mask"], strict=True):
        mean = row[: int(mask.sum())].mean(dim=0)
        by_hand.append((mean / mean.norm()).numpy())
    with open_session(minilm) as session:
        answer = session({name: tensor.numpy() for name, tensor in encoded.items()})["sentence_embedding"]
    np.testing.assert_allclose(answer, np.stack(by_hand), atol=2e-6)


def pooled(hidden: NDArray[Any], mode: str) -> NDArray[Any]:
    """One text's vector from those of its tokens, [length, hidden], none of them padding."""
    weights = np.arange(1, len(hidden) + 1, dtype=np.float64)[:, None]
    vector: NDArray[Any] = {
        "cls": hidden[0],
        "max": hidden.max(axis=0),
        "mean": hidden.mean(axis=0),
        "mean_sqrt_len_tokens": hidden.sum(axis=0) / np.sqrt(len(hidden)),
        "weightedmean": (hidden * weights).sum(axis=0) / weights.sum(),
        "lasttoken": hidden[-1],
    }[mode]
    return vector


BATCH = {
    "input_ids": np.array([[2, 9, 17, 33, 3], [2, 40, 3, 0, 0]]),
    "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "token_type_ids": np.zeros((2, 5), dtype=np.int64),
}


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> list[NDArray[Any]]:
    """The token vectors of the small encoder for each text of `BATCH`, padding left out."""
    folder = tmp_path_factory.mktemp("encoder")
    artifact = converted(save_text_model(folder / "source", "BertModel"), folder / "model")
    with open_session(artifact) as session:
        tokens = session(BATCH)["last_hidden_state"]
    return [row[: mask.sum()] for row, mask in zip(tokens, BATCH["attention_mask"], strict=True)]


@pytest.fixture(scope="module")
def all_modes(tmp_path_factory: pytest.TempPathFactory) -> NDArray[Any]:
    """The answer to `BATCH` of a model with every way of pooling, [text, mode, hidden]."""
    folder = tmp_path_factory.mktemp("pooled")
    config = {f"pooling_mode_{mode}": True for mode in ("cls_token", "max_tokens", "mean_tokens", "lasttoken")}
    config |= {f"pooling_mode_{mode}": True for mode in ("mean_sqrt_len_tokens", "weightedmean_tokens")}
    modules = [sentence_module("Transformer"), sentence_module("Pooling", "1_Pooling", **config)]
    artifact = converted(save_text_model(folder / "source", "BertModel", pooled=modules), folder / "model")
    with open_session(artifact) as session:
        return session(BATCH)["sentence_embedding"].reshape(2, 6, 16)


@pytest.mark.parametrize(
    ("place", "mode"), enumerate(["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
)
def test_every_way_of_pooling_is_as_by_hand(
    all_modes: NDArray[Any], hidden: list[NDArray[Any]], place: int, mode: str
) -> None:
    np.testing.assert_allclose(all_modes[:, place], [pooled(tokens, mode) for tokens in hidden], atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_mode_mean_tokens": False}, "the pooling mode none is not one of cls, max, mean"),
        ({"pooling_mode": "attention"}, r"the pooling mode \['attention'\] is not one of"),
    ],
)
def test_an_unknown_way_of_pooling_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    modules = [sentence_module("Transformer"), sentence_module("Pooling", "1_Pooling", **config)]
    with pytest.raises(InputError, match=message):
        converted(save_text_model(tmp_path / "source", "BertModel", pooled=modules), tmp_path / "model")


def test_dense_layers_are_in_the_graph(tmp_path: Path, hidden: list[NDArray[Any]]) -> None:
    import torch
    from safetensors.torch import save_file

    modules = [
        sentence_module("Transformer"),
        sentence_module("Pooling", "1_Pooling", pooling_mode_mean_tokens=True),
        sentence_module(
            "Dense", "2_Dense", in_features=16, out_features=3, bias=True,
            activation_function="torch.nn.modules.activation.Tanh",
        ),
        sentence_module("Normalize", "3_Normalize"),
    ]  # fmt: skip
    path = save_text_model(tmp_path / "source", "BertModel", pooled=modules)
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    save_file({"linear.weight": weight, "linear.bias": torch.ones(3)}, path / "2_Dense/model.safetensors")
    artifact = converted(path, tmp_path / "model")
    with open_session(artifact) as session:
        answer = session(BATCH)["sentence_embedding"]
    dense = [np.tanh(weight.numpy() @ tokens.mean(axis=0) + 1) for tokens in hidden]
    np.testing.assert_allclose(answer, [vector / np.linalg.norm(vector) for vector in dense], atol=1e-5)


def test_an_unknown_module_is_named(tmp_path: Path) -> None:
    modules = [
        sentence_module("Transformer"),
        sentence_module("Pooling", "1_Pooling", pooling_mode_mean_tokens=True),
        sentence_module("CNN", "2_CNN"),
    ]
    path = save_text_model(tmp_path / "source", "BertModel", pooled=modules)
    with pytest.raises(InputError, match=r"the module sentence_transformers\.models\.CNN at place 2"):
        converted(path, tmp_path / "model")


def test_modules_may_not_lie_outside_the_folder(tmp_path: Path) -> None:
    modules = [sentence_module("Transformer"), sentence_module("Pooling", "1_Pooling", pooling_mode_mean_tokens=True)]
    path = save_text_model(tmp_path / "source", "BertModel", pooled=modules)
    modules[1]["path"] = "../1_Pooling"
    (path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="leaves the model's folder"):
        locate(str(path))
