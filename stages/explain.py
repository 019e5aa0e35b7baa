"""Explain: where in a variant the error comes from, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from calibration.samples import Samples
from stages.artifact import Artifact
from stages.check.outputs import OutputSplitter
from stages.errors import InputError, StageError
from stages.inner_values import inner_values, quantised_operators
from stages.model import Model
from stages.noise import Noise, decibels
from stages.progress import SILENT, Progress
from stages.quantise.groups import groups, quantisable_graph
from stages.quantise.names import Names
from stages.quantise.operators import Operator, operators
from stages.runtime.batch import batches
from stages.stage import Stage

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["EXPLAIN", "ExplainOptions", "explain"]


class ExplainOptions(BaseModel):
    """`samples`: how many of the data are run, evenly spaced. `threads`: 0 is every usable core."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=16, ge=1)
    threads: int = Field(default=0, ge=0)


def explain(
    model: Artifact,
    variant: Artifact,
    data: Artifact,
    options: ExplainOptions,
    out: Path,
    progress: Progress = SILENT,
) -> Artifact:
    """How far the values inside `variant` are from those inside `model`, the graph that it was made from: an artifact
    of kind `explanation`.

    Both run on some samples of `data`, one at a time, and what every operator that could be quantised gives (its bias
    added) is compared. In the variant each operator gets what those before it have made of the sample: the ratios are
    cumulative, as it really runs.

    Metadata: `layers` in the graph's order, each with its readable `name`, its `operator` (the name of its output), its
    `type`, its `group` (see `stages.quantise.groups`), whether it is `quantised`, and `sqnr_db`, the signal-to-
    quantisation-noise ratio in decibels (within ±120; null where the variant no longer has that tensor); `outputs`, the
    same of the model's outputs by name; `samples`; `evidence`.

    Raises `StageError` if there is no operator to look at, `InputError` if the data do not fit the model.
    """
    if data.kind != "dataset":
        raise InputError(f"{data.path} is a {data.kind}, not a dataset")
    graph = quantisable_graph(model)
    found = operators(graph)
    if not found:
        raise StageError("the model has no operator with constant 32-bit weights: there is nothing to explain")
    shown = {operator.name: str(_result(operator).name) for operator in found}
    noises = _noises(model, variant, Samples.load(data.path), [*shown.values()], options, progress)
    quantised = quantised_operators(variant, shown)
    names = Names(found)
    group_of = {name: group.name for group in groups(graph) for name in group.operators}
    layers = [
        {
            "name": names[operator.name],
            "operator": operator.name,
            "type": operator.node.op_type,
            "group": group_of[operator.name],
            "quantised": operator.name in quantised,
            "sqnr_db": _decibels(noises.get(shown[operator.name])),
        }
        for operator in found
    ]
    outputs = [spec.name for spec in Model.of(model).signature.outputs]
    metadata = {
        "layers": layers,
        "outputs": {name: _decibels(noises.get(name)) for name in outputs},
        "samples": min(options.samples, data.metadata["samples"]),
        "evidence": data.metadata.get("evidence", data.path.name),
    }
    return Artifact.write(out, "explanation", metadata, {"model": model, "variant": variant, "data": data})


EXPLAIN = Stage(
    name="explain",
    revision=1,
    function=explain,
    libraries=("onnx", "onnx-ir", "onnxruntime"),
    host_bound=True,  # 8-bit products saturate on CPUs without VNNI
)


def _result(operator: Operator) -> ir.Value:
    """What an operator gives, with the bias that alone is added to it: quantising may correct the bias, too."""
    value = operator.node.outputs[0]
    uses = list(value.uses())
    if len(uses) == 1 and uses[0][0].op_type == "Add" and not value.is_graph_output():
        add, position = uses[0]
        bias = add.inputs[1 - position]
        if bias is not None and bias.is_initializer():
            return add.outputs[0]
    return value


def _noises(
    model: Artifact,
    variant: Artifact,
    samples: Samples,
    tensors: list[str],
    options: ExplainOptions,
    progress: Progress,
) -> dict[str, Noise]:
    places = np.linspace(0, len(samples) - 1, min(options.samples, len(samples))).round().astype(np.int64)
    chosen = samples.take(places.tolist())
    signature = Model.of(model).signature
    splitter = OutputSplitter(signature, chosen)
    noises: dict[str, Noise] = {}
    with (
        inner_values(model, tensors, options.threads) as before,
        inner_values(variant, tensors, options.threads) as after,
    ):
        for done, ((sample, *_), batch) in enumerate(batches(chosen, signature, 1)):
            progress.update("looking inside", done, len(chosen))
            wanted, given = before(batch), after(batch)
            valid = splitter.valid(sample)
            for name in wanted.keys() & given.keys():
                noises.setdefault(name, Noise()).add(_valid(given[name], valid), _valid(wanted[name], valid))
    return noises


def _valid(values: NDArray[Any], positions: NDArray[np.int64] | None) -> NDArray[Any]:
    """Without the positions of a tensor [1, positions, channels] that are padding in the data themselves."""
    if positions is None or values.ndim < 3 or values.shape[1] <= positions.max(initial=0):
        return values
    return values[:, positions]


def _decibels(noise: Noise | None) -> float | None:
    return None if noise is None else decibels(noise.ratio)
