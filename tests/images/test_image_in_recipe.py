"""`image:` in a recipe: what is published becomes an image in the same run, and is named by its digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from workplace import Classifier, Workplace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("image_place"))


def write_recipe(place: Workplace, classifier: Classifier, image: Any) -> Path:
    recipe = place.path / "recipe.yaml"
    asked = {
        "model": str(classifier.model),
        "evaluation": str(classifier.evaluation),
        "task": "image-classification",
        "variants": [],
        "profile": {"batch_sizes": [1], "budget": "1s"},
        "verify": False,
        "image": image,
    }
    recipe.write_text(yaml.safe_dump(asked))
    return recipe


def test_an_image_of_the_release_is_made_and_named_by_digest(place: Workplace, classifier: Classifier) -> None:
    image = {"to": f"oci:{place.path}/out", "model_base": "scratch"}
    ended = place.optimize("run", write_recipe(place, classifier, image), "--json")
    assert ended.code == 0, ended.err
    (made,) = ended.json["images"]
    assert made["kind"] == "model"
    assert made["reference"].endswith(f"@{made['digest']}")
    index = json.loads((place.path / "out" / "index.json").read_text())
    assert made["digest"] in {entry["digest"] for entry in index["manifests"]}
    assert made["reference"] in ended.json["message"]
    again = place.optimize("run", write_recipe(place, classifier, image), "--json")
    assert again.json["images"][0]["digest"] == made["digest"]
    alone = place.optimize(
        "image", place.repository, ended.json["release"]["model"], "--to", f"oci:{place.path}/alone",
        "--model-base", "scratch", "--json",
    )  # fmt: skip
    assert alone.json[0]["digest"] == made["digest"]


def test_a_place_that_cannot_be_used_leaves_the_release_and_is_told(place: Workplace, classifier: Classifier) -> None:
    image = {"to": "127.0.0.1:9/nobody/listens", "model_base": "scratch", "plain_http": True}
    (place.path / "later").mkdir()
    ended = place.optimize(
        "run", write_recipe(place, classifier, image), "--repository", place.path / "later", "--json"
    )
    assert ended.code == 4
    assert ended.json["status"] == "published" and ended.json["images"] == []
    assert "but no image was made of it" in ended.json["message"]
    assert (place.path / "later" / ended.json["release"]["model"] / "1" / "model.onnx").is_file()


def test_a_wrong_key_has_its_remedy(place: Workplace, classifier: Classifier) -> None:
    ended = place.optimize("run", write_recipe(place, classifier, {"to": "oci:out", "modlpack": True}))
    assert ended.code == 2
    assert "unknown key 'image.modlpack'; did you mean 'modelpack'" in ended.err
