"""A `torch.export` program as a program that is called by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.convert.program import Program
from stages.errors import InputError
from stages.runtime import Arrays
from stages.source.exported import load as load_file

__all__ = ["load"]

_SIZES = (1, 3, 4)


def load(source: Artifact, allow_pickle: bool) -> Program:
    """The program of a `.pt2` file, with its own example inputs.

    The names of its dynamic axes are those the source artifact gives (`axes`), else `batch` for the first axis.
    Raises `InputError` for a file that is not safe or has no example inputs, and for inputs that are no tensors.
    """
    import torch
    from torch.utils import _pytree as pytree

    path = source.path / source.metadata["file"]
    exported = load_file(path, allow_pickle)
    names = exported.graph_signature.user_inputs
    if exported.example_inputs is None:
        raise InputError(f"{path} was saved without its example inputs, so there is nothing to try it with")
    values = pytree.tree_leaves(exported.example_inputs)
    if len(values) != len(names) or not all(isinstance(value, torch.Tensor) for value in values):
        raise InputError(f"{path}: every input must be a tensor, they are {[type(value).__name__ for value in values]}")
    examples = {name: value.numpy() for name, value in zip(names, values, strict=True)}
    axes = _axes(exported, source.metadata.get("axes", {}))
    trials = [_resized(examples, axes, size) for size in _SIZES] if any(axes.values()) else [_resized(examples, {}, 0)]
    outputs = _output_names(exported)
    return Program(
        module=_ByName(exported, names, outputs),
        examples=examples,
        axes=axes,
        outputs=tuple(outputs),
        trials=tuple(trials),
        origin=path.name,
        exported=exported,
    )


class _ByName:
    """Calls a program with tensors by name; the program wants them in the structure that it was traced with."""

    def __init__(self, exported: Any, inputs: list[str], outputs: list[str]) -> None:
        self._module = exported.module()
        self._structure = exported.call_spec.in_spec
        self._inputs = inputs
        self._outputs = outputs

    def __call__(self, **tensors: Any) -> dict[str, Any]:
        from torch.utils import _pytree as pytree

        arguments, keywords = pytree.tree_unflatten([tensors[name] for name in self._inputs], self._structure)
        answers = pytree.tree_leaves(self._module(*arguments, **keywords))
        return dict(zip(self._outputs, answers, strict=True))


def _output_names(exported: Any) -> list[str]:
    """The keys of a dictionary that the program returns, else `output`, or `output_0`, `output_1`, …"""
    structure = exported.call_spec.out_spec
    count = len(exported.graph_signature.user_outputs)
    if structure.type is dict and structure.num_leaves == len(structure.context) == count:
        return [str(name) for name in structure.context]
    return ["output"] if count == 1 else [f"output_{place}" for place in range(count)]


def _axes(exported: Any, said: dict[str, dict[str, str]]) -> dict[str, dict[int, str]]:
    """The dynamic axes of every input; axes of one size have one name, and every first axis is the batch."""
    shapes = {
        node.name: node.meta["val"].shape
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in exported.graph_signature.user_inputs
    }
    names: dict[str, str] = {}
    for given in (True, False):
        for tensor, shape in shapes.items():
            for axis, size in enumerate(shape):
                chosen = said.get(tensor, {}).get(str(axis))
                if not isinstance(size, int) and (chosen or not given):
                    names.setdefault(str(size), chosen or ("batch" if axis == 0 else f"{tensor}_{axis}"))
    return {
        tensor: {axis: names[str(size)] for axis, size in enumerate(shape) if not isinstance(size, int)}
        for tensor, shape in shapes.items()
    }


def _resized(examples: Arrays, axes: dict[str, dict[int, str]], size: int) -> Arrays:
    """Arrays of other sizes, of values drawn from the examples: whatever range they need, they stay in it."""
    rng = np.random.default_rng(size)
    order = sorted({said for dynamic in axes.values() for said in dynamic.values()})
    sizes = {said: size + place if said != "batch" else size for place, said in enumerate(order)}
    resized: dict[str, NDArray[Any]] = {}
    for name, array in examples.items():
        shape = [sizes.get(axes.get(name, {}).get(axis, ""), length) for axis, length in enumerate(array.shape)]
        resized[name] = rng.choice(array.ravel(), size=shape) if array.size else np.zeros(shape, array.dtype)
    return resized
