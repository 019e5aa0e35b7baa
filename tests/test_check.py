"""Check: what a model did on each sample, beside the truth and beside the baseline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_artifacts import dataset, linear, model_artifact, rows, token_model, tokens
from sklearn.metrics import accuracy_score, f1_score

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.check import CheckOptions, PerSample, check
from stages.errors import InputError, StageError
from stages.runtime import open_session


def evaluate(
    path: Path, model: Artifact, data: Artifact, reference: Artifact | None = None, **options: Any
) -> Artifact:
    path.mkdir()
    return check(model, data, CheckOptions(**options), path, reference=reference)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Weights of a linear classifier trained on handwritten digits (accuracy 0.95), and images it has not seen."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    x, y = load_digits(return_X_y=True)
    trained = LogisticRegression(max_iter=200).fit(x[:900] / 16, y[:900])
    return trained.coef_.T, x[900:] / 16, y[900:]


def test_a_classifier_is_compared_by_accuracy_agreement_and_outputs(tmp_path: Path, digits: Any) -> None:
    weight, x, y = digits
    coarse = np.round(weight * 2) / 2  # accuracy that is lost
    data = dataset(tmp_path / "data", rows(x, {"kind": "label", "label": y.tolist()}))
    baseline = evaluate(tmp_path / "a", linear(tmp_path / "fp32", weight, "image-classification"), data)
    variant = evaluate(tmp_path / "b", linear(tmp_path / "int2", coarse, "image-classification"), data, baseline)

    x = x.astype(np.float32)
    before, after = x @ weight.astype(np.float32), x @ coarse.astype(np.float32)
    assert baseline.metadata["metric"]["value"] == pytest.approx(accuracy_score(y, before.argmax(axis=1)))
    assert baseline.metadata["fidelity"] == {}
    assert variant.metadata["metric"]["value"] == pytest.approx(accuracy_score(y, after.argmax(axis=1)))
    assert variant.metadata["decisive"] == ["agreement"]
    seen = PerSample.of(variant)
    cosine = (before * after).sum(axis=1) / (np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1))
    error = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    assert seen.fidelity["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert seen.fidelity["relative_error"] == pytest.approx(error, rel=1e-4)
    agrees = before.argmax(axis=1) == after.argmax(axis=1)
    assert (seen.fidelity["agreement"] == agrees).all()
    assert 0.5 < agrees.mean() < 1
    assert seen.statistics is not None
    assert (seen.statistics[:, 0] == (after.argmax(axis=1) == y)).all()
    assert variant.metadata["fidelity"]["agreement"] == pytest.approx(agrees.mean())
    worst = variant.metadata["worst"]
    assert len(worst) == 10
    assert not agrees[worst].any()
    assert worst[0] == int(np.flatnonzero(~agrees)[cosine[~agrees].argmin()])


def test_another_metric_can_be_asked_for(tmp_path: Path, digits: Any) -> None:
    weight, x, y = digits
    data = dataset(tmp_path / "data", rows(x, {"kind": "label", "label": y.tolist()}))
    model = linear(tmp_path / "fp32", np.round(weight), "image-classification")
    evaluation = evaluate(tmp_path / "a", model, data, metric="f1")
    predicted = (x.astype(np.float32) @ np.round(weight).astype(np.float32)).argmax(axis=1)
    assert evaluation.metadata["metric"]["value"] == pytest.approx(f1_score(y, predicted, average="macro"))
    with pytest.raises(InputError, match="exact_match"):
        evaluate(tmp_path / "b", model, data, metric="exact_match")


def test_the_same_evaluation_has_the_same_bytes(tmp_path: Path, digits: Any) -> None:
    weight, x, y = digits
    data = dataset(tmp_path / "data", rows(x[:50], {"kind": "label", "label": y[:50].tolist()}))
    model = linear(tmp_path / "fp32", weight, "image-classification")
    first, second = (evaluate(tmp_path / name, model, data) for name in "ab")
    assert first.digest == second.digest
    assert evaluate(tmp_path / "c", model, data, first).digest == evaluate(tmp_path / "d", model, data, second).digest


def test_the_baseline_is_not_run_again_for_a_variant(tmp_path: Path, digits: Any) -> None:
    weight, x, _ = digits
    data = dataset(tmp_path / "data", rows(x[:50]))
    model = linear(tmp_path / "fp32", weight)
    baseline = evaluate(tmp_path / "a", model, data)
    shutil.rmtree(model.path)
    variant = evaluate(tmp_path / "b", linear(tmp_path / "other", weight * 1.5), data, baseline)
    assert variant.metadata["fidelity"]["cosine"] == pytest.approx(1.0)
    assert variant.metadata["fidelity"]["relative_error"] == pytest.approx(0.5, rel=1e-5)
    assert variant.metadata["decisive"] == ["cosine"]
    assert variant.metadata["metric"] is None
    assert not (variant.path / "outputs").exists()


def test_padding_does_not_count_in_token_outputs(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(20, 4))
    other = table + 0.3 * random.normal(size=table.shape)
    other[0] = -100 * table[0]  # the padding token's row, far off
    ids = [random.integers(1, 20, length).tolist() for length in random.integers(2, 30, 40)]
    labels = [table[one].argmax(axis=1).tolist() for one in ids]
    data = dataset(tmp_path / "data", tokens(ids, {"kind": "labels", "labels": labels}))
    task = "token-classification"
    baseline = evaluate(tmp_path / "a", token_model(tmp_path / "m", table, task), data)
    variant = evaluate(tmp_path / "b", token_model(tmp_path / "n", other, task), data, baseline)
    assert baseline.metadata["metric"]["value"] == 1.0
    same = table.argmax(axis=1) == other.argmax(axis=1)
    cosine = (table * other).sum(axis=1) / (np.linalg.norm(table, axis=1) * np.linalg.norm(other, axis=1))
    seen = PerSample.of(variant)
    assert seen.fidelity["agreement"] == pytest.approx([same[one].mean() for one in ids])
    assert seen.fidelity["cosine"] == pytest.approx([cosine[one].mean() for one in ids], abs=1e-6)
    kept = np.load(baseline.path / "outputs" / "0.npy", mmap_mode="r")
    assert kept.size == 4 * sum(len(one) for one in ids)


def test_masked_positions_do_not_count_where_the_samples_are_padded_already(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(20, 4))
    other = table.copy()
    other[0] = -table[0]
    ids = np.array([[3, 4, 0, 0], [5, 6, 7, 0]])
    samples = Samples(
        {"input_ids": list(ids), "attention_mask": list((ids > 0).astype(np.int64))},
        truth={"kind": "labels", "labels": table[ids].argmax(axis=-1).tolist()},
    )
    data = dataset(tmp_path / "data", samples)
    task = "token-classification"
    baseline = evaluate(tmp_path / "a", token_model(tmp_path / "m", table, task), data)
    variant = evaluate(tmp_path / "b", token_model(tmp_path / "n", other, task), data, baseline)
    assert variant.metadata["metric"]["value"] == 1.0
    assert variant.metadata["fidelity"] == {"cosine": pytest.approx(1.0), "relative_error": 0.0, "agreement": 1.0}


def test_of_huge_outputs_a_bounded_part_is_kept_and_agreement_still_sees_all(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(30, 1000))  # a vocabulary
    other = table.copy()
    other[7] = random.normal(size=1000)
    ids = [random.integers(1, 30, 25).tolist() for _ in range(12)]
    position = [int(random.integers(0, 25)) for _ in ids]
    right = [int(table[one[place]].argmax()) for one, place in zip(ids, position, strict=True)]
    options = {"most_values": 12 * 4 * 1000}  # four positions a sample
    plain = dataset(tmp_path / "plain", tokens(ids))
    masked = dataset(tmp_path / "data", tokens(ids, {"kind": "mask", "position": position, "label": right}))
    before, after = token_model(tmp_path / "m", table, "fill-mask"), token_model(tmp_path / "n", other, "fill-mask")

    baseline = evaluate(tmp_path / "a", before, plain, **options)
    assert np.load(baseline.path / "outputs" / "0.npy", mmap_mode="r").size == 12 * 4 * 1000
    seen = PerSample.of(evaluate(tmp_path / "b", after, plain, baseline, **options))
    assert seen.fidelity["agreement"] == pytest.approx([np.mean(np.array(one) != 7) for one in ids])

    baseline = evaluate(tmp_path / "c", before, masked, **options)
    variant = evaluate(tmp_path / "d", after, masked, baseline, **options)
    kept = np.mean([one[place] != 7 for one, place in zip(ids, position, strict=True)])
    assert baseline.metadata["metric"] == {"name": "accuracy", "value": 1.0, "form": "ratio", "units": "samples"}
    assert variant.metadata["metric"]["value"] == pytest.approx(kept)
    assert variant.metadata["fidelity"]["agreement"] == pytest.approx(kept)


def test_questions_are_answered_by_the_best_span(tmp_path: Path) -> None:
    start, end = np.zeros(20), np.zeros(20)
    start[5], end[6], start[9], end[9] = 4, 4, 3, 6

    def reader(name: str, start: Any, end: Any) -> Artifact:
        return model_artifact(
            tmp_path / name,
            [
                helper.make_node("Gather", ["s", "input_ids"], ["start_logits"]),
                helper.make_node("Gather", ["e", "input_ids"], ["end_logits"]),
            ],
            {"input_ids": ("INT64", ["batch", "sequence"])},
            {name: ("FLOAT", ["batch", "sequence"]) for name in ("start_logits", "end_logits")},
            {"s": start.astype(np.float32), "e": end.astype(np.float32)},
            "question-answering",
        )

    truth = {
        "kind": "answers",
        "contexts": ["big red barn", "big red barn"],
        "answers": [["Red barn"], ["the barn"]],
        "offsets": [[[0, 0], [0, 3], [4, 7], [8, 12]], [[0, 0], [0, 0], [4, 7], [8, 12]]],
    }
    ids = [[9, 1, 5, 6], [9, 1, 5, 6]]  # token 9 scores best and lies outside the context
    samples = Samples({"input_ids": [np.array(one) for one in ids]}, {"input_ids": 0.0}, truth)
    data = dataset(tmp_path / "data", samples)
    baseline = evaluate(tmp_path / "a", reader("m", start, end), data)
    assert baseline.metadata["metric"]["name"] == "f1"
    assert baseline.metadata["metric"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    exact = evaluate(tmp_path / "c", reader("o", start, end), data, metric="exact_match")
    assert exact.metadata["metric"]["value"] == 0.5
    moved = start.copy()
    moved[6] = 5
    variant = evaluate(tmp_path / "b", reader("n", moved, end), data, baseline)
    assert variant.metadata["fidelity"]["agreement"] == 0.0  # one end of the span is the same: not the same span
    assert variant.metadata["metric"]["value"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("task", ["sentence-embedding", "feature-extraction"])
def test_retrieval_is_judged_on_embeddings_pooled_if_need_be(tmp_path: Path, task: Any) -> None:
    random = np.random.default_rng(0)
    truth = {"kind": "retrieval", "queries": 10, "documents": 20, "relevant": list(range(10))}
    if task == "sentence-embedding":
        documents = random.normal(size=(20, 6))
        samples = rows(np.concatenate([documents[:10] + 0.1, documents]), truth)
        model = linear(tmp_path / "m", np.eye(6), task, "sentence_embedding")
    else:
        table = random.normal(size=(50, 6))
        documents = [random.integers(1, 50, 4 + i % 5).tolist() for i in range(20)]
        samples = tokens([one[::-1] for one in documents[:10]] + documents, truth)
        model = token_model(tmp_path / "m", table, task, "last_hidden_state")
    evaluation = evaluate(tmp_path / "a", model, dataset(tmp_path / "data", samples))
    assert evaluation.metadata["metric"] == {"name": "recall@1", "value": 1.0, "form": "ratio", "units": "queries"}
    seen = PerSample.of(evaluation)
    assert seen.statistics is not None
    assert len(seen.statistics) == 10
    assert seen.samples == 30


@pytest.mark.parametrize(("value", "said"), [(-1.0, "NaN"), (0.0, "Inf")])
def test_nan_and_inf_are_refused_by_output_and_sample(tmp_path: Path, value: float, said: str) -> None:
    model = model_artifact(
        tmp_path / "m",
        [helper.make_node("Log", ["x"], ["y"])],
        {"x": ("FLOAT", ["batch", 2])},
        {"y": ("FLOAT", ["batch", 2])},
    )
    x = np.ones((20, 2))
    x[13, 1] = value
    with pytest.raises(StageError, match=f"output y holds {said} for sample 13"):
        evaluate(tmp_path / "a", model, dataset(tmp_path / "data", rows(x)))


def test_of_several_outputs_the_worst_counts_and_integers_are_compared_by_equality(tmp_path: Path) -> None:
    def model(name: str, scale: float, flip: float) -> Artifact:
        return model_artifact(
            tmp_path / name,
            [
                helper.make_node("MatMul", ["x", "a"], ["first"]),
                helper.make_node("MatMul", ["x", "b"], ["second"]),
                helper.make_node("ArgMax", ["second"], ["which"], axis=1, keepdims=0),
            ],
            {"x": ("FLOAT", ["batch", 3])},
            {"first": ("FLOAT", ["batch", 3]), "second": ("FLOAT", ["batch", 2]), "which": ("INT64", ["batch"])},
            {
                "a": (scale * np.eye(3)).astype(np.float32),
                "b": np.array([[1, flip], [flip, 1], [0, 0]], dtype=np.float32),
            },
        )

    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    data = dataset(tmp_path / "data", rows(x))
    baseline = evaluate(tmp_path / "a", model("m", 1, 0), data)
    variant = evaluate(tmp_path / "b", model("n", 1.1, 0.9), data, baseline)
    before, after = x[:, :2], np.stack([x[:, 0] + 0.9 * x[:, 1], 0.9 * x[:, 0] + x[:, 1]], axis=1)
    cosine = (before * after).sum(axis=1) / (np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1))
    error = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    seen = PerSample.of(variant)
    assert seen.fidelity["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert seen.fidelity["relative_error"] == pytest.approx(np.maximum(error, 0.1), rel=1e-4)
    assert (seen.fidelity["agreement"] == (before.argmax(axis=1) == after.argmax(axis=1))).all()
    assert seen.decisive == ("cosine", "agreement")


def test_single_numbers_have_no_cosine_and_are_judged_against_the_usual_size(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 4))
    x[0] = 0
    data = dataset(tmp_path / "data", rows(x))
    weight = np.ones((4, 1))
    baseline = evaluate(tmp_path / "a", linear(tmp_path / "m", weight), data)
    variant = evaluate(tmp_path / "b", linear(tmp_path / "n", 1.01 * weight), data, baseline)
    seen = PerSample.of(variant)
    assert set(seen.fidelity) == {"relative_error"}
    sums = x.sum(axis=1)
    assert seen.fidelity["relative_error"] == pytest.approx(
        0.01 * abs(sums) / np.sqrt((sums**2).mean()), rel=1e-3, abs=1e-6
    )
    assert seen.decisive == ("relative_error",)


def test_a_graph_with_a_fixed_batch_gets_batches_of_that_size(tmp_path: Path) -> None:
    model = model_artifact(
        tmp_path / "m",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": ("FLOAT", [4, 2])},
        {"y": ("FLOAT", [4, 2])},
    )
    x = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    data = dataset(tmp_path / "data", rows(x))
    baseline = evaluate(tmp_path / "a", model, data)
    assert (np.load(baseline.path / "outputs" / "0.npy").reshape(10, 2) == x).all()
    with open_session(model) as session:
        assert session({"x": x[:4]})["y"].shape == (4, 2)


def test_outputs_of_another_shape_than_the_baselines_are_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", rows(np.ones((5, 3))))
    baseline = evaluate(tmp_path / "a", linear(tmp_path / "m", np.ones((3, 4))), data)
    with pytest.raises(StageError, match="logits has 2 values for sample 0, the baseline's has 4"):
        evaluate(tmp_path / "b", linear(tmp_path / "n", np.ones((3, 2))), data, baseline)
    with pytest.raises(StageError, match="the outputs are other; the baseline's are logits"):
        evaluate(tmp_path / "c", linear(tmp_path / "o", np.ones((3, 4)), output="other"), data, baseline)


def test_a_truth_that_does_not_fit_the_model_is_told_by_sample(tmp_path: Path) -> None:
    model = linear(tmp_path / "m", np.ones((3, 4)), "image-classification")
    wrong_label = dataset(tmp_path / "a", rows(np.ones((3, 3)), {"kind": "label", "label": [0, 4, 1]}))
    with pytest.raises(InputError, match="the label 4 of sample 1 is none of the model's 4 classes"):
        evaluate(tmp_path / "x", model, wrong_label)
    scores = linear(tmp_path / "n", np.ones((3, 1)), "image-classification")
    with pytest.raises(InputError, match="no output holds the scores of two or more classes"):
        evaluate(tmp_path / "y", scores, wrong_label)
    with pytest.raises(InputError, match=r"needs the truth .*, and the data hold none"):
        evaluate(tmp_path / "z", model, dataset(tmp_path / "b", rows(np.ones((3, 3)))), metric="accuracy")
