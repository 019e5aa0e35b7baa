"""GPTQ and AWQ through GPTQModel: what is in the files, whether the formats' first readers agree about it, and what is
refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import as_artifact, changed_copy, text_tokens, window_data
from compressed_reader import Floats, stored
from gptq_reader import awq_matrix, floats, gptq_matrix

from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.checkpoint import Checkpoint, Quantisation
from stages.language.session import open_language
from stages.language.variants import quantise_checkpoint
from stages.variants import parse_variant

pytest.importorskip("gptqmodel")

WINDOWS, LENGTH = 8, 64
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
LAYERS = [
    *(f"model.layers.{block}.self_attn.{name}" for block in range(3) for name in ATTENTION),
    *(f"model.layers.{block}.mlp.{name}" for block in range(3) for name in MLP),
]
EXCLUDED = {
    "gptq-part": ["model.layers.0.self_attn.k_proj", "model.layers.2.mlp.down_proj"],
    "awq-part": ["model.layers.0.self_attn.k_proj", "model.layers.2.mlp.down_proj"],
}
KEPT = {
    # What servers hold as one: q, k and v.
    "gptq-part": {*(f"model.layers.0.self_attn.{name}" for name in ["q_proj", "k_proj", "v_proj"]), LAYERS[-1]},
    # Whole modules.
    "awq-part": {
        *(f"model.layers.0.self_attn.{name}" for name in ATTENTION),
        *(f"model.layers.2.mlp.{name}" for name in MLP),
    },
}
SPECS: dict[str, Any] = {
    "gptq": {"type": "gptq", "backend": "auto-gptq"},
    "gptq-part": {"type": "gptq", "group_size": 32, "act_order": True, "exclude": EXCLUDED["gptq-part"]},
    "gptq-8": {"type": "gptq", "bits": 8, "group_size": -1},
    "awq": {"type": "awq", "backend": "autoawq", "windows": 4},
    "awq-part": {"type": "awq", "group_size": 32, "windows": 2, "exclude": EXCLUDED["awq-part"]},
}

Made = Callable[[str], Artifact]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Artifact:
    return as_artifact(tiny_llama)


@pytest.fixture(scope="module")
def tokens(tiny_llama: Path) -> Any:
    return text_tokens(tiny_llama, (WINDOWS + 8) * LENGTH)


@pytest.fixture(scope="module")
def data(tokens: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return window_data(tmp_path_factory.mktemp("text") / "data", tokens[: WINDOWS * LENGTH], LENGTH)


@pytest.fixture(scope="module")
def held_out(tokens: Any) -> Any:
    return tokens[WINDOWS * LENGTH :].reshape(8, LENGTH)


@pytest.fixture(scope="module")
def made(model: Artifact, data: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes a variant of `SPECS`, once."""
    there: dict[str, Artifact] = {}

    def make(name: str) -> Artifact:
        if name not in there:
            there[name] = _make(SPECS[name], model, data, tmp_path_factory.mktemp(name))
        return there[name]

    return make


def _make(spec: Any, model: Artifact, data: Artifact, out: Path) -> Artifact:
    return quantise_checkpoint(model=model, options=parse_variant(spec), out=out, data=data)


def _matrices(name: str, artifact: Artifact) -> dict[str, Floats]:
    """The weights of all layers that are quantised, by the rules of the format's first reader."""
    tensors = stored(artifact.path)
    layers = [layer for layer in LAYERS if layer not in KEPT.get(name, ())]
    if name.startswith("awq"):
        return {layer: awq_matrix(tensors, layer) for layer in layers}
    return {layer: gptq_matrix(tensors, layer, 8 if name == "gptq-8" else 4) for layer in layers}


