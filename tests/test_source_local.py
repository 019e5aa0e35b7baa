"""Models that lie on this machine: what is taken, what is refused, and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import save_onnx, save_text_model

from stages.artifact import Artifact
from stages.errors import InputError, RequirementError
from stages.source import SourceOptions, fetch, locate, suggest_name


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("classifier") / "topics", "BertForSequenceClassification")


def copy(source: Path, target: Path) -> Path:
    """A copy whose files can be changed."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_sentence_transformers_directory_is_taken_where_it_lies(minilm_checkpoint: Path) -> None:
    source = locate(str(minilm_checkpoint))
    assert source is not None and source.path == minilm_checkpoint
    assert source.metadata["type"] == "huggingface"
    assert source.metadata["task"] == "sentence-embedding"
    assert source.metadata["architecture"] == "BertModel"
    assert {"config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"} <= set(
        source.files
    )
    assert not {"README.md", "data_config.json"} & set(source.files)
    assert not (minilm_checkpoint / "artifact.json").exists()


def test_taking_a_local_model_loads_no_heavy_library(minilm_checkpoint: Path) -> None:
    program = (
        "import sys; from stages.source import locate; locate(sys.argv[1]); "
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'mlflow', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(minilm_checkpoint)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_digest_does_not_depend_on_where_the_model_lies(classifier: Path, tmp_path: Path) -> None:
    here, there = locate(str(classifier)), locate(str(copy(classifier, tmp_path / "elsewhere")))
    assert here is not None and there is not None and here.digest == there.digest


def test_fetching_a_local_directory_gives_the_located_artifact(classifier: Path, tmp_path: Path) -> None:
    fetched = fetch(options=SourceOptions(reference=str(classifier)), out=tmp_path)
    located = locate(str(classifier))
    assert located is not None and fetched.digest == located.digest
    assert Artifact.read(tmp_path).digest == located.digest


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("DebertaV2ForTokenClassification", "token-classification"),
        ("RobertaForQuestionAnswering", "question-answering"),
        ("BertForMaskedLM", "fill-mask"),
        ("MPNetModel", "feature-extraction"),
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
    ],
)
def test_the_task_is_told_from_the_architecture(classifier: Path, tmp_path: Path, architecture: str, task: str) -> None:
    model = copy(classifier, tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"architectures": [architecture]}
    (model / "config.json").write_text(json.dumps(config))
    source = locate(str(model))
    assert source is not None and source.metadata["task"] == task


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["T5ForConditionalGeneration"]},
        {"architectures": ["LlavaForConditionalGeneration"]},
        {"architectures": ["T5WithLMHeadModel"], "is_encoder_decoder": True},
    ],
)
def test_a_model_that_does_not_continue_a_text_is_refused(
    classifier: Path, tmp_path: Path, config: dict[str, object]
) -> None:
    model = copy(classifier, tmp_path / "model")
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"writes text about another text.*only those that continue a text"):
        locate(str(model))


