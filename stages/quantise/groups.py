"""Groups of operators that are quantised, or left alone, together: a block's attention, its MLP, single operators.

What belongs together is read from the shape of the graph, not from names: in a residual block a branch leaves the main
stream and is added to it again (`h + attention(h)`, `h + mlp(h)`). The products on one such branch are a group, an
attention if there is a softmax on it. Names only say what a group is called.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from stages.artifact import Artifact
from stages.fuse import FUSED_DOMAIN
from stages.onnx_model import read_graph
from stages.quantise.attention import expand_attention
from stages.quantise.names import Names, initialisers_of, parameter_path
from stages.quantise.operators import Operator, is_excluded, operators

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Group", "groups", "quantisable_graph"]

_ADDING = {
    ("", "Add"),
    (FUSED_DOMAIN, "SkipLayerNormalization"),
    (FUSED_DOMAIN, "SkipSimplifiedLayerNormalization"),
}
_ATTENDING = {
    ("", "Softmax"),
    ("", "Attention"),
    (FUSED_DOMAIN, "MultiHeadAttention"),
    (FUSED_DOMAIN, "GroupQueryAttention"),
}
_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Group:
    """`operators` by the names of their outputs (`Operator.name`), in the graph's order."""

    name: str
    operators: tuple[str, ...]


def quantisable_graph(model: Artifact) -> ir.Model:
    """The graph of a model as the variants' handlers see it: sorted, the projections outside of fused attention."""
    graph = read_graph(model)
    graph.graph.sort()
    expand_attention(graph)
    return graph


def groups(graph: ir.Model, exclude: Collection[str] = ()) -> list[Group]:
    """Every quantisable operator of a sorted graph in exactly one group, by the order of their first operators; those
    that `exclude` names (see `VariantConfig.exclude`) in none.

    Operators that share a weight are in one group: to quantise one of them alone would keep the weight twice.
    """
    excluded = frozenset(exclude)
    found = [operator for operator in operators(graph) if not is_excluded(operator.node, excluded)]
    names = Names(found)
    members: dict[str, list[Operator]] = {}
    for branch in _branches(graph, found):
        outputs = [operator.name for operator in branch.products]
        label = "attention" if branch.attends else "MLP"
        name = names.branch(outputs, branch.parameters, label, members) if len(outputs) > 1 else names[outputs[0]]
        members[name] = branch.products
    grouped = {operator.name for products in members.values() for operator in products}
    members |= {names[operator.name]: [operator] for operator in found if operator.name not in grouped}
    place = {operator.name: number for number, operator in enumerate(found)}
    listed = [
        Group(name, tuple(sorted((operator.name for operator in group), key=place.__getitem__)))
        for name, group in _joined_by_weights(members).items()
    ]
    return sorted(listed, key=lambda group: place[group.operators[0]])


@dataclass(frozen=True)
class _Branch:
    """What lies between a value and its addition to what was made of it."""

    products: list[Operator]
    parameters: list[str]
    attends: bool


def _branches(graph: ir.Model, found: Sequence[Operator]) -> list[_Branch]:
    """The residual branches with the products on them, each product on the smallest one that holds it: a connection may
    go round several blocks."""
    products = {operator.node: operator for operator in found if operator.kind == "product"}
    smallest: dict[str, int] = {}
    ways = []
    for number, way in enumerate(_ways(graph, products)):
        ways.append(way)
        for operator in way.products:
            held = smallest.get(operator.name)
            if held is None or len(way.products) < len(ways[held].products):
                smallest[operator.name] = number
    return [
        _Branch(own, way.parameters, way.attends)
        for number, way in enumerate(ways)
        if (own := [operator for operator in way.products if smallest[operator.name] == number])
    ]


def _ways(graph: ir.Model, products: dict[ir.Node, Operator]) -> Iterator[_Branch]:
    """What lies between a value and an addition to it, wherever a value is added to what was made of it.

    Whatever counts has a bit, and every value the bits of all that leads to it. Of what comes from aside, as keys and
    values of a cross-attention do, only the last products count: the encoder before them is none of this block.
    """
    masking = _masking(graph)
    additions = {node: node.inputs[:2] for node in graph.graph if _is(node, _ADDING) and node not in masking}
    streams = {_unscaled(value) for values in additions.values() for value in values if value and _computed(value)}
    marks: dict[tuple[str, object], int] = {}
    leading: dict[ir.Value, int] = {}

    def bit(kind: str, thing: object) -> int:
        return marks.setdefault((kind, thing), 1 << len(marks))

    def leads_on(operator: Operator, others: Sequence[Operator]) -> bool:
        own = bit("product", operator.node)
        return any(leading[other.node.outputs[0]] & own for other in others if other is not operator)

    for node in graph.graph:
        reached = 0
        for value in node.inputs:
            if value is None:
                continue
            if value not in leading:  # an input of the graph, or a constant
                path = parameter_path(value)
                leading[value] = bit("parameter", path) if path else 0
            reached |= leading[value]
        for added, branch in permutations(additions.get(node, ()), 2):
            stream = _unscaled(added) if added else None
            if stream in streams and branch is not None and leading[branch] & bit("stream", stream):
                between = leading[branch] & ~leading[stream]
                on_it = [key for key, own in marks.items() if own & between]
                held = [products[thing] for kind, thing in on_it if kind == "product"]
                aside = [operator for operator in held if not leading[operator.node.outputs[0]] & bit("stream", stream)]
                yield _Branch(
                    [operator for operator in held if operator not in aside or not leads_on(operator, aside)],
                    [str(thing) for kind, thing in on_it if kind == "parameter"],
                    any(kind == "attention" for kind, _ in on_it),
                )
        if node in products:
            reached |= bit("product", node)
        if _is(node, _ATTENDING):
            reached |= bit("attention", node)
        for value in node.outputs:
            leading[value] = reached | (bit("stream", value) if value in streams else 0)


def _masking(graph: ir.Model) -> set[ir.Node]:
    """What stands between a product and a softmax. A mask that is added there has had its part in all layers before,
    and is no stream for that."""
    found: set[ir.Node] = set()
    left = [node for node in graph.graph if _is(node, {("", "Softmax")})]
    while left:
        for value in left.pop().inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in found and producer.op_type not in _PRODUCTS:
                found.add(producer)
                left.append(producer)
    return found


def _unscaled(value: ir.Value) -> ir.Value:
    """A stream may be scaled by a constant where it is added."""
    producer = value.producer()
    if producer is None or producer.op_type not in ("Mul", "Div", "Cast", "Identity"):
        return value
    computed = [given for given in producer.inputs if given is not None and _computed(given)]
    return computed[0] if len(computed) == 1 else value


def _is(node: ir.Node, kinds: set[tuple[str, str]]) -> bool:
    return (node.domain, node.op_type) in kinds


def _computed(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type != "Constant"


def _joined_by_weights(members: dict[str, list[Operator]]) -> dict[str, list[Operator]]:
    joined: dict[str, list[Operator]] = {}
    owners: dict[ir.Value, str] = {}
    for name, group in members.items():
        weights = [weight for operator in group for weight in initialisers_of(operator.weight)]
        owner = next((owners[weight] for weight in weights if weight in owners), name)
        joined.setdefault(owner, []).extend(group)
        for weight in weights:
            owners.setdefault(weight, owner)
    return joined
