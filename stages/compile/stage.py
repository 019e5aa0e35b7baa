"""The stage `compile`: an ONNX graph in, a TensorRT engine out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.samples import Samples
from stages.artifact import Artifact, link
from stages.compile import timing_cache
from stages.compile.api import import_tensorrt
from stages.compile.builder import build_engine
from stages.compile.dtypes import ensure_promised, ensure_supported
from stages.compile.inspector import ensure_computes_in, layer_dtypes
from stages.compile.options import CompileOptions
from stages.compile.profiles import Profile, lengths_of, profiles_of
from stages.compile.script import build_script
from stages.errors import InputError
from stages.gpu import require_gpu
from stages.model import ASSETS, Engine, Model
from stages.onnx_model import read_graph
from stages.progress import SILENT, Progress
from stages.runtime.tensorrt import GRAPH, load_engine
from stages.stage import Stage

__all__ = ["BUILD_KIT", "COMPILE", "PLAN", "build_kit", "compile_engine"]

PLAN = "model.plan"
_SCRIPT = "build.sh"


def compile_engine(
    model: Artifact,
    options: CompileOptions,
    out: Path,
    progress: Progress = SILENT,
    data: Artifact | None = None,
) -> Artifact:
    """Build an engine of `model`, a graph in the form that TensorRT takes for its precision, on this machine's GPU.

    `data`, a dataset, gives the optimisation profiles the lengths that occur, where the options say none.

    Returns a model artifact for the runtime `tensorrt`: `model.plan`, the model's assets, and in `assets/engine/` the
    graph with `build.sh`, which builds the engine again elsewhere.

    Raises `RequirementError` without a GPU, without TensorRT, or where the GPU cannot compute in the precision,
    `InputError` for an axis without a range, and `StageError` if the graph does not hold what its precision promises,
    if TensorRT refuses it, or if the engine's layers do not compute in that precision.
    """
    described = _ensure_graph(model)
    gpu = require_gpu("a TensorRT engine")
    tensorrt = import_tensorrt()
    ensure_supported(described.precision, gpu.sm)
    ensure_promised(read_graph(model), described.precision)
    profiles = profiles_of(described.signature, options, _lengths(data, described))
    kept = timing_cache.cache_file(options.cache or timing_cache.default_folder(), str(tensorrt.__version__), gpu)
    built = build_engine(tensorrt, described.path(model), profiles, options, timing_cache.load(kept), progress)
    timing_cache.save(kept, built.cache)
    layers = layer_dtypes(_information(tensorrt, built.plan, profiles, options))
    ensure_computes_in(described.precision, layers)
    (out / PLAN).write_bytes(built.plan)
    _keep_graph(model, described, profiles, options, out / Path(GRAPH).parent)
    for name in model.files:
        if name.startswith(f"{ASSETS}/"):
            link(model.path / name, out / name)
    engine = Engine(
        tensorrt=str(tensorrt.__version__),
        compute_capability=gpu.capability,
        device=gpu.name,
        driver=gpu.driver,
        cuda=gpu.cuda,
        profiles=tuple({name: (s.min, s.opt, s.max) for name, s in profile.items()} for profile in profiles),
        layers=layers,
        tf32=options.tf32,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        weight_streaming=options.weight_streaming,
        stripped=options.strip,
    )
    about = described.model_copy(update={"file": PLAN, "runtime": "tensorrt", "engine": engine})
    return Artifact.write(out, "model", about.model_dump(mode="json"), {"model": model})


def build_kit(
    model: Artifact,
    options: CompileOptions,
    out: Path,
    progress: Progress = SILENT,
    data: Artifact | None = None,
) -> Artifact:
    """What it takes to build the engine of `model` elsewhere: the graph, and `build.sh`. Needs no GPU.

    Returns an artifact of kind `build-kit`. Raises as `compile_engine` does before it comes to the GPU.
    """
    described = _ensure_graph(model)
    ensure_promised(read_graph(model), described.precision)
    profiles = profiles_of(described.signature, options, _lengths(data, described))
    _keep_graph(model, described, profiles, options, out)
    return Artifact.write(out, "build-kit", {"script": _SCRIPT, "precision": described.precision}, {"model": model})


def _ensure_graph(model: Artifact) -> Model:
    described = Model.of(model)
    if not described.file.endswith(".onnx"):
        raise InputError(f"{model.path} is {described.file} for {described.runtime}; an engine is built from ONNX")
    return described


def _lengths(data: Artifact | None, described: Model) -> dict[str, NDArray[np.int64]]:
    return {} if data is None else lengths_of(Samples.load(data.path), described.signature)


def _keep_graph(
    model: Artifact, described: Model, profiles: Sequence[Profile], options: CompileOptions, folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in model.files:  # the graph, and its external weights under the names that it knows
        if not name.startswith(f"{ASSETS}/"):
            link(model.path / name, folder / name)
    script = folder / _SCRIPT
    script.write_text(build_script(described.precision, described.file, PLAN, profiles, options))
    script.chmod(0o755)


def _information(tensorrt: Any, plan: bytes, profiles: Sequence[Profile], options: CompileOptions) -> str:
    """The inspector's account of the engine, with the usual shapes: without any it could not tell formats."""
    _, engine = load_engine(tensorrt, plan, host_code=options.version_compatible)
    context = engine.create_execution_context()
    inspector = engine.create_engine_inspector()
    if context is not None:  # an engine without its weights has none
        for name, shapes in (profiles[0] if profiles else {}).items():
            context.set_input_shape(name, shapes.opt)
        inspector.execution_context = context
    return str(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))


COMPILE = Stage(
    name="compile",
    revision=1,
    function=compile_engine,
    libraries=("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "onnx-ir"),
    host_bound=True,  # an engine is for the GPU that it was built on
)
BUILD_KIT = Stage(name="build-kit", revision=1, function=build_kit, libraries=("onnx-ir",))
