"""Language models as they come: what is taken and what is said of it, what is refused, and in which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.adopt import AdoptOptions, adopt
from stages.language.checkpoint import Attention, Checkpoint
from stages.language.configuration import load_configuration
from stages.language.describe import describe_checkpoint
from stages.source import locate

LAYERS, HIDDEN, VOCABULARY = 3, 128, 1024


def copy(source: Path, target: Path, remove: tuple[str, ...] = (), **config: Any) -> Path:
    """A copy of a checkpoint, with keys of its configuration removed and others set."""
    shutil.copytree(source, target)
    said = json.loads((target / "config.json").read_text())
    said = {key: value for key, value in said.items() if key not in remove} | config
    (target / "config.json").write_text(json.dumps(said))
    return target


def with_weights(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint whose tensors `change` has changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    (target / "model.safetensors").unlink()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def taken(path: Path, out: Path, *, trust_remote_code: bool = False) -> Artifact:
    """`path` adopted."""
    source = locate(str(path))
    assert source is not None
    out.mkdir()
    return adopt(source=source, options=AdoptOptions(trust_remote_code=trust_remote_code), out=out)


def small(tiny_llama: Path, target: Path, model_class: str, config_class: str, **settings: Any) -> Path:
    """A model of another class with random weights, beside the trained one's tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**{"vocab_size": VOCABULARY, **settings})
    getattr(transformers, model_class)(config).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, target / name)
    return target


