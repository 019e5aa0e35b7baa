"""A PyTorch model that a Python function gives: `module:function`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibration.errors import DataError
from calibration.functions import import_function
from stages.errors import InputError
from stages.model import Task
from stages.source.exported import Axes, export, input_names, save

__all__ = ["bring", "bring_pickle", "write_program"]

_FORM = "return (module, example inputs) or (module, example inputs, dynamic axes)"


def bring(reference: str, out: Path, task: Task | None) -> dict[str, Any]:
    """Call the function `reference` names and write what it gives to `out` as a `torch.export` program.

    The function takes nothing and returns `(module, example inputs)`: a `torch.nn.Module`, and a tuple or a dictionary
    of tensors with at least two samples. A third value, `{"x": {0: "batch", 1: "time"}}`, says which axes are
    dynamic; without it the first axis of every input is.
    Returns the metadata of the source artifact. Raises `InputError` if the function cannot be had or gives
    something else.
    """
    try:
        function = import_function(reference)
    except DataError as error:
        raise InputError(str(error)) from error
    return write_program(function(), reference, out, task)


def bring_pickle(path: Path, out: Path, task: Task | None) -> dict[str, Any]:
    """The same for a pickle that holds what such a function gives, or a module with `example_input_array`."""
    import pickle

    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, AttributeError, ImportError) as error:
        raise InputError(f"{path} cannot be unpickled: {error}") from error
    if isinstance(found, torch.nn.Module) and getattr(found, "example_input_array", None) is not None:
        examples: Any = found.example_input_array
        found = (found, (examples,) if isinstance(examples, torch.Tensor) else examples)
    return write_program(found, str(path), out, task)


def write_program(found: Any, origin: str, out: Path, task: Task | None) -> dict[str, Any]:
    """Trace `(module, example inputs[, dynamic axes])` and write `out`/model.pt2; returns the metadata."""
    import torch

    if not (isinstance(found, tuple) and len(found) in (2, 3) and isinstance(found[0], torch.nn.Module)):
        kind = f"a {type(found).__name__}"
        raise InputError(f"{origin} gives {kind}, which says nothing of the model's inputs: it must {_FORM}")
    module, examples = found[0], found[1]
    arguments = () if isinstance(examples, Mapping) else (examples,) if torch.is_tensor(examples) else tuple(examples)
    keywords = examples if isinstance(examples, Mapping) else {}
    tensors = {**dict(zip(input_names(module, arguments, keywords), arguments, strict=False)), **keywords}
    wrong = [name for name, value in tensors.items() if not torch.is_tensor(value)]
    if wrong or not tensors:
        raise InputError(f"{origin}: the example inputs must be tensors; {', '.join(wrong) or 'there are none'}")
    axes: Axes = found[2] if len(found) == 3 else {name: {0: "batch"} for name in tensors}
    for name, dynamic in axes.items():
        if name not in tensors:
            raise InputError(f"{origin}: dynamic axes of {name!r}, which is none of the inputs {', '.join(tensors)}")
        for axis, said in dynamic.items():
            if not 0 <= axis < tensors[name].ndim:
                raise InputError(f"{origin}: {name} has no axis {axis} ({said}): it has {tensors[name].ndim} axes")
            if tensors[name].shape[axis] < 2:
                raise InputError(
                    f"{origin}: axis {axis} ({said}) of the example {name} has size {tensors[name].shape[axis]}; "
                    "a dynamic axis is traced with 2 or more, for 0 and 1 would be taken for constants"
                )
    save(export(module, arguments, keywords, axes, origin), out / "model.pt2")
    named = {name: {str(axis): said for axis, said in sorted(dynamic.items())} for name, dynamic in axes.items()}
    return {"type": "exported", "file": "model.pt2", "task": task or "generic", "axes": named}
