"""Models from a real MLflow store, by version, by alias and by run."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import save_onnx, save_text_model

from stages.errors import InputError
from stages.source import SourceOptions, fetch, locate


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The tracking URI of a SQLite store with the models onnx, transformers, pytorch, program; and the run's id."""
    import mlflow
    import numpy as np
    import onnx
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    checkpoint = save_text_model(folder / "checkpoint", "BertForSequenceClassification")
    pipeline = {
        "model": transformers.BertForSequenceClassification.from_pretrained(checkpoint),
        "tokenizer": transformers.AutoTokenizer.from_pretrained(checkpoint),
    }
    example, linear = np.ones((2, 4), dtype=np.float32), torch.nn.Linear(4, 2)
    try:
        experiment = mlflow.create_experiment("models", artifact_location=str(folder / "artifacts"))
        with mlflow.start_run(experiment_id=experiment) as run:
            common = {"pip_requirements": ["torch"]}
            small = onnx.load(save_onnx(folder / "small.onnx"))
            mlflow.onnx.log_model(small, name="onnx", registered_model_name="onnx", **common)
            mlflow.transformers.log_model(
                pipeline, name="tf", registered_model_name="transformers", task="text-classification", **common
            )
            for name, form in (("pytorch", "pickle"), ("program", "pt2")):
                mlflow.pytorch.log_model(
                    linear, name=name, registered_model_name=name, serialization_format=form, input_example=example,
                    **common,
                )  # fmt: skip
        mlflow.MlflowClient().set_registered_model_alias("onnx", "champion", "1")
    finally:
        mlflow.set_tracking_uri(before)
    return uri, run.info.run_id


def test_a_registered_model_must_be_fetched() -> None:
    assert locate("models:/onnx/1") is None


def test_an_onnx_model_by_version_alias_and_run_is_one_and_the_same(store: tuple[str, str], tmp_path: Path) -> None:
    uri, run = store
    digests = set()
    for place, reference in enumerate(("models:/onnx/1", "models:/onnx@champion", f"runs:/{run}/onnx")):
        out = tmp_path / str(place)
        out.mkdir()
        source = fetch(options=SourceOptions(reference=reference, tracking_uri=uri), out=out)
        assert source.metadata["type"] == "onnx"
        assert all("registered_model_meta" not in name and "MLmodel" not in name for name in source.files)
        assert {file.name for file in out.iterdir()} == {*source.files, "artifact.json"}
        digests.add(source.digest)
    assert len(digests) == 1


def test_a_transformers_model_comes_with_its_tokenizer(store: tuple[str, str], tmp_path: Path) -> None:
    source = fetch(options=SourceOptions(reference="models:/transformers/1", tracking_uri=store[0]), out=tmp_path)
    assert source.metadata["type"] == "huggingface"
    assert source.metadata["task"] == "text-classification"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(source.files)
    assert {file.name for file in tmp_path.iterdir()} == {*source.files, "artifact.json"}


def test_a_pickled_pytorch_model_needs_the_flag(store: tuple[str, str], tmp_path: Path) -> None:
    options = SourceOptions(reference="models:/pytorch/1", tracking_uri=store[0])
    with pytest.raises(InputError, match=r"models:/pytorch/1 .* is a pickle.*--allow-pickle"):
        fetch(options=options, out=tmp_path)
    assert not list(tmp_path.iterdir())
    source = fetch(options=options.model_copy(update={"allow_pickle": True}), out=tmp_path)
    assert source.metadata["axes"] == {"input": {"0": "batch"}}


def test_a_pytorch_model_logged_as_a_program_needs_none(store: tuple[str, str], tmp_path: Path) -> None:
    source = fetch(options=SourceOptions(reference="models:/program/1", tracking_uri=store[0]), out=tmp_path)
    assert source.metadata["type"] == "exported"


@pytest.mark.parametrize("reference", ["models:/nobody/1", "models:/onnx/7", "models:/onnx@nobody", "runs:/0123/model"])
def test_a_model_that_is_not_there_is_named(store: tuple[str, str], tmp_path: Path, reference: str) -> None:
    with pytest.raises(InputError, match=f"{reference} is not in MLflow at sqlite:"):
        fetch(options=SourceOptions(reference=reference, tracking_uri=store[0]), out=tmp_path)