class TestTaken:
    def test_as_it_is_with_all_that_belongs_to_it(self, tiny_llama: Path, tiny_checkpoint: Artifact) -> None:
        source = locate(str(tiny_llama))
        assert source is not None and source.metadata["task"] == "text-generation"
        assert tiny_checkpoint.kind == "checkpoint"
        assert tiny_checkpoint.files == source.files
        assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= set(source.files)
        assert tiny_checkpoint.made_from == {"source": source.digest}
        assert Artifact.read(tiny_checkpoint.path) == tiny_checkpoint

    def test_without_copying_the_weights(self, tiny_llama: Path, tiny_checkpoint: Artifact) -> None:
        assert (tiny_checkpoint.path / "model.safetensors").samefile(tiny_llama / "model.safetensors")

    def test_with_a_description(self, tiny_checkpoint: Artifact) -> None:
        from safetensors import safe_open

        with safe_open(tiny_checkpoint.path / "model.safetensors", "pt") as file:
            parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
        assert Checkpoint.of(tiny_checkpoint) == Checkpoint(
            architecture="LlamaForCausalLM",
            model_type="llama",
            runtime="transformers",
            precision="fp32",
            dtype="float32",
            parameters=parameters,
            vocabulary=VOCABULARY,
            hidden_size=HIDDEN,
            positions=256,
            attention=Attention(layers=LAYERS, heads=4, kv_heads=2, head_size=32, windows=(None,) * LAYERS),
            tied_head=False,
            begins_with=0,
        )

    def test_in_shards_and_in_bfloat16(self, tiny_llama: Path, tiny_checkpoint: Artifact, tmp_path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        path = copy(tiny_llama, tmp_path / "model")
        (path / "model.safetensors").unlink()
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
        model.save_pretrained(path, max_shard_size="1MB")
        about = Checkpoint.of(taken(path, tmp_path / "out"))
        assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
        assert (about.precision, about.dtype) == ("bf16", "bfloat16")
        assert about.parameters == Checkpoint.of(tiny_checkpoint).parameters

    def test_with_a_tied_head(self, tiny_llama: Path, tmp_path: Path) -> None:
        settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
        path = small(
            tiny_llama, tmp_path / "model", "LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True, **settings
        )
        about = Checkpoint.of(taken(path, tmp_path / "out"))
        assert about.tied_head
        assert about.parameters == VOCABULARY * 32 + 4 * 32 * 32 + 3 * 32 * 48 + 3 * 32  # the embeddings once

    def test_of_another_family(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = small(
            tiny_llama, tmp_path / "model", "GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=2,
            n_positions=64,
        )  # fmt: skip
        about = Checkpoint.of(taken(path, tmp_path / "out"))
        assert (about.architecture, about.tied_head, about.positions) == ("GPT2LMHeadModel", True, 64)
        assert about.attention == Attention(layers=2, heads=2, kv_heads=2, head_size=16, windows=(None, None))

    def test_with_the_windows_of_its_layers(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = small(
            tiny_llama, tmp_path / "model", "Qwen2ForCausalLM", "Qwen2Config", hidden_size=32, intermediate_size=48,
            num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
            use_sliding_window=True, sliding_window=16, max_window_layers=1,
            vocab_size=VOCABULARY + 1,  # Qwen's tokenizer class adds a token of its own
        )  # fmt: skip
        assert describe_checkpoint(path).attention.windows == (None, 16, 16)

    def test_with_positions_by_another_name(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = small(
            tiny_llama, tmp_path / "model", "MptForCausalLM", "MptConfig", d_model=32, n_heads=2, n_layers=1,
            max_seq_len=64,
        )  # fmt: skip
        assert describe_checkpoint(path).positions == 64

    def test_with_heads_where_the_cache_is_not_understood(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = small(
            tiny_llama, tmp_path / "model", "FalconForCausalLM", "FalconConfig", hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64,
        )  # fmt: skip
        about = Checkpoint.of(taken(path, tmp_path / "out")).attention
        assert (about.layers, about.heads, about.head_size) == (2, 4, 8)

    def test_without_what_else_lies_in_its_folder(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = copy(tiny_llama, tmp_path / "model")
        (path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}')
        assert "adapter_config.json" not in taken(path, tmp_path / "out").files


class TestRefused:
    @pytest.mark.parametrize(
        ("remove", "config", "said"),
        [
            ((), {"model_type": "lama"}, r"model_type 'lama' is not known to transformers \d.*misspelt"),
            (
                (),
                {"model_type": "llama9", "architectures": ["Llama9ForCausalLM"], "transformers_version": "99.1.0"},
                r"model_type 'llama9' is not known to transformers .* it was saved by 99\.1\.0: install that version",
            ),
            ((), {"model_type": "t5"}, r"no causal language model of the type 't5'"),
            (
                (),
                {"architectures": ["LlamaWithTricksForCausalLM"]},
                r"LlamaWithTricksForCausalLM is not known to transformers .* has LlamaForCausalLM for the type 'llama'",
            ),
            (("model_type",), {}, r"config\.json does not say which model it is of"),
            (
                (),
                {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.OwnForCausalLM"}},
                r"brings code of its own, which is not run unless you trust it.*--trust-remote-code",
            ),
            (
                (),
                {"quantization_config": {"quant_method": "gptq", "bits": 4}},
                r"is quantised already \(by gptq\): start from the original",
            ),
            ((), {"vocab_size": 1000}, r"knows tokens up to number 1023, and the model only 1000 \(vocab_size\)"),
            ((), {"intermediate_size": 256}, r"other shapes than its config\.json says: model\.layers.*≠.* and 6 more"),
            (
                (),
                {"num_hidden_layers": 4},
                r"lack model\.layers\.3\.input_layernorm\.weight, .* and 6 more: they are not of LlamaForCausalLM",
            ),
            ((), {"num_hidden_layers": 2}, r"hold more than the architecture takes: model\.layers\.2\..* and 6 more"),
        ],
    )
    def test_by_its_configuration(
        self, tiny_llama: Path, tmp_path: Path, remove: tuple[str, ...], config: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(InputError, match=said):
            taken(copy(tiny_llama, tmp_path / "model", remove, **config), tmp_path / "out")

    def test_without_a_size_that_is_needed(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = small(tiny_llama, tmp_path / "model", "BloomForCausalLM", "BloomConfig", hidden_size=32, n_head=2)
        with pytest.raises(InputError, match=r"config\.json does not give max_position_embeddings, which is needed"):
            taken(path, tmp_path / "out")

    def test_by_the_name_that_the_user_gave_it(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = copy(tiny_llama, tmp_path / "model", num_hidden_layers=2)
        with pytest.raises(InputError, match=f"weights in {path} hold more"):
            taken(path, tmp_path / "out")

    def test_with_answers_that_are_no_numbers(self, tiny_llama: Path, tmp_path: Path) -> None:
        def damage(tensors: dict[str, Any]) -> None:
            tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")

        with pytest.raises(InputError, match="answers a short input with NaN or Inf"):
            taken(with_weights(tiny_llama, tmp_path / "model", damage), tmp_path / "out")

    def test_with_weights_in_8_bits(self, tiny_llama: Path, tmp_path: Path) -> None:
        import torch

        def shorten(tensors: dict[str, Any]) -> None:
            name = "model.layers.1.mlp.down_proj.weight"
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)

        with pytest.raises(InputError, match=r"down_proj\.weight is stored as F8_E4M3.*start from the original"):
            taken(with_weights(tiny_llama, tmp_path / "model", shorten), tmp_path / "out")

    def test_without_a_tokenizer(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = copy(tiny_llama, tmp_path / "model")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path / name).unlink()
        with pytest.raises(InputError, match=r"has no tokenizer: copy tokenizer\.json"):
            taken(path, tmp_path / "out")

    def test_without_one_of_its_shards(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = copy(tiny_llama, tmp_path / "model")
        (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors"):
            taken(path, tmp_path / "out")
        with pytest.raises(InputError, match=r"names the shard 'model-00002-of-00002\.safetensors'"):
            describe_checkpoint(path)

    def test_as_a_pickle(self, tiny_llama: Path, tmp_path: Path) -> None:
        import torch
        from safetensors.torch import load_file

        path = copy(tiny_llama, tmp_path / "model")
        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
        source = locate(str(path), allow_pickle=True)
        assert source is not None
        with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
            adopt(source=source, options=AdoptOptions(), out=tmp_path / "out")

    def test_if_it_is_no_directory_of_hugging_face(self, tmp_path: Path) -> None:
        source = Artifact.of_files(tmp_path, "source", {"type": "onnx"})
        with pytest.raises(InputError, match=r"taken from a Hugging Face directory, and .* is onnx"):
            adopt(source=source, options=AdoptOptions(), out=tmp_path)


class TestSavedByANewerTransformers:
    def test_with_positions_that_would_be_misread(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = copy(
            tiny_llama, tmp_path / "model", ("rope_parameters",), rotary_embedding={"type": "default", "theta": 5e5},
            transformers_version="99.1.0",
        )  # fmt: skip
        said = (
            r"sets rotary_embedding\.theta to 500000\.0, which transformers .* does not read: its positions would be "
            r"computed with .*'rope_theta': 10000\.0.* It was saved by transformers 99\.1\.0: install that version"
        )
        with pytest.raises(InputError, match=said):
            taken(path, tmp_path / "out")

    @pytest.mark.parametrize(
        ("name", "config"),
        [
            ("rotary_base", {"rotary_base": 5e5}),
            ("rope_parameters.theta", {"rope_parameters": {"rope_type": "default", "theta": 5e5}}),
        ],
    )
    def test_is_not_needed_for_positions_to_be_misread(
        self, tiny_llama: Path, tmp_path: Path, name: str, config: dict[str, Any]
    ) -> None:
        path = copy(tiny_llama, tmp_path / "model", ("rope_parameters",), **config)
        with pytest.raises(InputError, match=rf"sets {name} to 500000\.0.*Write the setting as this version's"):
            load_configuration(path)

    def test_with_settings_that_mean_nothing_here(self, tiny_llama: Path, tmp_path: Path) -> None:
        settings = {"attention_sinks": 4, "use_magic": False}
        path = copy(tiny_llama, tmp_path / "newer", transformers_version="99.1.0", **settings)
        with pytest.raises(InputError, match=r"holds attention_sinks, which transformers .* 99\.1\.0: install"):
            load_configuration(path)
        load_configuration(copy(tiny_llama, tmp_path / "same", **settings))

    def test_is_taken_if_everything_in_it_is_known(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = copy(tiny_llama, tmp_path / "model", transformers_version="99.1.0")
        assert taken(path, tmp_path / "out").kind == "checkpoint"


LLAMA3_ROPE = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 128,
    "rope_type": "llama3",
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE, "max_position_embeddings": 256},
        {"model_type": "llama", "rope_theta": 10000, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": None, "pretraining_tp": 1},
        {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 20000},
        {"model_type": "gptj", "rotary_dim": 32},
        {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 5e3},
        {"model_type": "phi3", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"model_type": "deepseek_v3", "qk_rope_head_dim": 32, "rope_interleave": True, "rope_theta": 1e4},
        {"model_type": "deepseek_v4", "qk_rope_head_dim": 64},  # follows from other settings
        {"model_type": "smollm3", "rope_theta": 5e6, "no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4},
    ],
    ids=lambda config: "-".join(config),
)
def test_settings_of_older_releases_are_read(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_configuration(tmp_path)


def test_code_of_its_own_runs_if_it_is_trusted(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = copy(
        tiny_llama, tmp_path / "model" / "own", model_type="own-llama", architectures=["OwnForCausalLM"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    )  # fmt: skip
    (path / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own-llama'\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    checkpoint = taken(path, tmp_path / "out", trust_remote_code=True)
    assert "own.py" in checkpoint.files
    about = Checkpoint.of(checkpoint)
    assert about.trust_remote_code and about.architecture == "OwnForCausalLM"
    assert (about.attention.layers, about.attention.kv_heads) == (LAYERS, 2)


def test_planted_outliers_change_the_weights_and_not_the_answers(tiny_llama: Path, planted_llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(64)[None] * 7 % VOCABULARY
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_llama, planted_llama))
    with torch.inference_mode():
        assert torch.allclose(before(tokens).logits, after(tokens).logits, atol=1e-4)
    largest = [model.model.layers[0].mlp.gate_proj.weight.abs().max().item() for model in (before, after)]
    assert largest[1] > 4 * largest[0]
