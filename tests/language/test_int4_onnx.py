"""INT4 for ONNX: what the builder wrote is what was promised, and ONNX Runtime GenAI answers as the original does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import as_artifact, changed_copy, text_tokens, window_data
from decoders import operators, products, usual_decoder

from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.language.checkpoint import Checkpoint
from stages.language.quantise import onnx_decoder
from stages.language.quantise.int4_onnx import Int4Onnx
from stages.language.quantise.linear_layers import linear_layers
from stages.language.runtime import genai
from stages.language.session import LanguageSession, Tokens, open_language
from stages.language.variants import quantise_checkpoint
from stages.variants import parse_variant

_LAYERS = 3


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return usual_decoder(tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="module")
def rows(tiny_llama: Path) -> Tokens:
    """[12, 64] tokens of a module, each row begun as the tokenizer begins a text."""
    return np.column_stack([np.zeros(12, dtype=np.int64), text_tokens(tiny_llama, 12 * 63).reshape(12, 63)])


def build(checkpoint: Artifact, out: Path, data: Artifact | None = None, **parameters: Any) -> Artifact:
    out.mkdir()
    return quantise_checkpoint(checkpoint, Int4Onnx(**parameters), out, data=data)


def loss(session: LanguageSession, rows: Tokens) -> float:
    """The mean negative log-likelihood, in nats a token."""
    scores = session.logits(rows)[:, :-1].astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    said = np.take_along_axis(scores, rows[:, 1:, None], axis=2)[..., 0]
    return float((np.log(np.exp(scores).sum(axis=-1)) - said).mean())


def altered(decoder: Artifact, path: Path, change: Any) -> Artifact:
    """The same decoder with another `genai_config.json`."""
    shutil.copytree(decoder.path, path)
    config = json.loads((path / genai.CONFIG).read_text())
    change(config)
    (path / genai.CONFIG).write_text(json.dumps(config))
    return Artifact.write(path, "checkpoint", decoder.metadata)


def test_the_promised_layers_are_in_4_bits_and_the_head_in_8(decoder: Artifact, tiny_checkpoint: Artifact) -> None:
    found = {name: attributes for name, _, attributes in products(decoder)}
    assert len(found) == 5 * _LAYERS + 1  # q, k and v are one
    head = found.pop("/lm_head/MatMul_Q8")
    assert (head["bits"], head["K"], head["N"]) == (8, 128, 1024)
    assert {(item["bits"], item["block_size"], item["accuracy_level"]) for item in found.values()} == {(4, 32, 4)}

    about, before = Checkpoint.of(decoder), Checkpoint.of(tiny_checkpoint)
    assert (about.runtime, about.precision, about.dtype) == ("onnxruntime-genai", "int4", "float32")
    assert (about.positions, about.attention, about.begins_with) == (before.positions, before.attention, 0)
    assert about.quantisation is not None
    assert about.quantisation.model_dump(exclude={"version"}) == {
        "format": "onnx", "method": "default", "weight_bits": 4, "activation_bits": 8, "group_size": 32,
        "symmetric": False, "act_order": False, "layers": 7 * _LAYERS + 1, "linear_layers": 7 * _LAYERS + 1,
        "library": "onnxruntime-genai", "asked_for": None,
    }  # fmt: skip
    assert decoder.made_from == {"model": tiny_checkpoint.digest}


def test_what_lies_beside_the_graph_is_the_models_and_says_nothing_of_this_machine(
    decoder: Artifact, tiny_checkpoint: Artifact
) -> None:
    import onnx
    import onnxruntime_genai

    others = {name for name in tiny_checkpoint.files if not name.endswith(".safetensors")}
    assert set(decoder.files) == {"model.onnx", "model.onnx.data", "genai_config.json", *others}
    for name in others - {"tokenizer_config.json"}:
        assert decoder.files[name] == tiny_checkpoint.files[name], name
    assert "local_files_only" not in (decoder.path / "tokenizer_config.json").read_text()
    written = b"".join((decoder.path / name).read_bytes() for name in decoder.files if name != "model.onnx.data")
    assert str(tiny_checkpoint.path).encode() not in written and str(decoder.path).encode() not in written
    # The builder would stamp it with the commit of whatever repository Python is installed in.
    graph = onnx.load(decoder.path / "model.onnx", load_external_data=False)
    assert graph.producer_version == f"{onnxruntime_genai.__version__}+{onnxruntime_genai.__commit__[:7]}"


def test_its_loss_is_the_originals(decoder: Artifact, tiny_checkpoint: Artifact, rows: Tokens) -> None:
    with open_language(decoder, 1) as session, open_language(tiny_checkpoint, 1) as original:
        assert loss(session, rows) == pytest.approx(loss(original, rows), abs=5e-3)


def test_tokens_from_the_cache_are_those_of_the_whole_sequence(decoder: Artifact, rows: Tokens) -> None:
    with open_language(decoder, 1) as session:
        generated = np.column_stack(list(session.generate(rows[:3, :20], 12)))
        assert generated.shape == (3, 12) and generated.dtype == np.int64
        whole = session.logits(np.column_stack([rows[:3, :20], generated]))
        assert whole.shape == (3, 32, 1024) and whole.dtype == np.float32
        assert (whole[:, 19:-1].argmax(axis=-1) == generated).all()


@pytest.mark.parametrize("last", [0, 1, 2, 1023], ids=["begins", "ends", "pads", "ours"])
def test_a_sequence_may_end_with_any_token(decoder: Artifact, rows: Tokens, last: int) -> None:
    """GenAI takes padding at the end of a prompt for none of it."""
    tokens = rows[:2, :10].copy()
    tokens[0, 8:] = last
    with open_language(decoder, 1) as session:
        longer = session.logits(np.column_stack([tokens, rows[:2, 10:12]]))[:, :10]
        np.testing.assert_allclose(session.logits(tokens), longer, atol=1e-4)
        (first,) = session.generate(tokens, 1)
        assert (first == longer[:, -1].argmax(axis=-1)).all()


def test_generation_goes_on_past_the_end_token_of_the_engine(
    decoder: Artifact, rows: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_language(decoder, 1) as session:
        expected = np.column_stack(list(session.generate(rows[:2, :20], 10)))
    likely = [int(expected[0, 2]), int(expected[1, 4]), *range(1000, 1003)]
    taken: list[int] = []

    def choose(vocabulary: int, ends: set[int]) -> int:
        taken.append(next(token for token in likely if token not in ends))
        return taken[-1]

    monkeypatch.setattr(genai, "_end_token", choose)
    with open_language(decoder, 1) as session:
        generated = np.column_stack(list(session.generate(rows[:2, :20], 10)))
    assert (generated == expected).all()
    assert len(taken) > 1


def test_what_a_checkpoint_recommends_for_chats_does_not_count(decoder: Artifact, rows: Tokens, tmp_path: Path) -> None:
    with open_language(decoder, 1) as session:
        expected = np.column_stack(list(session.generate(rows[:2, :20], 8)))

    def recommend(config: dict[str, Any]) -> None:
        config["model"]["eos_token_id"] = [int(token) for token in np.unique(expected)]
        config["search"] |= {"do_sample": True, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "min_length": 30}

    with open_language(altered(decoder, tmp_path / "other", recommend), 1) as session:
        assert (np.column_stack(list(session.generate(rows[:2, :20], 8))) == expected).all()


def test_it_runs_on_as_many_threads_as_asked_for(decoder: Artifact) -> None:
    def running() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = running()
    for threads in (1, 3):
        with open_language(decoder, threads):
            assert running() == before + threads - 1
        assert running() == before


def test_the_longest_sequence_fits_and_no_longer(decoder: Artifact, rows: Tokens) -> None:
    longest = np.resize(rows, (1, 256))
    with open_language(decoder, 1) as session:
        assert session.logits(longest).shape == (1, 256, 1024)
        assert len(list(session.generate(longest[:, :250], 6))) == 6
        with pytest.raises(InputError, match=r"250 tokens and 7 more are too long for a model .* sequences of 256"):
            session.generate(longest[:, :250], 7)
        with pytest.raises(InputError, match="the token 1024 is none of the model's 1024"):
            session.logits(np.array([[1, 1024]]))
    with pytest.raises(StageError, match="the session was closed"):
        session.logits(longest)


def test_a_decoder_that_cannot_be_loaded_is_refused(decoder: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be loaded by ONNX Runtime GenAI: .*other.onnx"):
        open_language(altered(decoder, tmp_path / "a", lambda c: c["model"]["decoder"].update(filename="other.onnx")))
    with pytest.raises(InputError, match="cannot be loaded by ONNX Runtime GenAI"):
        open_language(altered(decoder, tmp_path / "b", lambda config: config.pop("model")))


def test_genais_own_tokenizer_differs_only_in_what_it_puts_before_a_text(decoder: Artifact) -> None:
    import onnxruntime_genai
    from transformers import AutoTokenizer

    theirs = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(decoder.path)))
    ours = AutoTokenizer.from_pretrained(decoder.path)
    text = "def area(radius):\n    return 3.14159 * radius ** 2  # π·r²\n"
    assert theirs.encode(text).tolist() == ours(text, add_special_tokens=False)["input_ids"]
    assert [Checkpoint.of(decoder).begins_with, *theirs.encode(text).tolist()] == ours(text)["input_ids"]


def with_tied_head(tiny_llama: Path, path: Path) -> Artifact:
    """Another model: its scores are made with the embedding, which it was not trained for."""

    def one_matrix(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}

    return as_artifact(changed_copy(tiny_llama, path, one_matrix, tie_word_embeddings=True))


def agreement(made: Artifact, original: Artifact, rows: Tokens) -> float:
    """The correlation of their scores."""
    with open_language(made, 1) as session, open_language(original, 1) as reference:
        return float(np.corrcoef(session.logits(rows).ravel(), reference.logits(rows).ravel())[0, 1])


def test_layers_are_excluded_with_those_that_servers_hold_together_with_them(
    tiny_llama: Path, rows: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    checkpoint = with_tied_head(tiny_llama, tmp_path / "tied")
    exclude = ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj")
    made = build(checkpoint, tmp_path / "out", symmetric=True, head="fp32", exclude=exclude)
    assert not list(home.rglob("*"))  # neither caches nor reports for the makers

    whole = {name for name, operator, _ in products(made) if operator == "MatMul"}
    first, last = "/model/layers.0/attn", "/model/layers.2/mlp"
    assert whole == {
        "/lm_head/MatMul", f"{first}/q_proj/MatMul", f"{first}/k_proj/MatMul", f"{first}/v_proj/MatMul",
        f"{last}/down_proj/MatMul",
    }  # fmt: skip
    assert "GatherBlockQuantized" not in operators(made)
    quantisation = Checkpoint.of(made).quantisation
    assert quantisation is not None
    assert (quantisation.layers, quantisation.linear_layers) == (7 * _LAYERS - 4, 7 * _LAYERS + 1)
    assert (quantisation.method, quantisation.symmetric) == ("default", True)
    assert agreement(made, checkpoint, rows) > 0.99  # a wrong layer leaves far less


def test_a_head_that_is_the_embedding_takes_it_along_to_4_bits(
    tiny_llama: Path, rows: Tokens, decoder: Artifact, tmp_path: Path
) -> None:
    checkpoint = with_tied_head(tiny_llama, tmp_path / "tied")
    made = build(checkpoint, tmp_path / "out", head="int4", algorithm="k_quant", symmetric=True)
    quantisation = Checkpoint.of(made).quantisation
    assert quantisation is not None
    assert (quantisation.method, quantisation.symmetric) == ("k_quant", False)  # it has zero points in any case
    assert "GatherBlockQuantized" in operators(made)
    assert made.size_bytes < 0.6 * decoder.size_bytes
    assert 0.98 < agreement(made, checkpoint, rows) < 0.9999


def test_gptq_first(tiny_checkpoint: Artifact, tiny_llama: Path, rows: Tokens, tmp_path: Path) -> None:
    data = window_data(tmp_path / "data", text_tokens(tiny_llama, 16 * 64), 64)
    made = build(tiny_checkpoint, tmp_path / "out", data, source="gptq", block_size=128)
    quantisation = Checkpoint.of(made).quantisation
    assert quantisation is not None
    assert (quantisation.method, quantisation.symmetric, quantisation.group_size) == ("gptq", True, 128)
    assert made.made_from == {"model": tiny_checkpoint.digest, "data": data.digest}
    assert not [name for name in made.files if name.endswith(".safetensors")]
    # So the builder calls what it takes over; what it rounds itself is called MatMul_Q4.
    assert {name.rpartition("/")[2] for name, _, _ in products(made)} == {"MatMulNBits", "MatMul_Q8"}
    with open_language(made, 1) as session, open_language(tiny_checkpoint, 1) as original:
        assert loss(session, rows) == pytest.approx(loss(original, rows), abs=5e-3)
    with pytest.raises(InputError, match="made with calibration data, and none were given"):
        build(tiny_checkpoint, tmp_path / "without", source="gptq")


def test_what_the_builder_would_get_wrong_is_refused_before_it_starts(
    tiny_checkpoint: Artifact, tiny_llama: Path, decoder: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"128 inputs of model.layers.0.self_attn.q_proj are an odd number of blocks"):
        build(tiny_checkpoint, tmp_path / "a", algorithm="k_quant", block_size=128)
    with pytest.raises(InputError, match=r"one matrix with the embedding.*`symmetric: true`"):
        build(with_tied_head(tiny_llama, tmp_path / "tied"), tmp_path / "b", head="int4")
    with pytest.raises(InputError, match=r"names 'model.layers.0.mlp.dwn_proj'.*did you mean"):
        build(tiny_checkpoint, tmp_path / "c", exclude=("model.layers.0.mlp.dwn_proj",))
    with pytest.raises(InputError, match="quantised already"):
        build(Artifact(tiny_llama, "checkpoint", "", {}, decoder.metadata), tmp_path / "d")
    with pytest.raises(InputError, match="GPTQ has no groups of 16"):
        parse_variant({"type": "int4-onnx", "source": "gptq", "block_size": 16})
    with pytest.raises(InputError, match="nothing can be excluded"):
        parse_variant({"type": "int4-onnx", "source": "gptq", "exclude": ["model.layers.0.mlp.down_proj"]})
    with pytest.raises(InputError, match="algorithm"):
        parse_variant({"type": "int4-onnx", "algorithm": "gptq"})  # ONNX Runtime's own changes nothing


def test_an_architecture_that_the_builder_does_not_know_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    path = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_embd=64, n_layer=1, n_head=2, n_positions=64)).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_llama / name, path / name)
    about = Checkpoint.of(as_artifact(tiny_llama)).model_copy(update={"architecture": "GPT2LMHeadModel"})
    with pytest.raises(InputError, match=r"builder cannot write .* as a decoder: .*not currently supported"):
        build(Artifact.of_files(path, "checkpoint", about.metadata()), tmp_path / "out")


def test_a_decoder_that_is_not_what_was_promised_is_noticed(
    decoder: Artifact, tiny_checkpoint: Artifact, tmp_path: Path
) -> None:
    layers, about = linear_layers(tiny_checkpoint), Checkpoint.of(tiny_checkpoint)
    promised = dict.fromkeys(layers.shapes, 4)
    onnx_decoder.ensure_layers(layers, promised, 8, decoder.path)
    with pytest.raises(StageError, match=r"there are 589,824 weights in 4 bits, where it should be 573,440 .* in full"):
        onnx_decoder.ensure_layers(layers, promised | {"model.layers.0.self_attn.o_proj": 32}, 8, decoder.path)
    with pytest.raises(StageError, match="the head is in 8 bits, it should be in full"):
        onnx_decoder.ensure_layers(layers, promised, 32, decoder.path)
    deeper = about.model_copy(update={"attention": about.attention.model_copy(update={"layers": 4})})
    with pytest.raises(StageError, match=r"does not take the keys and values of its 4 layers: past_key_values.3.key"):
        onnx_decoder.ensure_cache(deeper, decoder.path)
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    with pytest.raises(StageError, match=r"the decoder takes [\d,]+ bytes, the checkpoint 1,000"):
        onnx_decoder.ensure_smaller(Artifact.of_files(tmp_path, "checkpoint", {}), decoder.path)


def test_a_decoder_that_answers_what_is_no_number_is_noticed(decoder: Artifact, tmp_path: Path) -> None:
    import onnx_ir

    shutil.copytree(decoder.path, tmp_path / "broken")
    graph = onnx_ir.load(decoder.path / "model.onnx")
    norm = next(value for name, value in graph.graph.initializers.items() if name.endswith("layernorm.weight"))
    assert norm.const_value is not None
    norm.const_value = onnx_ir.tensor(np.full_like(norm.const_value.numpy(), np.nan), name=norm.name)
    onnx_ir.save(graph, tmp_path / "broken" / "model.onnx", external_data="other.data")
    broken = Artifact.of_files(tmp_path / "broken", "checkpoint", decoder.metadata)
    with pytest.raises(StageError, match="answers NaN or infinity"):
        onnx_decoder.ensure_finite(broken)


def test_modules_of_the_users_are_not_taken_for_the_builders(
    tiny_checkpoint: Artifact, decoder: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    for name in ("quantization", "builders", "loaders"):
        (tmp_path / "own" / f"{name}.py").write_text("raise ImportError('this is not the one')")
    monkeypatch.syspath_prepend(tmp_path / "own")
    assert build(tiny_checkpoint, tmp_path / "made").digest == decoder.digest
