"""A decoder as a plain graph: what one step takes and gives, in this process and from the real Triton."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import text_tokens
from decoders import usual_decoder

from model_repository import Repository, ServerError
from model_repository.environment import ServerEnvironment, server_environment
from model_repository.server import Server
from stages.artifact import Artifact
from stages.errors import InputError, StageError
from stages.language.decoder.graph import decoder_samples, empty_cache, next_cache, triton_model
from stages.language.session import Tokens, open_language
from stages.model import Model
from stages.package import PackageOptions, package
from stages.runtime import RuntimeOptions, Session, open_session
from stages.runtime.triton import TritonSession
from stages.verify import VerifyOptions, verify

_NEW_TOKENS = 4


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return usual_decoder(tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="module")
def model(decoder: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return triton_model(decoder, tmp_path_factory.mktemp("decoder_model"))


@pytest.fixture(scope="module")
def release(model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    options = PackageOptions(name="decoder", threads=1, max_batch_size=0)
    return package(model=model, options=options, out=tmp_path_factory.mktemp("decoder_release"))


@pytest.fixture(scope="module")
def triton() -> ServerEnvironment:
    try:
        return server_environment()
    except ServerError as error:
        pytest.skip(f"no Triton here: {error}")


@pytest.fixture(scope="module")
def rows(tiny_llama: Path) -> Tokens:
    """[8, 24] tokens of a module."""
    return text_tokens(tiny_llama, 8 * 24).reshape(8, 24)


def greedy(session: Session, prompts: Tokens) -> Tokens:
    """[sequences, `_NEW_TOKENS`] likeliest tokens, the cache handed back at each step."""
    answers = session({"input_ids": prompts, **empty_cache(session.signature, len(prompts))})
    found = [answers["logits"][:, -1].argmax(axis=-1)]
    for _ in range(_NEW_TOKENS - 1):
        answers = session({"input_ids": found[-1][:, None], **next_cache(answers)})
        found.append(answers["logits"][:, -1].argmax(axis=-1))
    return np.column_stack(found)


def test_the_plain_graph_answers_as_genai_does(decoder: Artifact, model: Artifact, rows: Tokens) -> None:
    with open_language(decoder, 1) as genai, open_session(model, RuntimeOptions(threads=1)) as session:
        whole = session({"input_ids": rows, **empty_cache(session.signature, len(rows))})
        np.testing.assert_allclose(whole["logits"], genai.logits(rows), atol=1e-5)
        assert whole["present.2.value"].shape == (8, 2, 24, 32)
        prompts = rows[:3, :16]
        assert (greedy(session, prompts) == np.column_stack(list(genai.generate(prompts, _NEW_TOKENS)))).all()


def test_all_that_is_asked_of_a_client_are_tokens_and_the_cache(
    model: Artifact, decoder: Artifact, tiny_checkpoint: Artifact, tmp_path: Path
) -> None:
    described = Model.of(model)
    assert (described.task, described.precision) == ("text-generation", "int4")
    shapes = {tensor.name: tensor.shape for tensor in (*described.signature.inputs, *described.signature.outputs)}
    caches = {f"{kind}.{layer}.{part}" for kind in ("past_key_values", "present") for layer in range(3)
              for part in ("key", "value")}  # fmt: skip
    assert shapes.keys() == {"input_ids", "logits", *caches}
    assert shapes["input_ids"] == ("batch", "sequence") and shapes["logits"] == ("batch", "sequence", 1024)
    assert shapes["past_key_values.0.key"] == ("batch", 2, "past", 32)
    assert shapes["present.0.key"] == ("batch", 2, "total", 32)
    assert described.operators["MatMulNBits"] == 16
    assets = {name for name in model.files if name.startswith("assets/")}
    assert assets == {f"assets/{name}" for name in tiny_checkpoint.files if not name.endswith(".safetensors")}
    with pytest.raises(InputError, match="is a checkpoint for transformers, not a decoder in ONNX"):
        triton_model(tiny_checkpoint, tmp_path)


def test_of_several_sequences_no_more_than_one_token_is_added_at_a_time(model: Artifact, rows: Tokens) -> None:
    """Why requests are not put together by the server: of one that may come alone, two may not."""
    with open_session(model, RuntimeOptions(threads=1)) as session:

        def add(sequences: int) -> Tokens:
            cache = next_cache(
                session({"input_ids": rows[:sequences, :8], **empty_cache(session.signature, sequences)})
            )
            return session({"input_ids": rows[:sequences, 8:12], **cache})["logits"]

        whole = session({"input_ids": rows[:1, :12], **empty_cache(session.signature, 1)})["logits"]
        np.testing.assert_allclose(add(1), whole[:, 8:], atol=1e-4)
        with pytest.raises(StageError, match="batch_size must be 1 when sequence_length > 1 and past context is given"):
            add(2)


def test_samples_are_beginnings_or_single_steps(model: Artifact, rows: Tokens) -> None:
    steps, beginnings = decoder_samples(model, rows, 10), decoder_samples(model, rows, 0)
    assert [row.tolist() for row in steps.inputs["input_ids"]] == rows[:, 10:11].tolist()
    assert {value.shape for value in steps.inputs["past_key_values.1.key"]} == {(2, 10, 32)}
    assert [len(row) for row in beginnings.inputs["input_ids"]] == list(range(1, 9))
    assert {value.shape for value in beginnings.inputs["past_key_values.1.key"]} == {(2, 0, 32)}
    with pytest.raises(InputError, match="24 of 24 tokens cannot be in a cache"):
        decoder_samples(model, rows, 24)


def test_a_release_of_it_is_verified(
    triton: ServerEnvironment, model: Artifact, release: Artifact, rows: Tokens, tmp_path: Path
) -> None:
    for name in ("data", "out"):
        (tmp_path / name).mkdir()
    decoder_samples(model, rows, 10).save(tmp_path / "data")
    data = Artifact.write(tmp_path / "data", "dataset", {})
    found = verify(release=release, model=model, data=data, options=VerifyOptions(), out=tmp_path / "out").metadata
    assert found["samples"] == 8 and found["max_batch_size"] == 0 and found["requests"] == found["executions"]
    for largest in found["largest_difference"].values():
        assert largest.keys() == {tensor.name for tensor in Model.of(model).signature.outputs}
        assert max(largest.values()) < 1e-5


def test_tokens_are_generated_over_the_wire(
    triton: ServerEnvironment, decoder: Artifact, release: Artifact, rows: Tokens, tmp_path: Path
) -> None:
    prompts = rows[:3, :16]
    with open_language(decoder, 1) as session:
        expected = np.column_stack(list(session.generate(prompts, _NEW_TOKENS)))
        following = session.logits(np.column_stack([prompts, expected]))[:, -1]
    Repository(tmp_path).publish("decoder", release.path, {})
    with Server(tmp_path, triton, grace_s=0) as server:
        for address in (server.http_address, server.grpc_address):
            with TritonSession(address, "decoder") as served:
                assert (greedy(served, prompts) == expected).all()
                begun = served({"input_ids": np.column_stack([prompts, expected[:, :-1]]),
                                **empty_cache(served.signature, len(prompts))})  # fmt: skip
                answers = served({"input_ids": expected[:, -1:], **next_cache(begun)})
                np.testing.assert_allclose(answers["logits"][:, 0], following, atol=1e-4)
