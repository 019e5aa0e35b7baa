"""Which recipe a model gets: by its tag, by a rule, by default; never one from outside the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.triggers.rules import Rule, Rules, read_rules
from stages.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("embeddings", "images"):
        (folder / f"{name}.yaml").write_text(f"model: x\nname: from-{name}\n")
    (tmp_path / "outside.yaml").write_text("model: x\nallow_pickle: true\n")
    (folder / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    return folder


def chosen(rules: Rules, model: str = "minilm", **tags: str) -> str | None:
    found = rules.recipe(model, 3, {f"optimize.{name}": value for name, value in tags.items()}, {})
    if found is None:
        return None
    assert found[1].model == f"models:/{model}/3"
    return found[0]


def test_the_tag_wins_over_the_rules_and_those_over_the_default(folder: Path, tmp_path: Path) -> None:
    rules = Rules(folder, (Rule(model="mini*", recipe="embeddings"),), tmp_path / "outside.yaml")
    assert chosen(rules, recipe="images") == "images"
    assert chosen(rules) == "embeddings"
    assert chosen(rules, "resnet") == "outside"
    assert chosen(Rules(folder)) == "plain"
    assert chosen(Rules(folder, plain=False)) is None


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "link", "nobody", "", "embeddings.yaml", "a\nb", "."])
def test_a_tag_names_a_recipe_of_the_folder_and_nothing_else(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"optimize\.recipe of the registered model minilm names .*not in"):
        chosen(Rules(folder), recipe=name)


def test_a_tag_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--recipes"):
        chosen(Rules(), recipe="embeddings")


def test_the_first_rule_that_fits_counts(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("rules:\n- {model: 'minilm-[ab]', recipe: images}\n- {model: 'mini*', recipe: embeddings}\n")
    rules = Rules(folder, read_rules(file), plain=False)
    assert [chosen(rules, name) for name in ("minilm-a", "minilm-c", "resnet")] == ["images", "embeddings", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [{model: x}]", "rules.0.recipe"),
        ("rules: [{model: x, recipe: y, shell: z}]", "shell"),
        ("a: [", "not YAML"),
        ("", "list of"),
        ("rules: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_rules_that_are_wrong_are_told(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_rules(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_rules(tmp_path / "nobody.yaml")