def _logits(model: Artifact, weights: dict[str, Floats], tokens: Any) -> Floats:
    """What the original answers with other weights, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model.path, local_files_only=True).eval()
    with torch.inference_mode():
        for name, weight in weights.items():
            network.get_parameter(name).copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        return np.asarray(network(torch.from_numpy(tokens)).logits.numpy())


def _answer(artifact: Artifact, tokens: Any) -> Floats:
    from torch._dynamo.config import patch

    with patch(disable=True), open_language(artifact) as session:  # what is compiled at the first call answers the same
        return session.logits(tokens)


def _difference(one: Floats, other: Floats) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def _perplexity(scores: Floats, tokens: Any) -> float:
    shifted = scores[:, :-1] - scores[:, :-1].max(axis=-1, keepdims=True)
    right = np.take_along_axis(shifted, tokens[:, 1:, None], axis=-1)[..., 0]
    return float(np.exp((np.log(np.exp(shifted).sum(axis=-1)) - right).mean()))


@pytest.mark.parametrize("name", ["gptq", "gptq-part", "gptq-8"])
def test_what_autogptq_would_read_answers_as_transformers_does(
    name: str, model: Artifact, made: Made, held_out: Any
) -> None:
    artifact = made(name)

    weights = {f"{layer}.weight": matrix for layer, matrix in _matrices(name, artifact).items()}
    expected = _logits(model, weights, held_out)

    answer = _answer(artifact, held_out)
    assert _difference(answer, expected) < 0.01  # kernels compute in few bits what numpy does in many
    assert _difference(answer, expected) < 0.6 * _difference(_logits(model, {}, held_out), expected)


@pytest.mark.parametrize("name", ["awq", "awq-part"])
def test_what_autoawq_would_read_answers_as_transformers_does(
    name: str, model: Artifact, made: Made, held_out: Any
) -> None:
    artifact = made(name)
    tensors = stored(artifact.path)

    weights = {f"{layer}.weight": matrix for layer, matrix in _matrices(name, artifact).items()}
    weights |= {tensor: floats(tensors, tensor) for tensor in tensors if tensor.endswith("norm.weight")}
    expected = _logits(model, weights, held_out)

    answer = _answer(artifact, held_out)
    assert _difference(answer, expected) < 0.01  # in bfloat16
    assert _difference(answer, expected) < 0.6 * _difference(_logits(model, {}, held_out), expected)


@pytest.mark.parametrize("name", list(SPECS))
def test_quality_is_kept(name: str, model: Artifact, made: Made, held_out: Any) -> None:
    before = _perplexity(_logits(model, {}, held_out), held_out)

    assert _perplexity(_answer(made(name), held_out), held_out) < 1.01 * before


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_the_record_says_what_really_made_it(name: str, made: Made) -> None:
    quantisation = Checkpoint.of(made(name)).quantisation

    assert quantisation == Quantisation(
        format=name,
        method=name,
        weight_bits=4,
        group_size=128,
        symmetric=name == "gptq",
        layers=21,
        linear_layers=22,
        library="gptqmodel",
        version=version("gptqmodel"),
        asked_for="auto-gptq" if name == "gptq" else "autoawq",
    )


def test_readers_are_told_the_format(made: Made) -> None:
    gptq, awq = (json.loads((made(name).path / "config.json").read_text()) for name in ("gptq", "awq"))

    said = gptq["quantization_config"]
    assert {said["quant_method"], said["checkpoint_format"]} == {"gptq"}
    assert (said["bits"], said["group_size"], said["sym"], said["desc_act"]) == (4, 128, True, False)
    assert gptq["dtype"] == "float32"  # as the original
    said = awq["quantization_config"]
    assert (said["quant_method"], said["version"]) == ("awq", "gemm")
    assert (said["bits"], said["group_size"], said["zero_point"]) == (4, 128, True)
    assert awq["dtype"] == Checkpoint.of(made("awq")).dtype == "bfloat16"  # AWQ's readers know no float32


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_the_files_beside_the_weights_are_the_originals(name: str, model: Artifact, made: Made) -> None:
    artifact = made(name)

    assert set(artifact.files) == {*model.files, "quantize_config.json"}
    changed = {file for file in model.files if artifact.files[file] != model.files[file]}
    assert changed == {"model.safetensors", "config.json"}
    before, after = (json.loads((each.path / "config.json").read_text()) for each in (model, artifact))
    quantisation = after.pop("quantization_config")
    assert after == {**before, "dtype": after["dtype"]}
    assert quantisation == json.loads((artifact.path / "quantize_config.json").read_text())
    assert "offload" not in json.dumps(quantisation)  # nothing about the machine
    assert sorted(file.name for file in artifact.path.iterdir()) == sorted([*artifact.files, "artifact.json"])


@pytest.mark.parametrize("name", ["gptq-part", "awq-part"])
def test_what_is_excluded_stays_with_all_that_must(name: str, model: Artifact, made: Made) -> None:
    before, after = stored(model.path), stored(made(name).path)

    left = {tensor.removesuffix(".weight") for tensor in after if tensor.removesuffix(".weight") in LAYERS}
    assert left == KEPT[name]
    for layer in left:
        assert np.allclose(floats(after, f"{layer}.weight"), floats(before, f"{layer}.weight"), rtol=2**-8)
    quantisation = Checkpoint.of(made(name)).quantisation
    assert quantisation is not None and quantisation.layers == len(LAYERS) - len(left)


def test_act_order_and_groups_are_as_asked(made: Made) -> None:
    in_order, sorted_by_size = stored(made("gptq").path), stored(made("gptq-part").path)
    layer = "model.layers.1.mlp.down_proj"

    assert np.array_equal(in_order[f"{layer}.g_idx"][1], np.arange(384) // 128)
    groups = sorted_by_size[f"{layer}.g_idx"][1]
    assert np.bincount(groups).tolist() == [32] * 12 and (np.diff(groups) < 0).any()


def test_the_same_data_give_the_same_bytes(model: Artifact, data: Artifact, made: Made, tmp_path: Path) -> None:
    again = _make(SPECS["gptq"], model, data, tmp_path)

    assert again.digest == made("gptq").digest


def test_it_says_nothing_and_asks_nobody(
    model: Artifact,
    data: Artifact,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("a connection was asked for")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))

    (tmp_path / "out").mkdir()
    _make({"type": "gptq", "exclude": LAYERS[:12]}, model, data, tmp_path / "out")

    assert capfd.readouterr().out == ""
    assert list(home.iterdir()) == []  # nothing compiled, nothing kept


def test_a_tied_head_is_left_alone(tiny_llama: Path, data: Artifact, tmp_path: Path) -> None:
    def tie(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}

    tied = changed_copy(tiny_llama, tmp_path / "tied", tie, tie_word_embeddings=True)
    (tmp_path / "out").mkdir()
    artifact = _make({"type": "gptq", "exclude": LAYERS[:12]}, as_artifact(tied), data, tmp_path / "out")

    assert "lm_head.weight" not in stored(artifact.path)


def _small(target: Path, kind: str, **settings: Any) -> Artifact:
    """A checkpoint of another architecture, not trained."""
    import transformers

    chosen = {
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
    }
    config = getattr(transformers, f"{kind}Config")(**{**chosen, **settings})
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(target)
    return as_artifact(target)


def test_inputs_that_no_group_fits_are_named_with_a_remedy(data: Artifact, tmp_path: Path) -> None:
    odd = _small(tmp_path / "odd", "Llama", intermediate_size=192)

    for kind in ("gptq", "awq"):
        with pytest.raises(
            InputError, match=r"192 inputs of model\.layers\.0\.mlp\.down_proj.*groups of 128.*64 suits"
        ):
            _make(kind, odd, data, tmp_path)


def test_outputs_that_cannot_be_packed_are_named(data: Artifact, tmp_path: Path) -> None:
    odd = _small(tmp_path / "odd", "Llama", num_attention_heads=4, num_key_value_heads=1)

    with pytest.raises(InputError, match=r"self_attn\.k_proj has 32 outputs.*multiples of 64"):
        _make("awq", odd, data, tmp_path)


def test_an_architecture_that_gptqmodel_does_not_know_is_told(data: Artifact, tmp_path: Path) -> None:
    unknown = _small(tmp_path / "unknown", "Olmo")

    with pytest.raises(InputError, match=r"does not know the architecture 'olmo'.*w4a16"):
        _make("gptq", unknown, data, tmp_path)


def test_experts_are_refused(data: Artifact, tmp_path: Path) -> None:
    experts = _small(tmp_path / "experts", "Mixtral", num_local_experts=2)

    with pytest.raises(InputError, match="mixture of experts"):
        _make("gptq", experts, data, tmp_path)


def test_what_is_quantised_is_not_quantised_again(data: Artifact, made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quantised already"):
        _make("awq", made("gptq"), data, tmp_path)


def test_names_of_no_layer_are_refused(model: Artifact, data: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'model\.layers\.0\.mlp\.down_proj'"):
        _make({"type": "gptq", "exclude": ["model.layers.0.mlp.down_prj"]}, model, data, tmp_path)
    with pytest.raises(InputError, match="nothing is left to quantise"):
        _make({"type": "awq", "exclude": LAYERS}, model, data, tmp_path)


def test_windows_that_it_would_leave_out_are_refused(model: Artifact, tokens: Any, tmp_path: Path) -> None:
    short = window_data(tmp_path / "short", tokens[:64], 8)

    with pytest.raises(InputError, match="8 tokens long, and GPTQModel takes 10"):
        _make("gptq", model, short, tmp_path)
