"""Perplexity, agreement and divergence: what they are, and that the gate can tell a damaged model by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import as_artifact, changed_copy, text_tokens, window_data

from stages.artifact import Artifact
from stages.check import PerSample
from stages.errors import InputError, StageError
from stages.gate import judge
from stages.language.check import CheckLanguageOptions, check_language

ONE = CheckLanguageOptions(threads=1, batch_size=16)
WINDOWS, LENGTH = 60, 48

Checked = Callable[..., Artifact]


@pytest.fixture(scope="module")
def tokens(tiny_llama: Path) -> Any:
    return text_tokens(tiny_llama, WINDOWS * LENGTH)


@pytest.fixture(scope="module")
def data(tokens: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return window_data(tmp_path_factory.mktemp("data") / "windows", tokens, LENGTH)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    def run(path: Path, data: Artifact, reference: Artifact | None = None, **options: Any) -> Artifact:
        out = tmp_path_factory.mktemp("checked")
        return check_language(as_artifact(path), data, ONE.model_copy(update=options), out, reference=reference)

    return run


@pytest.fixture(scope="module")
def baseline(tiny_llama: Path, data: Artifact, checked: Checked) -> Artifact:
    return checked(tiny_llama, data)


def noisy(source: Path, target: Path, noise: float) -> Path:
    """A copy whose linear weights have noise of `noise` times their own deviation on them."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def disturb(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name: tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=generator)
            if "_proj" in name
            else tensor
            for name, tensor in tensors.items()
        }

    return changed_copy(source, target, disturb)


