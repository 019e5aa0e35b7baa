"""Fusion: all of MiniLM's attention, the same answers, and no pretence where there is nothing to fuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.errors import StageError
from stages.fuse import FUSED_DOMAIN, FuseOptions, fuse
from stages.model import ASSETS, Model
from stages.onnx_model import operator_counts, read_graph, signature_of, write_model
from stages.trial import trial_batches


def test_every_attention_of_minilm_is_fused(minilm_fused: Artifact) -> None:
    assert operator_counts(read_graph(minilm_fused), FUSED_DOMAIN) == {
        "Attention": 6,
        "BiasGelu": 6,
        "SkipLayerNormalization": 12,
    }
    assert Model.of(minilm_fused).fused
    assert Model.of(minilm_fused).operators["Attention"] == 6
    assert not read_graph(minilm_fused).functions


def test_the_fused_graph_gives_the_same_embeddings_of_padded_sentences(
    minilm: Artifact, minilm_fused: Artifact, embed: Callable[[Artifact], NDArray[Any]]
) -> None:
    assert np.abs(embed(minilm_fused) - embed(minilm)).max() < 1e-5


def test_signature_axes_task_and_assets_stay(minilm: Artifact, minilm_fused: Artifact) -> None:
    before, after = Model.of(minilm), Model.of(minilm_fused)
    assert (after.signature, after.task, after.precision, after.opset) == (
        before.signature,
        before.task,
        "fp32",
        before.opset,
    )
    assert signature_of(read_graph(minilm_fused)).inputs[0].shape == ("batch", "sequence")
    tokenizer = Path(ASSETS) / "tokenizer.json"
    assert (minilm_fused.path / tokenizer).samefile(minilm.path / tokenizer)
    assert minilm_fused.made_from == {"model": minilm.digest}


def test_fusing_again_gives_the_same_digest(minilm: Artifact, minilm_fused: Artifact, tmp_path: Path) -> None:
    assert fuse(minilm, FuseOptions(), tmp_path).digest == minilm_fused.digest


def test_a_convolutional_network_comes_back_as_it_was(digits: Artifact, tmp_path: Path) -> None:
    result = fuse(digits, FuseOptions(), tmp_path)
    assert result.digest == digits.digest
    assert not Model.of(result).fused
    assert (tmp_path / "model.onnx").samefile(digits.path / "model.onnx")


def test_a_fused_graph_that_computes_something_else_is_refused(minilm: Artifact, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"computes another sentence_embedding.*run without fusion"):
        fuse(minilm, FuseOptions(tolerance=1e-12), tmp_path)


def test_a_model_that_takes_no_random_batch_is_left_unfused(tmp_path: Path) -> None:
    """Its table of positions ends before the shortest batch does, so a fused graph could not be compared."""
    import onnx_ir
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=4,
    )
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=4)}
    program = torch.onnx.export(
        BertModel(config, add_pooling_layer=False).eval(),
        kwargs={"input_ids": torch.ones(2, 3, dtype=torch.int64)},
        dynamo=True,
        verbose=False,
        dynamic_shapes={"input_ids": axes},
    )
    program.save(tmp_path / "exported.onnx")
    graph = onnx_ir.load(tmp_path / "exported.onnx")
    for name in ("model", "fused"):
        (tmp_path / name).mkdir()
    model = write_model(graph, tmp_path / "model", signature=signature_of(graph))
    result = fuse(model, FuseOptions(), tmp_path / "fused")
    assert result.digest == model.digest


def test_trial_batches_differ_in_shape_stay_in_the_tables_and_hold_padding(minilm: Artifact) -> None:
    batches = trial_batches(read_graph(minilm), Model.of(minilm).signature)
    assert len({batch["input_ids"].shape for batch in batches}) == 3
    assert all(batch["input_ids"].max() < 30522 for batch in batches)
    assert max(batch["input_ids"].max() for batch in batches) > 20000
    assert all(batch["token_type_ids"].max() < 2 for batch in batches if "token_type_ids" in batch)
    padded = batches[1]["attention_mask"].sum(axis=1)
    assert len(set(padded.tolist())) == len(padded)
    assert padded.min() >= 1
