"""Checkpoints in transformers: what they score, what they generate, and what is said when they cannot be loaded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import as_artifact, changed_copy, text_tokens

from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.language.session import open_language


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Artifact:
    return as_artifact(tiny_llama)


@pytest.fixture(scope="module")
def prompts(tiny_llama: Path) -> Any:
    return text_tokens(tiny_llama, 3 * 24).reshape(3, 24)


def plain(path: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, local_files_only=True, **options).eval()


def plain_logits(path: Path, tokens: Any, **options: Any) -> Any:
    import torch

    with torch.inference_mode():
        return plain(path, **options)(torch.from_numpy(tokens)).logits.float().numpy()


def generated(session: Any, prompts: Any, count: int) -> Any:
    return np.stack(list(session.generate(prompts, count)), axis=1)


def test_scores_are_those_of_the_model(model: Artifact, prompts: Any) -> None:
    with open_language(model, 1) as session:
        given = session.logits(prompts)
    assert (given.dtype, given.shape) == (np.float32, (3, 24, 1024))
    assert given == pytest.approx(plain_logits(model.path, prompts), abs=1e-5)


def test_what_is_generated_from_the_cache_is_what_the_whole_sequence_is_scored_with(
    model: Artifact, prompts: Any
) -> None:
    with open_language(model, 1) as session:
        answers = generated(session, prompts, 30)
        scores = session.logits(np.concatenate([prompts, answers], axis=1))
    assert answers.shape == (3, 30)
    assert (answers == scores[:, 23:-1].argmax(axis=-1)).all()


def test_it_generates_what_transformers_does_and_does_not_stop_at_an_end_of_text(
    tiny_llama: Path, prompts: Any, tmp_path: Path
) -> None:
    import torch

    reference = plain(tiny_llama)
    reference.generation_config.eos_token_id = None
    wanted = reference.generate(torch.from_numpy(prompts), do_sample=False, max_new_tokens=30)[:, 24:].numpy()
    ends = changed_copy(tiny_llama, tmp_path / "ends", eos_token_id=int(wanted[0, 2]))
    (ends / "generation_config.json").write_text(json.dumps({"eos_token_id": int(wanted[0, 2]), "max_new_tokens": 5}))
    with open_language(as_artifact(ends), 1) as session:
        assert (generated(session, prompts, 30) == wanted).all()


def test_a_sequence_gets_the_same_answer_alone_and_beside_others(model: Artifact, prompts: Any) -> None:
    with open_language(model, 1) as session:
        together = generated(session, prompts, 20)
        alone = np.concatenate([generated(session, prompt[None], 20) for prompt in prompts])
    assert (together == alone).all()


def test_each_token_is_given_as_soon_as_it_is_known(model: Artifact, prompts: Any) -> None:
    session = open_language(model, 1)
    steps = session.generate(prompts, 2)
    assert next(steps).shape == (3,)
    session.close()
    with pytest.raises(StageError, match="closed"):
        next(steps)


def test_between_two_tokens_the_caller_is_not_in_inference_mode(model: Artifact, prompts: Any) -> None:
    import torch

    with open_language(model, 1) as session:
        for _ in session.generate(prompts, 2):
            assert not torch.is_inference_mode_enabled()


def test_float16_is_computed_in_float32_on_a_cpu_and_bfloat16_as_it_is(
    tiny_llama: Path, prompts: Any, tmp_path: Path
) -> None:
    import torch

    half = changed_copy(
        tiny_llama, tmp_path / "half", lambda all: {n: t.half() for n, t in all.items()}, dtype="float16"
    )
    with open_language(as_artifact(half), 1) as session:
        given = session.logits(prompts)
    assert given == pytest.approx(plain_logits(half, prompts, dtype=torch.float32), abs=1e-5)
    brain = changed_copy(
        tiny_llama, tmp_path / "brain", lambda all: {n: t.bfloat16() for n, t in all.items()}, dtype="bfloat16"
    )
    with open_language(as_artifact(brain), 1) as session:
        given = session.logits(prompts)
    assert (given == torch.from_numpy(given).bfloat16().float().numpy()).all()


@pytest.fixture(scope="module")
def rounded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights of eight bits in the format of compressed-tensors, and a checkpoint of what they stand for."""
    import torch

    plainly: dict[str, Any] = {}

    def pack(tensors: dict[str, Any]) -> dict[str, Any]:
        packed = {}
        for name, tensor in tensors.items():
            if "_proj" not in name:
                packed[name] = plainly[name] = tensor
                continue
            scale = tensor.abs().amax(dim=1, keepdim=True) / 127
            whole = (tensor / scale).round().to(torch.int8)
            packed |= {name: whole, f"{name}_scale": scale}
            plainly[name] = whole * scale
        return packed

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    stored = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "format": "int-quantized"}},
    }
    root = tmp_path_factory.mktemp("rounded")
    packed = changed_copy(tiny_llama, root / "packed", pack, quantization_config=stored)
    return packed, changed_copy(tiny_llama, root / "plainly", lambda _: plainly)


