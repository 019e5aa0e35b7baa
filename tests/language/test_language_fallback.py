"""A language model in which some channels are outliers: rounding to nearest is refused, and falls back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from workplace import Finished, Workplace


@pytest.fixture(scope="module")
def planted_run(tmp_path_factory: pytest.TempPathFactory, planted_llama: Path, tiny_llama_data: Path) -> Finished:
    place = Workplace(tmp_path_factory.mktemp("planted"))
    recipe = place.path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": str(planted_llama),
                "name": "planted",
                "evaluation": {"path": str(tiny_llama_data / "evaluation.jsonl"), "samples": 96, "max_length": 128},
                "calibration": {"path": str(tiny_llama_data / "calibration.jsonl"), "samples": 64, "max_length": 128},
                "variants": [{"type": "w4a16", "method": "rtn", "name": "rtn"}, "gptq"],
                "gates": {"max_drop": "5%"},
                "objective": "size",
                "profile": {"batch_sizes": [1], "new_tokens": 4, "budget": "3s"},
                "verify": False,
            }
        )
    )
    return place.optimize("run", recipe, "--no-record", "--json")


def test_the_gate_refuses_rounding_to_nearest_and_lets_gptq_pass(planted_run: Finished) -> None:
    assert planted_run.code == 0, planted_run.err
    variants = {variant["name"]: variant for variant in planted_run.json["variants"]}
    assert variants["rtn"]["verdict"] == "fail"
    assert "perplexity rises by" in variants["rtn"]["reason"]
    assert variants["gptq"]["verdict"] == "pass", variants["gptq"]["reason"]
    assert variants["rtn"]["metric"]["drop"] > 3 * variants["gptq"]["metric"]["drop"]


def test_the_planted_block_returns_to_higher_precision(planted_run: Finished) -> None:
    result = planted_run.json
    (search,) = result["fallbacks"]
    assert search["variant"] == "rtn" and search["found"] == "rtn+fallback", search["reason"]
    worst, *others = search["sensitivity"]
    assert worst["kept"] and ".0." in worst["name"], "the outliers are in the first block"
    assert worst["effect"] > 3 * others[-1]["effect"]
    found = next(variant for variant in result["variants"] if variant["name"] == "rtn+fallback")
    assert found["verdict"] == "pass"
    assert 0 < found["quantisation"]["layers"] < found["quantisation"]["linear_layers"]
