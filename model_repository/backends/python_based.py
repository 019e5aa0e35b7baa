"""What our backends for Triton share.

Triton runs each of them inside its Python backend's stub: they are no part of our own process, and their environment
holds NumPy and the runtimes only. This file is laid beside every `model.py` there, and is imported as `python_based`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class GraphTensor:
    """An input or output as the runtime finds it in the graph.

    `data_type` is Triton's name for it, or the runtime's own where Triton has none; -1 in `shape` is a dynamic axis.
    """

    name: str
    data_type: str
    shape: list[int]


def version_folder(args: dict[str, str]) -> Path:
    """Where the files of the served version lie."""
    return Path(args["model_repository"]) / args["model_version"]


def string_parameters(config: dict[str, Any]) -> dict[str, str]:
    """The configuration's `parameters`."""
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def ensure_cpu(args: dict[str, str], backend: str) -> None:
    """Refuse instances on a GPU."""
    if args["model_instance_kind"] == "GPU":
        raise pb_utils.TritonModelException(f"this {backend} backend serves KIND_CPU instances only")


def check_tensors(
    role: str,
    configured: list[dict[str, Any]],
    graph: Sequence[GraphTensor],
    backend: str,
    *,
    batched: bool = False,
    exact: bool = False,
) -> None:
    """Hold the configuration's inputs or outputs against the graph's.

    Where the graph's axis is dynamic, the configuration may give a size, unless the dimensions must be `exact`.
    """
    found = {tensor.name: tensor for tensor in graph}
    if role == "input" and len(configured) != len(found):
        raise pb_utils.TritonModelException(
            f"the configuration has {len(configured)} inputs, the graph has {len(found)}: {', '.join(found)}"
        )
    for tensor in configured:
        name = tensor["name"]
        if name not in found:
            raise pb_utils.TritonModelException(f"unexpected {role} {name!r}; the graph has {', '.join(found)}")
        if tensor.get("allow_ragged_batch"):
            raise pb_utils.TritonModelException(f"{role} {name!r}: this {backend} backend has no ragged batches")
        shape, data_type = found[name].shape, found[name].data_type
        if data_type != tensor["data_type"]:
            raise pb_utils.TritonModelException(
                f"{role} {name!r} is {tensor['data_type']} in the configuration, {data_type} in the graph"
            )
        if batched and (not shape or shape[0] != -1):
            raise pb_utils.TritonModelException(
                f"{role} {name!r}: max_batch_size is above 0, but the graph's shape {shape} has no dynamic first axis"
            )
        dims = [int(axis) for axis in tensor.get("reshape", tensor).get("shape" if "reshape" in tensor else "dims", [])]
        full = [-1, *dims] if batched else dims
        fits = len(full) == len(shape) and all(
            have == want or (want == -1 and not exact) for have, want in zip(full, shape, strict=True)
        )
        if not fits:
            raise pb_utils.TritonModelException(
                f"{role} {name!r}: the configuration's dims {full} do not fit the graph's {shape}"
            )


def response(request: Any, answer: Arrays | str) -> Any:
    """Triton's response to a request: the outputs that it asked for, or why there are none."""
    if isinstance(answer, str):
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(answer))
    wanted = request.requested_output_names()
    return pb_utils.InferenceResponse(
        output_tensors=[
            pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in answer.items() if name in wanted
        ]
    )
