"""A trial of a graph that was just written: random batches that fit its inputs, and what it answers to them.

Random inputs say whether a graph runs, whether its answers are finite and whether two forms of it compute the same.
They say nothing of accuracy; `check` does, on the user's data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_repository.signature import Signature, TensorSpec
from stages.artifact import Artifact
from stages.errors import StageError
from stages.runtime import Arrays, RuntimeOptions, open_session
from stages.runtime.batch import numpy_dtype

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Answer", "rows_of_tables", "trial_answers", "trial_batches"]

Answer = dict[str, NDArray[Any]] | StageError
"""What a graph answers to one batch: its outputs, or why it refused."""

# (batch, length): one short sample, several padded ones, and a longer batch than any before it.
_SIZES = ((1, 7), (3, 16), (2, 33))
_IMAGE_SIDE = 64


def trial_batches(graph: ir.Model, signature: Signature) -> list[dict[str, NDArray[Any]]]:
    """Three batches of different shapes for the inputs of `signature`, the same ones each time.

    Integers that choose a row of a table (token ids) are random rows of that table, other integers 0 or 1, floats
    standard normal. Masks are ones with a different number of zeros at the end of each row after the first.
    Empty if an input holds strings.
    """
    if any(spec.dtype == "string" for spec in signature.inputs):
        return []
    rows = rows_of_tables(graph)
    generator = np.random.default_rng(0)
    return [
        {spec.name: _array(spec, batch, length, rows.get(spec.name, 2), generator) for spec in signature.inputs}
        for batch, length in _SIZES
    ]


def trial_answers(artifact: Artifact, batches: list[dict[str, NDArray[Any]]]) -> list[Answer]:
    """What the model answers to each batch. Raises `InputError` if it cannot be opened at all."""
    with open_session(artifact, RuntimeOptions(spinning=False)) as session:
        return [_answer(session, batch) for batch in batches]


def _answer(session: Any, batch: Arrays) -> Answer:
    try:
        outputs: dict[str, NDArray[Any]] = session(batch)
    except StageError as refusal:
        return refusal
    return outputs


def _array(spec: TensorSpec, batch: int, length: int, rows: int, generator: np.random.Generator) -> NDArray[Any]:
    image = len(spec.shape) >= 4
    shape = tuple(
        axis if isinstance(axis, int) else batch if position == 0 else _IMAGE_SIDE if image else length
        for position, axis in enumerate(spec.shape)
    )
    dtype = numpy_dtype(spec.dtype)
    if "mask" in spec.name.lower():
        return _mask(shape).astype(dtype)
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        return generator.integers(0, rows, size=shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def _mask(shape: tuple[int, ...]) -> NDArray[Any]:
    mask = np.ones(shape)
    if len(shape) == 2:
        for row, kept in enumerate(np.linspace(shape[1], 1, num=shape[0] + 1).astype(int)[:-1]):
            mask[row, kept:] = 0
    return mask


def rows_of_tables(graph: ir.Model) -> dict[str, int]:
    """For each input that chooses rows of tables, how many rows the smallest of its tables has."""
    rows: dict[str, int] = {}
    for value in graph.graph.inputs:
        for table in _tables(value):
            rows[str(value.name)] = min(table, rows.get(str(value.name), table))
    return rows


def _tables(indices: ir.Value) -> list[int]:
    found = []
    for node, position in indices.uses():
        if node.op_type in ("Cast", "Identity"):
            found += _tables(node.outputs[0])
        elif node.op_type in ("Gather", "GatherBlockQuantized") and position == 1 and node.inputs[0] is not None:
            table = node.inputs[0].const_value
            axis = node.attributes.get_int("axis", 0)
            if table is not None:
                found.append(int(table.shape[axis]))
    return found
