"""Recipes: three spellings of one thing, and mistakes that are told with their remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import Recipe
from stages.errors import InputError


def test_yaml_command_line_and_python_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}")
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model: org/model\nevaluation: data.jsonl\nvariants: [fp16]\ngates: {max_drop: 2%, max_p99: 50ms}\n"
        "profile: {budget: 2m}\nserving: {max_queue_delay: 500us}\n"
    )
    read = Recipe.read(file)
    written = Recipe.parse(
        {
            "model": "org/model",
            "evaluation": {"path": str(tmp_path / "data.jsonl")},
            "variants": "fp16",
            "gates": {"max_drop": 0.02, "max_p99": 50.0},
            "profile": {"budget": 120},
            "serving": {"max_queue_delay": 0.0005},
        }
    )
    assert read == written


def test_a_recipe_can_be_read_back_from_what_is_kept_of_it() -> None:
    recipes = [
        {"model": "m", "variants": "auto", "search_budget": "5m", "fallback": False, "fallback_budget": "30s"},
        {
            "model": "m",
            "variants": [
                "bf16-openvino",
                {"type": "int8-static", "runtime": "openvino", "name": "int8-static+fallback", "exclude": ["h0", "h3"]},
                {"type": "int8-dynamic", "per_channel": False},
            ],
        },
    ]
    for values in recipes:
        recipe = Recipe.parse(values)
        assert Recipe.parse(json.loads(recipe.model_dump_json())) == recipe
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        assert json.loads(recipe.model_dump_json()) == recipe.model_dump(mode="json", serialize_as_any=True)
    assert recipe.variants[1].name == "int8-static+fallback"
    assert recipe.variants[1].exclude == ("h0", "h3")


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model: a/b\nevaluation: x.jsonl\ngates: {max_drop: 2%, min_cosine: 0.9}\n")
    recipe = Recipe.read(file, {"evaluation": {"metric": "f1"}, "gates": {"max_drop": "3%"}, "name": "c"})
    assert recipe.evaluation is not None
    assert (recipe.evaluation.path, recipe.evaluation.metric) == ("x.jsonl", "f1")
    assert (recipe.gates.max_drop, recipe.gates.min_cosine, recipe.name) == (0.03, 0.9, "c")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model": "m", "evalution": "x"}, "unknown key 'evalution'; did you mean 'evaluation'?"),
        ({"model": "m", "gates": {"max_dorp": "1%"}}, "unknown key 'gates.max_dorp'; did you mean 'max_drop'?"),
        ({"model": "m", "zzz": 1}, "unknown key 'zzz'; known keys: model, name"),
        ({}, "'model' is missing"),
        ({"model": ""}, "model: must not be empty"),
        ({"model": "m", "gates": {"max_p99": "50 parsecs"}}, "gates.max_p99: '50 parsecs': write a duration"),
        ({"model": "m", "gates": {"max_drop": "many"}}, "gates.max_drop: 'many' is not a number with a unit"),
        ({"model": "m", "gates": {"max_drop": "200%"}}, "gates.max_drop: Input should be less than or equal to 1"),
        ({"model": "m", "variants": ["int8-dynamc"]}, "int8-dynamic"),
        ({"model": "m", "variants": ["int8-static-opnvino"]}, "did you mean 'int8-static-openvino'?"),
        ({"model": "m", "variants": "int8-dynamic-openvino"}, "int8-dynamic cannot be made like this: runtime: Input"),
        ({"model": "m", "variants": ["fp16", "fp16"]}, "two variants named 'fp16'"),
        ({"model": "m", "variants": ["fp16", "auto"]}, "variants: auto stands alone"),
        ({"model": "m", "variants": 8}, "variants: variants is a list, or auto"),
        ({"model": "m", "search_budget": 0}, "search_budget: Input should be greater than 0"),
        ({"model": "m", "objective": "beauty"}, "objective: Input should be 'latency', 'throughput' or 'size'"),
        ({"model": "m", "profile": {"batch_sizes": [0]}}, "batch sizes are 1 or more"),
        ({"model": "m", "task": "text-clasification"}, "task"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], says: str) -> None:
    with pytest.raises(InputError) as caught:
        Recipe.parse(values, "recipe.yaml")
    assert says in str(caught.value)


def test_a_file_that_is_no_recipe_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Recipe.read(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("model: [")
    with pytest.raises(InputError, match="is not YAML"):
        Recipe.read(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- model")
    with pytest.raises(InputError, match="holds no keys"):
        Recipe.read(tmp_path / "list.yaml")


def test_relative_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.onnx").touch()
    file = tmp_path / "here" / "recipe.yaml"
    file.write_text("model: model.onnx\nrepository: out\ncalibration: {path: ./calibration.jsonl}\n")
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.read(file)
    assert recipe.model == str(tmp_path / "here" / "model.onnx")
    assert recipe.repository == str(tmp_path / "here" / "out")
    assert recipe.calibration is not None
    assert Path(recipe.calibration.path) == tmp_path / "here" / "calibration.jsonl"


def test_what_the_engine_of_a_language_model_is_told_has_its_place(tmp_path: Path) -> None:
    adapter = tmp_path / "pirate"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model: org/model\nserving: {engine: {gpu: L4, max_model_len: 4096, lora: [{name: pirate, path: pirate}]}}\n"
    )
    engine = Recipe.read(file).serving.engine
    assert (engine.gpu, engine.max_model_len, engine.lora[0].path) == ("L4", 4096, adapter)
    with pytest.raises(
        InputError, match=r"unknown key 'serving.engine.max_model_length'; did you mean 'max_model_len'"
    ):
        Recipe.parse({"model": "m", "serving": {"engine": {"max_model_length": 4}}})