def model_loss(path: Path, tokens: Any, first: int) -> tuple[float, Any]:
    """By transformers itself: the mean loss of the tokens from `first` on, and the logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
    ids = torch.from_numpy(tokens)[None]
    labels = ids.clone()
    labels[:, :first] = -100
    with torch.inference_mode():
        answer = model(input_ids=ids, labels=labels)
    return float(answer.loss), answer.logits[0].double()


def test_perplexity_is_that_of_the_loss_that_transformers_computes(
    tiny_llama: Path, tokens: Any, baseline: Artifact
) -> None:
    losses = [model_loss(tiny_llama, tokens[start : start + LENGTH], 1)[0] for start in range(0, len(tokens), LENGTH)]
    results = PerSample.of(baseline)
    assert results.statistics is not None
    assert results.statistics[:, 0] / (LENGTH - 1) == pytest.approx(losses, abs=1e-5)
    assert (results.statistics[:, 1] == LENGTH - 1).all()
    metric = baseline.metadata["metric"]
    assert metric == {
        "name": "perplexity",
        "value": pytest.approx(np.exp(np.mean(losses)), rel=1e-5),
        "form": "perplexity",
        "units": "windows",
    }
    assert 1 < metric["value"] < 500  # it has learnt something: chance is 1,024
    assert (results.samples, results.units, results.fidelity, results.decisive) == (WINDOWS, "windows", {}, ())
    assert baseline.metadata["evidence"] == "the standard library"


def test_a_window_that_slides_counts_each_token_once_with_what_stands_before_it(
    tiny_llama: Path, tokens: Any, tmp_path: Path, checked: Checked
) -> None:
    sliding = window_data(tmp_path / "sliding", tokens[:200], 50, 30)
    found = PerSample.of(checked(tiny_llama, sliding))
    assert found.statistics is not None
    assert found.statistics[:, 1].tolist() == [49, 30, 30, 30, 30, 30]
    for row, start in zip(found.statistics, range(0, 200, 30), strict=False):
        first = 20 if start else 1
        loss, _ = model_loss(tiny_llama, tokens[start : start + 50], first)
        assert row[0] / row[1] == pytest.approx(loss, abs=1e-5)


def test_divergence_and_agreement_are_those_of_the_distributions(
    tiny_llama: Path, tokens: Any, data: Artifact, baseline: Artifact, tmp_path: Path, checked: Checked
) -> None:
    import torch

    other = noisy(tiny_llama, tmp_path / "other", 0.1)
    found = PerSample.of(checked(other, data, baseline))
    for window in (0, 31, 59):
        part = tokens[window * LENGTH : (window + 1) * LENGTH]
        before, after = (model_loss(path, part, 1)[1][:-1].log_softmax(dim=-1) for path in (tiny_llama, other))
        divergence = torch.nn.functional.kl_div(after, before, log_target=True, reduction="sum") / (LENGTH - 1)
        assert found.fidelity["kl"][window] == pytest.approx(float(divergence), rel=1e-4)
        agree = (before.argmax(dim=-1) == after.argmax(dim=-1)).double().mean()
        assert found.fidelity["agreement"][window] == pytest.approx(float(agree))
    assert (found.fidelity["kl"] > 0).all()


def test_the_same_model_is_like_itself_and_passes(
    tiny_llama: Path, data: Artifact, baseline: Artifact, tmp_path: Path, checked: Checked
) -> None:
    again = checked(changed_copy(tiny_llama, tmp_path / "again"), data, baseline)
    assert again.metadata["fidelity"] == {"agreement": 1.0, "kl": 0.0}
    judged = judge(again, baseline)
    assert judged.verdict == "pass"
    assert judged.reason.startswith("perplexity rises by 0.00%; a rise of 0.00% at most")


def test_a_model_that_lost_something_is_refused_and_one_that_hardly_did_is_not(
    tiny_llama: Path, data: Artifact, baseline: Artifact, tmp_path: Path, checked: Checked
) -> None:
    damaged = checked(noisy(tiny_llama, tmp_path / "damaged", 2.0), data, baseline)
    judged = judge(damaged, baseline)
    assert judged.verdict == "fail"
    assert "perplexity rises by" in judged.reason
    assert judged.fidelity["kl"].value > judged.fidelity["kl"].low > 0.01

    touched = checked(noisy(tiny_llama, tmp_path / "touched", 0.01), data, baseline)
    assert judge(touched, baseline).verdict == "pass"
    assert touched.metadata["fidelity"]["kl"] < damaged.metadata["fidelity"]["kl"]


def test_the_worst_windows_are_those_whose_loss_rises_most(
    tiny_llama: Path, data: Artifact, baseline: Artifact, tmp_path: Path, checked: Checked
) -> None:
    variant = checked(noisy(tiny_llama, tmp_path / "variant", 0.2), data, baseline)
    before, after = PerSample.of(baseline).statistics, PerSample.of(variant).statistics
    assert before is not None and after is not None
    rises = after[:, 0] - before[:, 0]
    assert variant.metadata["worst"] == np.argsort(-rises)[:10].tolist()
    assert "worst" not in baseline.metadata


def test_slices_and_batches_do_not_change_the_result(
    tiny_llama: Path,
    data: Artifact,
    baseline: Artifact,
    tmp_path: Path,
    checked: Checked,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = noisy(tiny_llama, tmp_path / "other", 0.1)
    whole = PerSample.of(checked(other, data, baseline))
    monkeypatch.setattr("stages.language.likelihood._SLICE_VALUES", 5 * 1024)
    monkeypatch.setattr("stages.language.check._BATCH_VALUES", 3 * LENGTH * 1024)
    sliced = PerSample.of(checked(other, data, baseline))
    assert whole.statistics is not None and sliced.statistics is not None
    assert sliced.statistics == pytest.approx(whole.statistics, abs=1e-3)
    assert sliced.fidelity["kl"] == pytest.approx(whole.fidelity["kl"], rel=1e-4)
    assert sliced.fidelity["agreement"] == pytest.approx(whole.fidelity["agreement"], abs=0.03)


def test_what_is_kept_of_the_baseline_is_bounded_and_the_divergence_taken_over_that(
    tiny_llama: Path, tokens: Any, tmp_path: Path, checked: Checked
) -> None:
    few = window_data(tmp_path / "few", tokens[: 4 * LENGTH], LENGTH)
    kept = checked(tiny_llama, few, most_values=4 * 3 * 1024 + 7)
    assert np.load(kept.path / "outputs/0.npy").shape == (4 * 3 * 1024,)
    assert np.load(kept.path / "likeliest.npy").shape == (4 * (LENGTH - 1),)
    other = noisy(tiny_llama, tmp_path / "other", 0.1)
    found = PerSample.of(checked(other, few, kept, most_values=1))
    before, after = (
        model_loss(path, tokens[:LENGTH], 1)[1][[0, 23, 46]].log_softmax(dim=-1) for path in (tiny_llama, other)
    )
    divergence = float((before.exp() * (before - after)).sum() / 3)
    assert found.fidelity["kl"][0] == pytest.approx(divergence, rel=1e-4)
    least = checked(tiny_llama, few, most_values=1)
    assert np.load(least.path / "outputs/0.npy").shape == (4 * 1024,)


def test_a_model_whose_scores_are_no_numbers_is_told_with_the_window(
    tiny_llama: Path, data: Artifact, tmp_path: Path, checked: Checked
) -> None:
    def spoil(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def change(tensors: dict[str, Any]) -> dict[str, Any]:
            tensors["lm_head.weight"][5] = value
            return tensors

        return change

    with pytest.raises(StageError, match="window 0 hold NaN"):
        checked(changed_copy(tiny_llama, tmp_path / "nan", spoil(float("nan"))), data)
    with pytest.raises(StageError, match="window 0 hold Inf"):
        checked(changed_copy(tiny_llama, tmp_path / "inf", spoil(3e38)), data)


def test_what_does_not_belong_together_is_refused(
    tiny_llama: Path, tokens: Any, data: Artifact, baseline: Artifact, tmp_path: Path, checked: Checked
) -> None:
    other = window_data(tmp_path / "other", tokens[:200], 40)
    with pytest.raises(InputError, match="evaluation of other data"):
        checked(tiny_llama, other, baseline)
    long = window_data(tmp_path / "long", tokens, 257)
    with pytest.raises(InputError, match=r"257 tokens, the model was made for at most 256: cut shorter ones"):
        checked(tiny_llama, long)
    foreign = window_data(tmp_path / "foreign", tokens + 1000, LENGTH)
    with pytest.raises(InputError, match="made with another tokenizer"):
        checked(tiny_llama, foreign)
    with pytest.raises(InputError, match="not a dataset"):
        checked(tiny_llama, baseline)
    wider = changed_copy(
        tiny_llama,
        tmp_path / "wider",
        lambda all: {n: t.repeat(2, 1) if "embed" in n or "lm_head" in n else t for n, t in all.items()},
        vocab_size=2048,
    )
    with pytest.raises(StageError, match=r"scores 2048 tokens, the baseline 1024"):
        checked(wider, data, baseline)
