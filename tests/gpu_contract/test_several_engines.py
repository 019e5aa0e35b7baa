"""Engines for several GPUs in one release: the one that is built here, and others that were built elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import stand_in
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from model_repository import Repository, RepositoryError
from model_repository.config import from_text, validate
from pipeline import Recipe
from pipeline.plan import Step, judging_plan, release_plan
from stages import package as package_module
from stages.artifact import Artifact
from stages.compile import CompileOptions
from stages.compile import api as api_module
from stages.compile.elsewhere import engine_files
from stages.compile.stage import compile_engine
from stages.errors import InputError
from stages.model import Model
from stages.onnx_model import signature_of, write_model
from stages.package import PackageOptions, package

TEXT = "(int64[batch, sequence] ids) => (float16[batch, sequence, 4] y) { y = Gather(table, ids) }"
PROFILES = {"profiles": [{"sequence": [1, 8, 16]}]}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds an engine with stand-ins for TensorRT and a GPU in the places of what is not here."""

    def build(
        name: str, sm: tuple[int, int], *, version: str = "10.13.3.9", weight: float = 1.0, **options: Any
    ) -> Artifact:
        told = stand_in.Recorded()
        told.plan = f"plan of {name}".encode()
        monkeypatch.setitem(sys.modules, "tensorrt", stand_in.tensorrt(told, version))
        monkeypatch.setitem(sys.modules, "pynvml", stand_in.pynvml(sm, "a GPU"))
        present = set(stand_in.members(sys.modules["tensorrt"]))
        monkeypatch.setattr(api_module, "USED", tuple(used for used in api_module.USED if used in present))
        text = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {TEXT}')
        table = np.full((9, 4), weight, np.float16)
        text.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
        graph = onnx_ir.from_proto(text)
        for folder in (f"{name} graph", name):
            (tmp_path / folder).mkdir()
        half = write_model(graph, tmp_path / f"{name} graph", signature=signature_of(graph), precision="fp16")
        settings = CompileOptions.model_validate(PROFILES | options | {"cache": tmp_path / "cache"})
        made = compile_engine(half, settings, tmp_path / name)
        server = package_module._SERVERS["tensorrt"]
        signature = Model.of(made).signature
        stand = package_module._Server(server.backend, lambda path: signature, server.name, gpu=True)
        monkeypatch.setitem(package_module._SERVERS, "tensorrt", stand)
        return made

    return build


def released(own: Artifact, out: Path, engines: dict[str, Path]) -> Artifact:
    out.mkdir()
    files = engine_files({capability: str(path) for capability, path in engines.items()})
    return package(model=own, options=PackageOptions(name="table", engines=files), out=out)


def configured(release: Artifact) -> ModelConfig:
    return text_format.Parse((release.path / "config.pbtxt").read_text(), ModelConfig())


def test_a_release_holds_an_engine_for_each_compute_capability(built: Any, tmp_path: Path) -> None:
    """One comes as the stage `compile` leaves it, the other from a release in a model repository."""
    ada, own = built("ada", (8, 9)), built("own", (9, 0))
    first = released(built("blackwell", (10, 0)), tmp_path / "first", {})
    repository = Repository(tmp_path / "repository")
    repository.publish("table", first.path, {"engine": first.metadata["engine"]})
    published = tmp_path / "repository" / "table" / "1" / "model.plan"

    release = released(own, tmp_path / "out", {"8.9": ada.path / "model.plan", "10.0": published})
    config = configured(release)
    assert dict(config.cc_model_filenames) == {
        "8.9": "model_sm89.plan", "9.0": "model.plan", "10.0": "model_sm100.plan",
    }  # fmt: skip
    for file, name in (("model.plan", "own"), ("model_sm89.plan", "ada"), ("model_sm100.plan", "blackwell")):
        assert (release.path / file).read_bytes() == f"plan of {name}".encode()
    assert {capability: engine["compute_capability"] for capability, engine in release.metadata["engines"].items()} == {
        "8.9": "8.9", "10.0": "10.0",
    }  # fmt: skip
    assert repository.publish("table", release.path, {"engine": release.metadata["engine"]}).version == 2
    (tmp_path / "lost").mkdir()
    for name in release.files:
        if name != "model_sm89.plan" and "/" not in name:
            (tmp_path / "lost" / name).write_bytes((release.path / name).read_bytes())
    with pytest.raises(RepositoryError, match=r"has no model_sm89\.plan"):
        repository.publish("table", tmp_path / "lost", {})


