"""The variants in the compressed-tensors format: what is in the files, and whether readers agree about it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import as_artifact, text_tokens, window_data
from compressed_reader import matrix, stored

from stages.artifact import Artifact
from stages.language.checkpoint import Checkpoint, Quantisation
from stages.language.variants import quantise_checkpoint
from stages.variants import parse_variant

pytest.importorskip("llmcompressor")

WINDOWS, LENGTH = 16, 64
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
IN_EIGHT_BITS = "model.layers.1.mlp.down_proj"

SPECS: dict[str, Any] = {
    "int8-w8a8": "int8-w8a8",
    "fp8": "fp8",
    "fp8-static": {"type": "fp8", "activations": "static"},
    "w4a16": "w4a16",
    "w4a16-rtn": {"type": "w4a16", "method": "rtn"},
    "w4a16-mixed": {
        "type": "w4a16",
        "group_size": 32,
        "more_bits": [IN_EIGHT_BITS],
        "exclude": ["model.layers.0.self_attn.k_proj"],
    },
}

Made = Callable[[str], Artifact]


@pytest.fixture(scope="module")
def tokens(tiny_llama: Path) -> Any:
    return text_tokens(tiny_llama, (WINDOWS + 8) * LENGTH)


@pytest.fixture(scope="module")
def data(tokens: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return window_data(tmp_path_factory.mktemp("text") / "data", tokens[: WINDOWS * LENGTH], LENGTH)


@pytest.fixture(scope="module")
def made(tiny_llama: Path, data: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes a variant of `SPECS`, once."""
    there: dict[str, Artifact] = {}

    def make(name: str) -> Artifact:
        if name not in there:
            variant = parse_variant(SPECS[name])
            out = tmp_path_factory.mktemp(name)
            given = data if variant.needs_data else None
            there[name] = quantise_checkpoint(as_artifact(tiny_llama), variant, out, data=given)  # type: ignore[arg-type]
        return there[name]

    return make


def layers_of(folder: Path) -> list[str]:
    count = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    return [
        f"model.layers.{layer}.{part}.{name}"
        for layer in range(count)
        for part, names in (("self_attn", ATTENTION), ("mlp", MLP))
        for name in names
    ]