def test_a_quantised_checkpoint_is_run_as_it_is_stored(
    tiny_llama: Path, prompts: Any, rounded: tuple[Path, Path]
) -> None:
    packed, plainly = rounded
    with open_language(as_artifact(packed), 1) as session:
        given = session.logits(prompts)
    assert given == pytest.approx(plain_logits(plainly, prompts), abs=1e-4)
    assert np.abs(given - plain_logits(tiny_llama, prompts)).max() > 1e-3


def test_loading_and_the_first_call_say_nothing(
    rounded: tuple[Path, Path], prompts: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_language(as_artifact(rounded[0]), 1) as session:
        generated(session, prompts, 2)
    assert capfd.readouterr() == ("", "")


def test_the_threads_are_the_sessions_until_it_is_closed(model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    with open_language(model, before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before

    def fail(session: Any, tokens: Any) -> Any:
        raise StageError("the first call fails")

    monkeypatch.setattr("stages.language.runtime.transformers.TransformersSession.logits", fail)
    with pytest.raises(StageError, match="the first call"):
        open_language(model, before + 1)
    assert torch.get_num_threads() == before


def test_what_the_model_was_not_made_for_is_refused(model: Artifact, prompts: Any) -> None:
    with open_language(model, 1) as session:
        with pytest.raises(InputError, match="257 tokens are too long for a model that was made for sequences of 256"):
            session.logits(np.zeros((1, 257), dtype=np.int64))
        with pytest.raises(InputError, match="24 tokens and 233 more are too long"):
            session.generate(prompts, 233)
        with pytest.raises(InputError, match="the token 1024 is none of the model's 1024"):
            session.logits(prompts * 0 + 1024)
        with pytest.raises(InputError, match="none of them empty"):
            session.logits(prompts[:, :0])


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda all: {n: t for n, t in all.items() if "layers.1.mlp" not in n}, {}, "lack model.layers.1.mlp.down"),
        (lambda all: {n: t[:, :8] if "up_proj" in n else t for n, t in all.items()}, {}, "cannot be loaded"),
        (lambda all: all, {"model_type": "mistery"}, "mistery"),
        (lambda all: all, {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "--trust-remote-code"),
    ],
    ids=["a weight is missing", "a weight has another shape", "unknown architecture", "code of its own"],
)
def test_a_checkpoint_that_is_not_whole_or_not_known_is_refused(
    tiny_llama: Path, tmp_path: Path, change: Any, config: Any, said: str
) -> None:
    broken = changed_copy(tiny_llama, tmp_path / "broken", change, **config)
    with pytest.raises(InputError, match=said):
        open_language(as_artifact(broken), 1)


def test_a_file_that_was_cut_short_is_told_by_its_name(tiny_llama: Path, tmp_path: Path) -> None:
    broken = changed_copy(tiny_llama, tmp_path / "broken")
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is not a whole safetensors file"):
        open_language(as_artifact(broken), 1)


@pytest.mark.parametrize(
    ("stored", "library"), [("gptq", "optimum"), ("awq", "gptqmodel"), ("compressed-tensors", "compressed_tensors")]
)
def test_a_library_that_a_format_needs_is_named(
    tiny_llama: Path, tmp_path: Path, stored: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = changed_copy(tiny_llama, tmp_path / "packed", quantization_config={"quant_method": stored, "bits": 4})
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == library else found(name, *more)
    )
    with pytest.raises(RequirementError, match=rf"{library}.* the format {stored}.*optimize-pipeline\[llm\]"):
        open_language(as_artifact(packed), 1)