def test_an_engine_for_many_gpus_is_what_those_take_that_have_none_of_their_own(built: Any, tmp_path: Path) -> None:
    ada, own = built("ada", (8, 9)), built("own", (9, 0), hardware_compatible="ampere-plus")
    assert dict(configured(released(own, tmp_path / "out", {"8.9": ada.path / "model.plan"})).cc_model_filenames) == {
        "8.9": "model_sm89.plan"
    }


@pytest.mark.parametrize(
    ("other", "capability", "says"),
    [
        ({"sm": (8, 6)}, "8.9", r"for or with compute capability 8\.6; the release needs 8\.9"),
        ({"sm": (9, 0)}, "9.0", r"the engine for compute capability 9\.0 is built here"),
        ({"version": "10.14.1.48"}, "8.9", r"with TensorRT 10\.14\.1\.48; the release needs 10\.13\.3\.9"),
        ({"weight": 2.0}, "8.9", "a graph with the SHA-256"),
        ({"profiles": [{"sequence": [1, 8, 32]}]}, "8.9", "the optimisation profiles"),
        ({"strip": True}, "8.9", "lies without its weights"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(
    other: dict[str, Any], capability: str, says: str, built: Any, tmp_path: Path
) -> None:
    made = built("other", **{"sm": (8, 9), **other})
    own = built("own", (9, 0))
    with pytest.raises(InputError, match=says):
        released(own, tmp_path / "out", {capability: made.path / "model.plan"})


def test_an_engine_of_which_nothing_is_known_is_refused(built: Any, tmp_path: Path) -> None:
    ada, own = built("ada", (8, 9)), built("own", (9, 0))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "model.plan").write_bytes(b"plan of ada")
    with pytest.raises(InputError, match=r"nothing beside .* says what it is"):
        released(own, tmp_path / "out", {"8.9": tmp_path / "alone" / "model.plan"})
    (tmp_path / "alone" / "provenance.json").write_text(json.dumps({"engine": {"tensorrt": "10"}, "release": {}}))
    with pytest.raises(InputError, match="cannot be read as the provenance of an engine"):
        released(own, tmp_path / "out 2", {"8.9": tmp_path / "alone" / "model.plan"})
    (ada.path / "model.plan").write_bytes(b"another plan")
    with pytest.raises(InputError, match=r"is not the engine that .*artifact\.json tells of"):
        released(own, tmp_path / "out 3", {"8.9": ada.path / "model.plan"})
    with pytest.raises(InputError, match=r"the engine for compute capability 8\.9 is missing"):
        engine_files({"8.9": str(tmp_path / "nowhere.plan")})


@pytest.mark.parametrize(
    ("engines", "says"),
    [
        ({8.9: "a.plan"}, 'write the compute capability 8.9 in quotes: "8.9"'),
        ({"sm89": "a.plan"}, "'sm89' is no compute capability"),
        ({"8": "a.plan"}, "'8' is no compute capability"),
        ({"8.9": "a.onnx"}, r"the engine for 8\.9 is a\.onnx; an engine is a \.plan file"),
    ],
)
def test_a_malformed_recipe_is_refused(engines: dict[Any, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Recipe.parse({"model": "x", "target": "tensorrt", "tensorrt": {"engines": engines}})


@pytest.mark.parametrize(
    ("capability", "file", "says"),
    [("90", "a.plan", "is no compute capability"), ("9.0", "../a.plan", "no name of a file"), ("9.0", "", "no name")],
)
def test_a_malformed_configuration_is_refused(capability: str, file: str, says: str) -> None:
    config = from_text('name: "m" backend: "tensorrt"')
    config.cc_model_filenames[capability] = file
    with pytest.raises(RepositoryError, match=says):
        validate(config)


def test_the_recipe_s_engines_reach_the_release_and_no_other_step(tmp_path: Path) -> None:
    (tmp_path / "ada.plan").write_bytes(b"plan")
    (tmp_path / "recipe.yaml").write_text('model: x\ntarget: tensorrt\ntensorrt: {engines: {"8.9": ada.plan}}\n')
    recipe = Recipe.read(tmp_path / "recipe.yaml")
    [step, *_] = release_plan(recipe.model_copy(update={"verify": False}), "m", "fp16", 16, "tensorrt")
    assert step.options.model_dump(mode="json")["engines"]["8.9"]["path"] == str(tmp_path / "ada.plan")
    compiled = next(each for each in judging_plan(recipe) if each.name == "compile fp16")
    assert isinstance(compiled, Step)
    assert "engines" not in compiled.options.model_dump()
    (tmp_path / "ada.plan").unlink()
    with pytest.raises(InputError, match=r"the engine for compute capability 8\.9 is missing"):
        judging_plan(recipe)
