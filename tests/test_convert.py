"""From a checkpoint to an ONNX graph: what comes out, what it agrees with, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import save_image_model, save_onnx, save_text_model

from stages.artifact import Artifact
from stages.convert import ConvertOptions, convert
from stages.convert.writer import write
from stages.errors import InputError, StageError
from stages.model import Model, Task
from stages.runtime import RuntimeOptions, open_session
from stages.source import locate


def converted(path: Path, out: Path, task: Task | None = None, **options: Any) -> Artifact:
    source = locate(str(path), task=task)
    assert source is not None
    out.mkdir()
    return convert(source=source, options=ConvertOptions(**options), out=out)


def shapes(tensors: Any) -> dict[str, list[int | str]]:
    return {tensor.name: list(tensor.shape) for tensor in tensors}


@pytest.mark.parametrize(
    ("head", "task", "outputs"),
    [
        ("BertForSequenceClassification", "text-classification", {"logits": ["batch", 2]}),
        ("BertForTokenClassification", "token-classification", {"logits": ["batch", "sequence", 2]}),
        (
            "BertForQuestionAnswering",
            "question-answering",
            {"start_logits": ["batch", "sequence"], "end_logits": ["batch", "sequence"]},
        ),
        ("BertForMaskedLM", "fill-mask", {"logits": ["batch", "sequence", 64]}),
        ("BertModel", "feature-extraction", {"last_hidden_state": ["batch", "sequence", 16]}),
    ],
)
def test_a_text_model_keeps_its_head(tmp_path: Path, head: str, task: str, outputs: dict[str, Any]) -> None:
    artifact = converted(save_text_model(tmp_path / "source", head), tmp_path / "model")
    model = Model.of(Artifact.read(tmp_path / "model"))
    assert artifact.kind == "model" and model.task == task and model.opset == 20
    assert shapes(model.signature.outputs) == outputs
    assert shapes(model.signature.inputs) == {
        name: ["batch", "sequence"] for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert {tensor.dtype for tensor in model.signature.inputs} == {"int64"}
    assert model.operators["MatMul"] > 0
    assert {"assets/config.json", "assets/tokenizer.json", "assets/tokenizer_config.json"} <= set(artifact.files)
    if task.endswith("classification"):
        assert model.labels == ("LABEL_0", "LABEL_1")
        assert (tmp_path / "model/assets/labels.txt").read_text() == "LABEL_0\nLABEL_1\n"


@pytest.mark.parametrize("family", ["vit", "resnet", "convnext"])
def test_an_image_classifier_takes_batches_of_its_own_size(tmp_path: Path, family: str) -> None:
    artifact = converted(save_image_model(tmp_path / "source", family), tmp_path / "model")
    model = Model.of(artifact)
    assert model.task == "image-classification"
    assert shapes(model.signature.inputs) == {"pixel_values": ["batch", 3, 32, 32]}
    assert shapes(model.signature.outputs) == {"logits": ["batch", 4]}
    assert model.labels == ("class 0", "class 1", "class 2", "class 3")
    assert "assets/preprocessor_config.json" in artifact.files


def test_other_batch_sizes_and_lengths_give_what_pytorch_gives(tmp_path: Path) -> None:
    artifact = converted(save_text_model(tmp_path / "source", "BertModel"), tmp_path / "model")
    source = locate(str(tmp_path / "source"))
    assert source is not None
    rng = np.random.default_rng(5)
    with open_session(artifact) as graph, open_session(source, RuntimeOptions(name="pytorch", threads=1)) as module:
        assert graph.signature == module.signature
        for size, length in ((1, 1), (1, 40), (7, 13)):
            mask = (np.arange(length) < rng.integers(1, length + 1, size=(size, 1))).astype(np.int64)
            batch = {
                "input_ids": rng.integers(5, 64, size=(size, length)) * mask,
                "attention_mask": mask,
                "token_type_ids": np.zeros_like(mask),
            }
            for name, answer in module(batch).items():
                np.testing.assert_allclose(graph(batch)[name], answer, atol=1e-5)


def test_converting_again_elsewhere_gives_the_same_digest(tmp_path: Path) -> None:
    first = converted(save_text_model(tmp_path / "source", "BertForSequenceClassification"), tmp_path / "first")
    (tmp_path / "source").rename(tmp_path / "moved")
    program = (
        "import sys; from pathlib import Path; from stages.source import locate; from stages.convert import convert; "
        "print(convert(source=locate(sys.argv[1]), out=Path(sys.argv[2])).digest)"
    )
    (tmp_path / "second").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "moved"), str(tmp_path / "second")],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout == f"{first.digest}\n", "one line on standard output, and the same digest"
    assert b".py" not in (tmp_path / "first/model.onnx").read_bytes()


def test_a_head_that_was_never_trained_is_refused_with_the_names_of_its_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"BertModel: classifier\.bias, classifier\.weight\. They would be random"):
        converted(save_text_model(tmp_path / "source", "BertModel"), tmp_path / "model", task="text-classification")


def test_a_pooler_that_no_output_needs_may_be_missing(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save_text_model(tmp_path / "source", "BertModel")
    weights = load_file(path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler")}
    assert len(kept) == len(weights) - 2
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    assert Model.of(converted(path, tmp_path / "model")).task == "feature-extraction"


def test_a_missing_layer_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save_text_model(tmp_path / "source", "BertModel")
    weights = load_file(path / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"encoder\.layer\.0\.output\.dense\.weight"):
        converted(path, tmp_path / "model")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = save_text_model(tmp_path / "source", "BertModel")
    config = json.loads((path / "config.json").read_text()) | {"intermediate_size": 32}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"intermediate\.dense\.weight"):
        converted(path, tmp_path / "model")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    path = save_text_model(tmp_path / "source", "BertModel")
    source = locate(str(path))
    assert source is not None
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=r"source/model\.safetensors is not a whole safetensors file"):
        convert(source=source, out=tmp_path / "model")


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    path = save_text_model(tmp_path / "source", "BertModel")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "homemade.Config", "AutoModel": "homemade.Model"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "homemade.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="--trust-remote-code"):
        converted(path, tmp_path / "model")
    assert not (tmp_path / "ran").exists()


def test_a_graph_that_answers_otherwise_than_pytorch_is_refused(tmp_path: Path) -> None:
    path = save_text_model(tmp_path / "source", "BertModel")
    with pytest.raises(StageError, match=r"disagree on last_hidden_state for input_ids \(1, 9\).*of 144 values differ"):
        converted(path, tmp_path / "model", atol=0.0, rtol=0.0)


def test_an_onnx_file_passes_as_it_is(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "digits.onnx")
    artifact = converted(path, tmp_path / "model")
    model = Model.of(artifact)
    assert (tmp_path / "model/model.onnx").read_bytes() == path.read_bytes()
    assert (model.task, model.opset, model.operators) == ("generic", 18, {"MatMul": 1, "Relu": 1})
    assert shapes(model.signature.inputs) == {"x": ["n", 4]}


def test_external_data_are_taken_in(tmp_path: Path) -> None:
    inside = converted(save_onnx(tmp_path / "a/digits.onnx"), tmp_path / "inside")
    outside = converted(save_onnx(tmp_path / "b/digits.onnx", external="weights"), tmp_path / "outside")
    assert list(outside.files) == ["model.onnx"]
    batch = {"x": np.ones((3, 4), dtype=np.float32)}
    with open_session(inside) as one, open_session(outside) as other:
        np.testing.assert_array_equal(one(batch)["y"], other(batch)["y"])


def test_an_onnx_file_that_breaks_the_standard_is_refused(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(save_onnx(tmp_path / "digits.onnx"))
    model.graph.node[1].input[0] = "nowhere"
    onnx.save(model, tmp_path / "digits.onnx")
    with pytest.raises(InputError, match=r"digits\.onnx is not a valid ONNX model"):
        converted(tmp_path / "digits.onnx", tmp_path / "model")


def test_weights_beyond_the_limit_lie_beside_the_graph(tmp_path: Path) -> None:
    import onnx
    import onnx_ir

    graph = onnx_ir.load(save_onnx(tmp_path / "digits.onnx"))
    (tmp_path / "large").mkdir()
    write(graph, tmp_path / "large/model.onnx", limit_bytes=9000)
    assert (tmp_path / "large/model.onnx.data").stat().st_size == 9600
    write(graph, tmp_path / "whole.onnx", limit_bytes=10000)
    large, whole = onnx.load(tmp_path / "large/model.onnx"), onnx.load(tmp_path / "whole.onnx")
    assert large.graph.initializer[0].raw_data == whole.graph.initializer[0].raw_data
    onnx.checker.check_model(whole, full_check=True)
