"""FP16: weights and arithmetic in 16-bit floats, inputs and outputs as they were (`stages.quantise.half`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from calibration.statistics import Statistics
from stages.artifact import Artifact
from stages.errors import StageError
from stages.model import Model
from stages.onnx_model import read_graph, weight_bytes
from stages.progress import Progress
from stages.quantise.attention import expand_attention
from stages.quantise.half import in_half
from stages.quantise.operators import is_excluded, operators
from stages.quantise.variant import VariantConfig, build, write_variant

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Fp16"]


class Fp16(VariantConfig):
    """16-bit floats. On a CPU it halves the file and gains no time: ONNX Runtime casts around most operators there.

    `keep_fp32` are types of operators (`("Softmax", …)`) that stay in 32 bits, as what `exclude` names does. With the
    latter stays what is computed from it alone, up to the next operator with weights: an attention with its softmax.
    """

    precision: ClassVar[str] = "fp16"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "tensorrt")
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "onnx-ir")

    type: Literal["fp16"] = "fp16"
    runtime: Literal["onnxruntime", "onnxruntime-cuda", "tensorrt"] = "onnxruntime"
    keep_fp32: tuple[str, ...] = ()

    @property
    def can_fall_back(self) -> bool:
        return True


@build.register
def _(config: Fp16, model: Artifact, out: Path, progress: Progress, statistics: Statistics | None) -> Artifact:
    """Raises `StageError` if the model has no 32-bit weights."""
    import onnx_ir

    graph = read_graph(model)
    bytes_before = weight_bytes(graph)
    signature = Model.of(model).signature
    exclude: list[str] = []
    if config.exclude:
        graph.graph.sort()
        expand_attention(graph)  # its projections are operators of their own to whom names them
        exclude = _kept(graph, frozenset(config.exclude))
    converted = in_half(graph, signature, progress, keep_types=config.keep_fp32, exclude=exclude)
    if not any(
        value.const_value is not None and value.const_value.dtype == onnx_ir.DataType.FLOAT16
        for value in converted.graph.initializers.values()
    ):
        raise StageError(f"{config.name} found nothing to convert: the model has no 32-bit weights")
    return write_variant(converted, model, out, config, bytes_before)


def _kept(graph: ir.Model, names: frozenset[str]) -> list[str]:
    """What stays in 32 bits with the operators `names` of a sorted graph, by the names of the outputs.

    It is what takes nothing else of all that is computed with weights; masks and positions are not, and do not count.
    """
    weighted = {operator.node for operator in operators(graph)}
    computed: set[ir.Value] = set()
    kept: set[ir.Node] = set()
    for node in graph.graph:
        given = [value for value in node.inputs if value is not None and value in computed]
        follows = bool(given) and node not in weighted and all(value.producer() in kept for value in given)
        if follows or is_excluded(node, names):
            kept.add(node)
        if given or node in weighted:
            computed.update(node.outputs)
    return [str(node.outputs[0].name) for node in graph.graph if node in kept]