def loaded_back(folder: Path) -> Any:
    """The network as transformers makes it of the files, its weights as floats."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    return AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, quantization_config=CompressedTensorsConfig(dequantize=True)
    )


def log_probabilities(folder: Path, tokens: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        return network(torch.from_numpy(tokens)).logits.log_softmax(-1).numpy()


@pytest.mark.parametrize("name", SPECS)
def test_numpy_reads_the_weights_that_transformers_loads(name: str, made: Made) -> None:
    folder = made(name).path
    tensors, network = stored(folder), loaded_back(folder)
    for layer in layers_of(folder):
        if f"{layer}.weight_scale" not in tensors:
            continue
        ours = matrix(tensors, layer, bits=8 if name == "w4a16-mixed" and layer == IN_EIGHT_BITS else 4)
        theirs = network.get_submodule(layer).weight.detach().numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "kind", "largest_error"),
    [("int8-w8a8", "I8", 0.05), ("fp8", "F8_E4M3", 0.05), ("fp8-static", "F8_E4M3", 0.05), ("w4a16-rtn", "I32", 0.2)],
)
def test_every_layer_but_the_head_is_quantised(
    name: str, kind: str, largest_error: float, made: Made, tiny_llama: Path
) -> None:
    tensors, before = stored(made(name).path), stored(tiny_llama)
    layers = layers_of(tiny_llama)
    for layer in layers:
        (dtype, _) = tensors.get(f"{layer}.weight_packed") or tensors[f"{layer}.weight"]
        assert dtype == kind
        if name != "int8-w8a8":  # its weights are those of a smoothed layer
            wanted = before[f"{layer}.weight"][1]
            assert np.linalg.norm(matrix(tensors, layer) - wanted) < largest_error * np.linalg.norm(wanted)
    about = Checkpoint.of(made(name)).quantisation
    assert about is not None
    assert (about.layers, about.linear_layers) == (len(layers), len(layers) + 1)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_not_quantised_is_untouched(name: str, made: Made, tiny_llama: Path) -> None:
    tensors, before = stored(made(name).path), stored(tiny_llama)
    kept = [tensor for tensor in before if tensor in tensors and f"{tensor}_scale" not in tensors]
    changed = {tensor for tensor in kept if before[tensor][1].tobytes() != tensors[tensor][1].tobytes()}
    smoothed = {
        tensor for tensor in before if tensor.endswith(("input_layernorm.weight", "post_attention_layernorm.weight"))
    }
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= set(kept)
    assert changed == (smoothed if name == "int8-w8a8" else set())


@pytest.mark.parametrize("name", SPECS)
def test_the_other_files_are_those_of_the_model(name: str, made: Made, tiny_llama: Path) -> None:
    before = {file.name: file.read_bytes() for file in tiny_llama.iterdir()}
    after = {file: (made(name).path / file).read_bytes() for file in made(name).files}
    assert after.keys() == before.keys()
    assert {file for file in after if after[file] != before[file]} == {"config.json", "model.safetensors"}
    said = json.loads(after["config.json"])
    said.pop("quantization_config")
    assert said == json.loads(before["config.json"])


def test_the_configuration_says_what_the_files_hold(made: Made) -> None:
    def said(name: str) -> Any:
        config = json.loads((made(name).path / "config.json").read_text())["quantization_config"]
        assert config["quant_method"] == "compressed-tensors"
        assert config["quantization_status"] == "compressed"
        return config

    eight = said("int8-w8a8")
    assert (eight["format"], eight["ignore"]) == ("int-quantized", ["lm_head"])
    group = eight["config_groups"]["group_0"]
    assert (group["weights"]["num_bits"], group["weights"]["strategy"]) == (8, "channel")
    assert (group["input_activations"]["strategy"], group["input_activations"]["dynamic"]) == ("token", True)

    for name, weights, activations, dynamic in (
        ("fp8", "channel", "token", True),
        ("fp8-static", "tensor", "tensor", False),
    ):
        group = said(name)["config_groups"]["group_0"]
        assert (group["format"], group["weights"]["type"]) == ("float-quantized", "float")
        assert (group["weights"]["strategy"], group["input_activations"]["strategy"]) == (weights, activations)
        assert group["input_activations"]["dynamic"] is dynamic
        assert group["input_activations"]["observer"] == (None if dynamic else "static_minmax")

    four = said("w4a16")["config_groups"]["group_0"]
    assert (four["format"], four["targets"], four["input_activations"]) == ("pack-quantized", ["Linear"], None)
    assert (four["weights"]["num_bits"], four["weights"]["group_size"], four["weights"]["symmetric"]) == (4, 128, True)


def test_layers_that_servers_hold_as_one_stay_together(made: Made) -> None:
    config = json.loads((made("w4a16-mixed").path / "config.json").read_text())["quantization_config"]
    attention = [f"model.layers.0.self_attn.{name}" for name in ATTENTION[:3]]
    assert config["ignore"] == [*attention, "lm_head"]
    bits = {
        target: group["weights"]["num_bits"]
        for group in config["config_groups"].values()
        for target in group["targets"]
    }
    layers = [layer for layer in layers_of(made("w4a16-mixed").path) if layer not in attention]
    assert bits == {layer: 8 if layer == IN_EIGHT_BITS else 4 for layer in layers}  # none by its class
    tensors = stored(made("w4a16-mixed").path)
    assert {layer for layer in attention if f"{layer}.weight_packed" in tensors} == set()
    about = Checkpoint.of(made("w4a16-mixed")).quantisation
    assert about is not None
    assert about.layers == len(layers)


def test_gptq_is_nearer_to_the_model_than_rounding(made: Made, tokens: Any, tiny_llama: Path) -> None:
    held_out = tokens[WINDOWS * LENGTH :].reshape(-1, LENGTH)
    wanted = log_probabilities(tiny_llama, held_out)

    def divergence(name: str) -> float:
        return float((np.exp(wanted) * (wanted - log_probabilities(made(name).path, held_out))).sum(-1).mean())

    assert divergence("int8-w8a8") < divergence("w4a16") < 0.7 * divergence("w4a16-rtn")


def test_outliers_hurt_rounding_and_not_gptq(planted_llama: Path, data: Artifact, tokens: Any, tmp_path: Path) -> None:
    held_out = tokens[WINDOWS * LENGTH :].reshape(-1, LENGTH)
    wanted = log_probabilities(planted_llama, held_out)
    divergence = {}
    for method in ("gptq", "rtn"):
        (tmp_path / method).mkdir()
        variant = parse_variant({"type": "w4a16", "method": method})
        given = data if variant.needs_data else None
        quantise_checkpoint(as_artifact(planted_llama), variant, tmp_path / method, data=given)  # type: ignore[arg-type]
        found = log_probabilities(tmp_path / method, held_out)
        divergence[method] = float((np.exp(wanted) * (wanted - found)).sum(-1).mean())
    assert divergence["gptq"] < 0.5 * divergence["rtn"]


def test_activations_are_rounded_when_it_is_loaded_back(made: Made, tokens: Any) -> None:
    """Else a check in transformers would judge a better model than the one that is served."""
    import torch
    from compressed_tensors.quantization import disable_quantization

    network = loaded_back(made("int8-w8a8").path)
    window = torch.from_numpy(tokens[:LENGTH])[None]
    with torch.no_grad():
        rounded = network(window).logits
        network.apply(disable_quantization)
        assert not torch.equal(rounded, network(window).logits)


def test_the_record_says_how_it_was_made(made: Made) -> None:
    from importlib.metadata import version

    same = {"format": "compressed-tensors", "library": "llmcompressor", "version": version("llmcompressor")}

    def record(name: str) -> dict[str, Any]:
        about = Checkpoint.of(made(name))
        assert about.quantisation is not None
        found = {"precision": about.precision, **about.quantisation.model_dump()}
        assert same.items() <= found.items()
        asked = ("precision", "method", "weight_bits", "activation_bits", "group_size", "act_order")
        return {key: found[key] for key in asked if found[key] not in (None, False)}

    assert set(Quantisation.model_fields) >= same.keys()
    assert record("int8-w8a8") == {
        "precision": "int8",
        "method": "smoothquant+gptq",
        "weight_bits": 8,
        "activation_bits": 8,
        "act_order": True,
    }
    assert record("fp8") == {"precision": "fp8", "method": "rtn", "weight_bits": 8, "activation_bits": 8}
    assert record("w4a16-rtn") == {"precision": "int4", "method": "rtn", "weight_bits": 4, "group_size": 128}
    assert record("w4a16") == {
        "precision": "int4",
        "method": "gptq",
        "weight_bits": 4,
        "group_size": 128,
        "act_order": True,
    }


def test_the_same_windows_give_the_same_bytes(made: Made, tiny_llama: Path, data: Artifact, tmp_path: Path) -> None:
    again = quantise_checkpoint(as_artifact(tiny_llama), parse_variant("w4a16"), tmp_path, data=data)  # type: ignore[arg-type]
    assert again.digest == made("w4a16").digest


def test_no_weights_stay_in_memory(tiny_llama: Path, data: Artifact, tmp_path: Path) -> None:
    """llm-compressor's tracing leaves the network in tables of torch.fx; the checkpoint is loaded back beside it."""
    from transformers import LlamaForCausalLM

    def networks() -> set[int]:
        gc.collect()
        found = (thing for thing in gc.get_objects() if type(thing) is LlamaForCausalLM)
        return {id(network) for network in found if next(network.parameters(), None) is not None}

    before = networks()
    variant = parse_variant(SPECS["fp8-static"])
    quantise_checkpoint(as_artifact(tiny_llama), variant, tmp_path, data=data)  # type: ignore[arg-type]
    assert networks() <= before


def test_nothing_is_written_to_stdout(tiny_llama: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from checkpoints import as_artifact
from stages.language.variants import quantise_checkpoint
from stages.variants import parse_variant
quantise_checkpoint(as_artifact(Path({str(tiny_llama)!r})), parse_variant("fp8"), Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "INFO" not in done.stderr
    assert (tmp_path / "model.safetensors").is_file()