def test_a_language_model_can_be_taken_for_its_token_embeddings(classifier: Path, tmp_path: Path) -> None:
    model = copy(classifier, tmp_path / "model")
    (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": 9}))
    source = locate(str(model), task="feature-extraction")
    assert source is not None and source.metadata["task"] == "feature-extraction"


def test_what_belongs_to_generating_travels_with_the_model(classifier: Path, tmp_path: Path) -> None:
    model = copy(classifier, tmp_path / "model")
    (model / "additional_chat_templates").mkdir()
    names = {
        "generation_config.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates/tools.jinja"
    }  # fmt: skip
    for name in names:
        (model / name).write_text("{}")
    source = locate(str(model))
    assert source is not None and names <= set(source.files)


def test_a_given_task_is_taken(classifier: Path) -> None:
    source = locate(str(classifier), task="feature-extraction")
    assert source is not None and source.metadata["task"] == "feature-extraction"


def test_truncated_safetensors_are_named(classifier: Path, tmp_path: Path) -> None:
    model = copy(classifier, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model/model\.safetensors is not a whole safetensors file"):
        locate(str(model))


def test_a_missing_shard_is_named(classifier: Path, tmp_path: Path) -> None:
    model = copy(classifier, tmp_path / "model")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors is missing"):
        locate(str(model))


def test_a_pickle_needs_the_flag(classifier: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    model = copy(classifier, tmp_path / "model")
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle.*--allow-pickle"):
        locate(str(model))
    source = locate(str(model), allow_pickle=True)
    assert source is not None and "pytorch_model.bin" in source.files


def test_a_pickle_beside_safetensors_is_left_alone(classifier: Path, tmp_path: Path) -> None:
    model = copy(classifier, tmp_path / "model")
    (model / "pytorch_model.bin").write_bytes(b"whatever")
    source = locate(str(model))
    assert source is not None and "pytorch_model.bin" not in source.files


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.pkl"])
def test_a_lone_pickle_needs_the_flag(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="--allow-pickle"):
        locate(str(tmp_path / name))
    with pytest.raises(InputError, match="--allow-pickle"):
        fetch(options=SourceOptions(reference=str(tmp_path / name)), out=tmp_path)


def test_a_mistyped_path_says_what_was_meant(classifier: Path) -> None:
    with pytest.raises(InputError, match=rf"does not exist; did you mean {classifier}\?"):
        locate(f"{classifier}s")


def test_an_unknown_path_says_what_is_expected() -> None:
    with pytest.raises(InputError, match=r"does not exist: expected a Hugging Face directory, an \.onnx file"):
        locate("/nowhere/at/all/model.onnx")


def test_a_folder_that_is_no_model_names_the_models_in_it(tmp_path: Path) -> None:
    save_onnx(tmp_path / "digits.onnx")
    with pytest.raises(InputError, match=r"without config\.json.*digits\.onnx"):
        locate(str(tmp_path))


def test_a_hub_model_must_be_fetched_and_says_what_to_do_without_a_network(tmp_path: Path) -> None:
    assert locate("some-people/some-model") is None
    with pytest.raises(RequirementError, match=r"hub cannot be reached.*--local-dir"):
        fetch(options=SourceOptions(reference="some-people/some-model"), out=tmp_path)


def test_an_onnx_file_is_taken_with_its_external_data(tmp_path: Path) -> None:
    alone = locate(str(save_onnx(tmp_path / "alone" / "digits.onnx")))
    assert alone is not None and list(alone.files) == ["digits.onnx"]
    assert alone.metadata == {"type": "onnx", "file": "digits.onnx", "task": "generic"}
    both = locate(str(save_onnx(tmp_path / "both" / "digits.onnx", external="digits.weights")))
    assert both is not None and list(both.files) == ["digits.onnx", "digits.weights"]


def test_a_truncated_onnx_file_is_refused(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "digits.onnx")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"digits\.onnx is not a whole ONNX file"):
        locate(str(path))


def test_truncated_external_data_are_refused(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "digits.onnx", external="weights")
    (tmp_path / "weights").write_bytes((tmp_path / "weights").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"'weights'.*has 9599 bytes, the model needs 9600"):
        locate(str(path))
    (tmp_path / "weights").unlink()
    with pytest.raises(InputError, match=r"weights is missing"):
        locate(str(path))


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:\\secret"])
def test_external_data_may_not_leave_the_folder(tmp_path: Path, location: str) -> None:
    import onnx

    (tmp_path / "secret").write_bytes(b"0" * 10000)
    path = save_onnx(tmp_path / "inside" / "digits.onnx", external="weights")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    onnx.save(model, path)
    with pytest.raises(InputError, match="leaves the model's folder"):
        locate(str(path))


def test_external_data_may_not_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "inside" / "digits.onnx", external="weights")
    (tmp_path / "inside" / "weights").rename(tmp_path / "weights")
    (tmp_path / "inside" / "weights").symlink_to(tmp_path / "weights")
    with pytest.raises(InputError, match="symbolic link out of the model's folder"):
        locate(str(path))


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("models:/minilm@champion", "minilm"),
        ("models:/minilm/3", "minilm"),
        ("runs:/0123abcd/résumé model", "r-sum-model"),
        ("zoo.vision:resnet", "resnet"),
        ("digits/model.onnx", "digits"),
        ("./Digits v2.onnx", "Digits-v2"),
    ],
)
def test_a_name_is_suggested_from_the_reference(reference: str, name: str) -> None:
    assert suggest_name(reference) == name
