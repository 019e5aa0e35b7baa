"""Conformance: what vLLM serves from a release is what was measured in process, for every format that it loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import changed_copy, text_tokens, window_data

from stages.artifact import Artifact
from stages.errors import RequirementError, StageError
from stages.language.adopt import AdoptOptions, adopt
from stages.language.check import CheckLanguageOptions, check_language
from stages.language.release import (
    PackageLanguageOptions,
    VerifyLanguageOptions,
    package_language,
    verify_language,
)
from stages.language.release.vllm import find_vllm
from stages.language.variants import quantise_checkpoint
from stages.source import locate
from stages.variants import parse_variant

ENVIRONMENT = Path(__file__).parents[2] / ".venv-vllm"
TOLERANCE = 2e-3


def needs_vllm() -> None:
    if not (ENVIRONMENT / ".complete").exists():
        pytest.skip("vLLM is not installed: run `make vllm` (3.5 GB)")


@pytest.fixture(scope="module")
def windows(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return window_data(tmp_path_factory.mktemp("windows") / "data", text_tokens(tiny_llama, 8192), 128, 64)


def served(checkpoint: Artifact, evaluation: Artifact, windows: Artifact, place: Path) -> Artifact:
    """The verification of a release of `checkpoint`."""
    for name in ("release", "verification"):
        (place / name).mkdir()
    release = package_language(model=checkpoint, options=PackageLanguageOptions(name="llama"), out=place / "release")
    options = VerifyLanguageOptions(vllm=ENVIRONMENT, windows=64, tolerance=TOLERANCE)
    return verify_language(
        release=release,
        model=checkpoint,
        data=windows,
        evaluation=evaluation,
        options=options,
        out=place / "verification",
    )


def judged(checkpoint: Artifact, windows: Artifact, place: Path) -> Artifact:
    place.mkdir()
    return check_language(model=checkpoint, data=windows, options=CheckLanguageOptions(), out=place)


@pytest.mark.parametrize("form", ["original", "gptq", "awq", "int8-w8a8"])
def test_serves_the_perplexity_that_was_measured(
    form: str, tiny_checkpoint: Artifact, windows: Artifact, tmp_path: Path
) -> None:
    needs_vllm()
    checkpoint = tiny_checkpoint
    if form != "original":
        (tmp_path / "made").mkdir()
        checkpoint = quantise_checkpoint(
            model=tiny_checkpoint, options=parse_variant(form), out=tmp_path / "made", data=windows
        )
    evaluation = judged(checkpoint, windows, tmp_path / "evaluation")
    verification = served(checkpoint, evaluation, windows, tmp_path)
    told = verification.metadata
    print(f"{form}: {told['perplexity']}, {told['difference']:+.4%}")
    assert told["server"] == find_vllm(ENVIRONMENT).name
    assert told["windows"] == 64
    assert abs(told["difference"]) <= TOLERANCE
    assert told["perplexity"]["served"] == pytest.approx(told["perplexity"]["measured"], rel=TOLERANCE)


def test_a_release_that_answers_otherwise_is_refused(
    tiny_checkpoint: Artifact, windows: Artifact, tiny_llama: Path, tmp_path: Path
) -> None:
    needs_vllm()
    other = changed_copy(
        tiny_llama, tmp_path / "other", lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"] * 1.2}
    )
    source = locate(str(other))
    assert source is not None
    (tmp_path / "adopted").mkdir()
    checkpoint = adopt(source=source, options=AdoptOptions(), out=tmp_path / "adopted")
    evaluation = judged(tiny_checkpoint, windows, tmp_path / "evaluation")
    with pytest.raises(StageError, match=r"vLLM's perplexity on 64 windows is .* \(allowed 0.20%\)"):
        served(checkpoint, evaluation, windows, tmp_path)


def test_without_vllm_nothing_is_called_verified(tiny_checkpoint: Artifact, windows: Artifact, tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    release = package_language(
        model=tiny_checkpoint, options=PackageLanguageOptions(name="llama"), out=tmp_path / "release"
    )
    with pytest.raises(RequirementError, match=r"cannot be verified on this machine.*has no bin/python.*--no-verify"):
        verify_language(
            release=release,
            model=tiny_checkpoint,
            data=windows,
            evaluation=windows,
            options=VerifyLanguageOptions(vllm=tmp_path / "none"),
            out=tmp_path,
        )
