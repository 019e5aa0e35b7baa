"""What the compressed-tensors variants refuse, and that they say what to do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import as_artifact, window_data

from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.language.checkpoint import Quantisation
from stages.language.quantise import one_shot
from stages.language.variants import quantise_checkpoint
from stages.variants import parse_variant

pytest.importorskip("llmcompressor")


def config_only(tiny_llama: Path, folder: Path, **config: Any) -> Artifact:
    """A checkpoint without weights: what is refused must be so before they are read."""
    folder.mkdir()
    said = {**json.loads((tiny_llama / "config.json").read_text()), **config}
    (folder / "config.json").write_text(json.dumps(said))
    return as_artifact(folder)


def random_network(folder: Path, kind: str, tiny_llama: Path, **more: Any) -> Artifact:
    """A network of another architecture, with its own initial weights, and norms that differ from one another."""
    import torch
    import transformers

    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 64, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**size, **heads, **more)
    )
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" in name:
                weight.copy_(torch.rand_like(weight) + 0.5)
    network.save_pretrained(folder)
    for file in tiny_llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    return as_artifact(folder)


def text(folder: Path, windows: int = 4, length: int = 32, largest: int = 63) -> Artifact:
    tokens = np.random.default_rng(0).integers(0, largest + 1, windows * length)
    tokens[0] = largest
    return window_data(folder / "data", tokens, length)


def refused(model: Artifact, spec: Any, out: Path, data: Artifact | None = None) -> str:
    """The message of the refusal; nothing was written."""
    out.mkdir()
    with pytest.raises((InputError, StageError)) as caught:
        quantise_checkpoint(model, parse_variant(spec), out, data=data)  # type: ignore[arg-type]
    assert list(out.iterdir()) == []
    return f"{caught.type.__name__}: {caught.value}"


def test_groups_that_do_not_divide_a_layers_inputs(tiny_llama: Path, tmp_path: Path) -> None:
    model = config_only(tiny_llama, tmp_path / "odd", intermediate_size=352)
    rounded = {"type": "w4a16", "method": "rtn"}
    said = refused(model, rounded, tmp_path / "a")
    assert said.startswith(
        "InputError: the 352 inputs of model.layers.0.mlp.down_proj cannot be cut into groups of 128"
    )
    assert "a group_size of 32 suits all" in said
    odd = config_only(tiny_llama, tmp_path / "odder", intermediate_size=350)
    assert "exclude what cannot be cut" in refused(odd, rounded, tmp_path / "b")


def test_names_that_no_layer_has(tiny_llama: Path, tmp_path: Path) -> None:
    model = config_only(tiny_llama, tmp_path / "model")
    said = refused(model, {"type": "fp8", "exclude": ["model.layers.0.mlp.downproj"]}, tmp_path / "a")
    assert "exclude names 'model.layers.0.mlp.downproj'" in said
    assert "did you mean 'model.layers.0.mlp.down_proj'?" in said
    said = refused(model, {"type": "w4a16", "method": "rtn", "more_bits": ["lm"]}, tmp_path / "b")
    assert "more_bits names 'lm'" in said


def test_nothing_left_to_quantise(tiny_llama: Path, tmp_path: Path) -> None:
    model = config_only(tiny_llama, tmp_path / "model", num_hidden_layers=1)
    names = [
        f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    assert "leaves no linear layer" in refused(model, {"type": "fp8", "exclude": names}, tmp_path / "a")
    spec = {"type": "w4a16", "method": "rtn", "more_bits": names}
    assert "leaves none with 4 bits" in refused(model, spec, tmp_path / "b")


def test_calibration_text_of_another_model(tiny_llama: Path, tmp_path: Path) -> None:
    model = config_only(tiny_llama, tmp_path / "model", max_position_embeddings=32, vocab_size=64)
    (tmp_path / "far").mkdir()
    far = text(tmp_path / "far", largest=64)
    assert "holds token 64, and the model knows 64" in refused(model, "w4a16", tmp_path / "a", far)
    (tmp_path / "long").mkdir()
    long = text(tmp_path / "long", length=33)
    assert "are 33 tokens long, and the model reads 32" in refused(model, "int8-w8a8", tmp_path / "b", long)


def test_experts(tiny_llama: Path, tmp_path: Path) -> None:
    model = random_network(tmp_path / "mixtral", "Mixtral", tiny_llama, num_local_experts=2)
    said = refused(model, {"type": "w4a16", "method": "rtn", "group_size": 32}, tmp_path / "a")
    assert "is a mixture of experts (model.layers.0.mlp.experts" in said


def test_smoothing_of_an_architecture_without_a_table(tiny_llama: Path, tmp_path: Path) -> None:
    model = config_only(tiny_llama, tmp_path / "model", architectures=["StrangeForCausalLM"])
    said = refused(model, "int8-w8a8", tmp_path / "a", text(tmp_path))
    assert said.startswith("StageError: llm-compressor does not know which layers of StrangeForCausalLM")
    assert "`smoothing_strength: 0` goes without" in said


def test_smoothing_by_a_wrong_table(tiny_llama: Path, tmp_path: Path) -> None:
    """llm-compressor takes Gemma 2's norm behind the attention for the one before the MLP."""
    model, data = random_network(tmp_path / "gemma", "Gemma2", tiny_llama), text(tmp_path)
    said = refused(model, "int8-w8a8", tmp_path / "a", data)
    assert said.startswith("StageError: smoothing has changed what Gemma2ForCausalLM answers")
    (tmp_path / "b").mkdir()
    plain = parse_variant({"type": "int8-w8a8", "smoothing_strength": 0})
    made = quantise_checkpoint(model, plain, tmp_path / "b", data=data)  # type: ignore[arg-type]
    assert made.metadata["quantisation"]["method"] == "gptq"


def test_gptq_that_gives_up(tiny_llama: Path, tmp_path: Path) -> None:
    """32 tokens do not span the inputs of a layer; llm-compressor would round to nearest and only log it."""
    data = text(tmp_path, windows=1)
    said = refused(as_artifact(tiny_llama), {"type": "w4a16", "damping": 1e-12}, tmp_path / "a", data)
    assert said.startswith("StageError: GPTQ could not invert")
    assert "take more calibration text or more damping" in said


def test_a_checkpoint_that_is_quantised_already(tiny_llama: Path, tmp_path: Path) -> None:
    done = Quantisation(
        format="gptq", method="gptq", weight_bits=4, layers=1, linear_layers=2, library="gptqmodel", version="1"
    )
    assert "is already quantised" in refused(as_artifact(tiny_llama, quantisation=done), "fp8", tmp_path / "a")


def test_no_calibration_text(tiny_llama: Path, tmp_path: Path) -> None:
    model = as_artifact(tiny_llama)
    for number, spec in enumerate(("int8-w8a8", "w4a16", {"type": "fp8", "activations": "static"})):
        assert "made with calibration data, and none were given" in refused(model, spec, tmp_path / str(number))


def test_the_library_is_not_installed(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llmcompressor", None)
    one_shot.require_library.cache_clear()
    with pytest.raises(RequirementError, match=r"optimize-pipeline\[llm\]"):
        quantise_checkpoint(as_artifact(tiny_llama), parse_variant("fp8"), tmp_path)  # type: ignore[arg-type]
