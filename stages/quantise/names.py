"""What operators are called where people read it: by the paths of their parameters, as the checkpoint has them.

Exporters fold transposes, so that a linear layer's weight is often called `val_70`; its bias, added behind the product,
has kept its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from stages.fuse import FUSED_DOMAIN
from stages.quantise.operators import Operator

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Names", "initialisers_of", "parameter_path"]

_BIASES = {
    ("", "Gemm"): 2,
    ("", "Conv"): 2,
    (FUSED_DOMAIN, "BiasGelu"): 1,
    (FUSED_DOMAIN, "FastGelu"): 1,
    (FUSED_DOMAIN, "SkipLayerNormalization"): 4,
    (FUSED_DOMAIN, "SkipSimplifiedLayerNormalization"): 3,
}
"""Which input of an operator is a bias."""

_Path = tuple[str, ...]


def initialisers_of(value: ir.Value) -> list[ir.Value]:
    """The initialisers that a constant is made of (see `stages.quantise.operators.float_constant`)."""
    producer = value.producer()
    if producer is None:
        return [value]
    return [initialiser for part in producer.inputs if part is not None for initialiser in initialisers_of(part)]


def parameter_path(value: ir.Value | None) -> str | None:
    """The module that an initialiser belongs to, if its name says so: `encoder.layer.0.output.dense` for its `.weight`.

    A parameter that several nodes take tells nothing: exporters keep one copy of equal ones, such as biases of zero.
    """
    if value is None or not value.is_initializer() or len({node for node, _ in value.uses()}) != 1:
        return None
    return str(value.name).rpartition(".")[0] or None


class Names:
    """The names of a graph's operators. No two are the same."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        self._paths = {operator.name: _path_of(operator) for operator in operators}
        self._shared = _shared_start([path for path in self._paths.values() if path])
        plain = {operator.name: self._plain(operator) for operator in operators}
        occurring = Counter(plain.values())
        self._names = {output: name if occurring[name] == 1 else f"{name} ({output})" for output, name in plain.items()}

    def __getitem__(self, output: str) -> str:
        """The name of the operator with this output: the path of its weight or its bias without what all paths begin
        with, or that in the node's own name (`/encoder/layer.0/attention/self/query/MatMul`); else type and output."""
        return self._names[output]

    def branch(self, outputs: Sequence[str], parameters: Sequence[str], label: str, taken: Collection[str]) -> str:
        """A name for several operators of one block: what their paths (or, if they have none, those of the
        `parameters` between them) have in common up to the last number, and the `label`."""
        paths = [path for output in outputs if (path := self._paths[output])]
        common = _common([*paths] or [tuple(path.split(".")) for path in parameters])
        if common[: len(self._shared)] == self._shared:
            common = common[len(self._shared) :]
        numbered = max((place + 1 for place, part in enumerate(common) if part.isdecimal()), default=len(common))
        for path in (common[:numbered], common):
            name = f"{'.'.join(path)} {label}"
            if path and name not in taken:
                return name
        return next(name for number in range(len(taken) + 1) if (name := f"block {number} {label}") not in taken)

    def _plain(self, operator: Operator) -> str:
        path = self._paths[operator.name]
        if not path:
            return f"{operator.node.op_type} {operator.name}"
        name = ".".join(path[len(self._shared) :])
        return name if any(letter.isalpha() for letter in name) else f"{operator.node.op_type} {name}"


def _path_of(operator: Operator) -> _Path:
    weights = [path for value in initialisers_of(operator.weight) if (path := parameter_path(value))]
    if weights:
        return _common([tuple(path.split(".")) for path in weights])
    for node in (operator.node, *(user for user, _ in operator.node.outputs[0].uses())):
        place = _BIASES.get((node.domain, node.op_type))
        biases = node.inputs if node.op_type == "Add" else () if place is None else node.inputs[place : place + 1]
        for bias in biases:
            if path := parameter_path(bias):
                return tuple(path.split("."))
    parts = str(operator.node.name or "").strip("/").split("/")[:-1]
    return tuple(piece for part in parts for piece in part.split("."))


def _common(paths: Sequence[_Path]) -> _Path:
    """The longest beginning of all paths."""
    places = list(zip(*paths, strict=False))
    length = next((number for number, parts in enumerate(places) if len(set(parts)) > 1), len(places))
    return paths[0][:length] if paths else ()


def _shared_start(paths: Sequence[_Path]) -> _Path:
    """What all paths begin with; something is left of each."""
    common = _common(paths)
    return common[: min((len(path) - 1 for path in paths), default=0)]
