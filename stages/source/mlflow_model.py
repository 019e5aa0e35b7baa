"""A model that MLflow keeps: `models:/name/3`, `models:/name@alias`, `runs:/id/path`, or a folder with an MLmodel.

Of the flavours, `onnx`, `transformers` and `pytorch` are read; the last is a pickle unless it was logged as `pt2`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.artifact import link
from stages.errors import InputError
from stages.mlflow_access import asking
from stages.model import Task
from stages.source.exported import input_names
from stages.source.pickles import refuse_pickle
from stages.source.python_function import write_program

__all__ = ["download", "trace", "unpack"]


def download(reference: str, tracking_uri: str | None, scratch: Path) -> Path:
    """The folder with the files of the model, brought under `scratch` if it is not one already.

    Raises `InputError` if MLflow knows no such model, `RequirementError` if its server cannot be reached.
    """
    if not reference.startswith(("models:/", "runs:/")):
        return Path(reference).expanduser()
    try:
        with asking(reference, tracking_uri):
            import mlflow

            root = mlflow.artifacts.download_artifacts(artifact_uri=reference, dst_path=str(scratch / "download"))
    except OSError as error:
        raise InputError(f"the files of {reference} cannot be brought from MLflow: {error}") from error
    return Path(root)


def unpack(root: Path, reference: str, allow_pickle: bool, scratch: Path) -> Path | None:
    """The file or folder in a downloaded model that can be located, or None for a pickled PyTorch module.

    Raises `InputError` if the model has no flavour that is read here, or is a pickle that was not allowed.
    """
    import yaml

    try:
        flavors: dict[str, Any] = yaml.safe_load((root / "MLmodel").read_text())["flavors"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{reference} is not an MLflow model: its MLmodel cannot be read ({error})") from error
    if "onnx" in flavors:
        return _inside(root, flavors["onnx"].get("data", "model.onnx"))
    if "transformers" in flavors:
        return _together(root, flavors["transformers"], scratch / "huggingface")
    if "pytorch" in flavors:
        data = _inside(root, flavors["pytorch"].get("model_data", "data"))
        if (data / "model.pt2").is_file():
            return data / "model.pt2"
        if not allow_pickle:
            raise refuse_pickle(
                f"{reference} ({data.name}/model.pth)", "log it again with `serialization_format='pt2'`"
            )
        return None
    raise InputError(
        f"{reference} has the flavours {', '.join(flavors)}; of MLflow's, onnx, transformers and pytorch are read"
    )


def trace(root: Path, reference: str, out: Path, task: Task | None) -> dict[str, Any]:
    """Trace a pickled PyTorch module with inputs made from its MLflow signature; returns the source metadata."""
    import mlflow.pytorch
    import torch
    import yaml

    signature = yaml.safe_load((root / "MLmodel").read_text()).get("signature") or {}
    inputs = json.loads(signature.get("inputs") or "[]")
    if not inputs or any(entry.get("type") != "tensor" for entry in inputs):
        raise InputError(
            f"{reference} was logged without a tensor signature, so its inputs are not known: "
            "log it again with an input_example"
        )
    module = mlflow.pytorch.load_model(str(root), map_location="cpu")
    names = [entry.get("name") for entry in inputs]
    examples, axes = [], []
    for entry in inputs:
        spec = entry["tensor-spec"]
        shape = [3 if size == -1 else size for size in spec["shape"]]
        examples.append(torch.ones(shape, dtype=getattr(torch, spec["dtype"])))
        axes.append({axis: _axis(axis) for axis, size in enumerate(spec["shape"]) if size == -1})
    if len(inputs) == 1:
        first = input_names(module, examples, {})[0]
        return write_program((module, tuple(examples), {first: axes[0]}), reference, out, task)
    named = dict(zip(names, examples, strict=True)), dict(zip(names, axes, strict=True))
    return write_program((module, *named), reference, out, task)


def _together(root: Path, flavor: dict[str, Any], folder: Path) -> Path:
    """MLflow keeps a pipeline's model and its tokenizer or processor in folders of their own: put them in one."""
    parts = [_inside(root, flavor.get("model_binary") or flavor.get("pipeline") or "model")]
    parts += [_inside(root, f"components/{component}") for component in flavor.get("components") or ()]
    for part in parts:
        for file in sorted(part.rglob("*")) if part.is_dir() else ():
            target = folder / file.relative_to(part)
            if file.is_file() and not target.exists():
                link(file, target)
    return folder


def _inside(root: Path, name: str) -> Path:
    if not (root / name).resolve().is_relative_to(root.resolve()):
        raise InputError(f"MLmodel: the path {name!r} leaves the model's folder")
    return root / name


def _axis(axis: int) -> str:
    return "batch" if axis == 0 else f"axis_{axis}"
