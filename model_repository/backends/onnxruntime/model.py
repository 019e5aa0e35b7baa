"""Triton's `onnxruntime` backend written in Python, for servers that come without the compiled one.

Triton runs this file inside its Python backend's stub: it is no part of our own process, and its environment holds
NumPy and ONNX Runtime only. It serves a model whose configuration says `backend: "onnxruntime"` as it is, and refuses
what the compiled backend (triton-inference-server/onnxruntime_backend, `src/onnxruntime.cc`) would refuse: tensors that
the graph does not have, other data types, dimensions that do not fit, batching of a graph that cannot be batched.
What loads here loads there; what is not covered (ragged batches, bfloat16, execution providers other than the CPU's)
is refused with its name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

_TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}

_GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""`optimization { graph { level } }` as the compiled backend reads it; every other value enables everything."""


class TritonPythonModel:
    """One instance of one model version: an ONNX Runtime session on the CPU."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open `<model>/<version>/model.onnx` and check the configuration against it."""
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] == "GPU":
            raise pb_utils.TritonModelException("this onnxruntime backend serves KIND_CPU instances only")
        folder = Path(args["model_repository"]) / args["model_version"]
        self._batched = int(config["max_batch_size"]) > 0
        self._session = onnxruntime.InferenceSession(
            str(_graph_file(folder, config.get("default_model_filename") or "model.onnx")),
            _session_options(config, folder.parent),
            providers=["CPUExecutionProvider"],
        )
        self._run_options = _run_options(config)
        _check_tensors("input", config["input"], self._session.get_inputs(), self._batched)
        _check_tensors("output", config["output"], self._session.get_outputs(), self._batched)
        self._outputs = [output["name"] for output in config["output"]]
        self._strings = {item["name"] for item in config["input"] if item["data_type"] == "TYPE_STRING"}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of one execution: those that fit together in one run, the others in runs of their own."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[object, list[int]] = {}
        inputs: list[Arrays] = []
        for index, request in enumerate(requests):
            arrays = {tensor.name(): self._as_array(tensor) for tensor in request.inputs()}
            inputs.append(arrays)
            alike = tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in arrays.items()))
            groups.setdefault(alike if self._batched else index, []).append(index)
        for members in groups.values():
            for index, answer in zip(members, self._answers([inputs[index] for index in members]), strict=True):
                responses[index] = _response(requests[index], answer)
        return responses

    def finalize(self) -> None:
        """Free the session."""
        del self._session

    def _as_array(self, tensor: Any) -> NDArray[Any]:
        array: NDArray[Any] = tensor.as_numpy()
        if tensor.name() not in self._strings:
            return array
        # Triton hands bytes; ONNX Runtime takes text.
        decoded = [value.decode() if isinstance(value, bytes) else value for value in array.ravel()]
        return np.array(decoded, dtype=object).reshape(array.shape)

    def _answers(self, group: list[Arrays]) -> list[Arrays | str]:
        """The outputs of each request of a group, or why it has none."""
        if len(group) == 1:
            return [self._run(group[0])]
        together = self._run({name: np.concatenate([arrays[name] for arrays in group]) for name in group[0]})
        sizes = [len(next(iter(arrays.values()))) for arrays in group]
        if isinstance(together, str) or any(len(output) != sum(sizes) for output in together.values()):
            # One bad request must not spoil its neighbours' answers, so each is run by itself.
            return [self._run(arrays) for arrays in group]
        ends = np.cumsum(sizes).tolist()
        return [
            {name: output[end - size : end] for name, output in together.items()}
            for size, end in zip(sizes, ends, strict=True)
        ]

    def _run(self, arrays: Arrays) -> Arrays | str:
        try:
            outputs = self._session.run(self._outputs, arrays, self._run_options)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base; the client gets each as its answer
            return f"onnxruntime: {error}"
        return dict(zip(self._outputs, outputs, strict=True))


def _response(request: Any, answer: Arrays | str) -> Any:
    if isinstance(answer, str):
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(answer))
    wanted = request.requested_output_names()
    return pb_utils.InferenceResponse(
        output_tensors=[
            pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in answer.items() if name in wanted
        ]
    )


def _graph_file(folder: Path, name: str) -> Path:
    """The graph, or the graph of that name inside a folder of that name (Triton's layout for external data)."""
    path = folder / name
    return path / name if path.is_dir() else path


def _session_options(config: dict[str, Any], model_folder: Path) -> Any:
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    optimization = config.get("optimization", {})
    for kind in ("gpu_execution_accelerator", "cpu_execution_accelerator"):
        for accelerator in optimization.get("execution_accelerators", {}).get(kind, []):
            raise pb_utils.TritonModelException(
                f"this onnxruntime backend has no execution accelerator {accelerator['name']!r}"
            )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "0"))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "0"))
    mode = parameters.get("execution_mode", "0")
    if mode not in ("0", "1"):
        raise pb_utils.TritonModelException(f"execution_mode is {mode!r}; it is 0 (sequential) or 1 (parallel)")
    if mode == "1":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = parameters.get("enable_mem_arena", "1") != "0"
    options.enable_mem_pattern = parameters.get("enable_mem_pattern", "1") != "0"
    key = "session.use_device_allocator_for_initializers"
    if key in parameters:
        options.add_session_config_entry(key, parameters[key])
    level = int(optimization.get("graph", {}).get("level", 0))
    options.graph_optimization_level = _GRAPH_LEVELS.get(level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    for library in config.get("model_operations", {}).get("op_library_filename", []):
        options.register_custom_ops_library(str(model_folder / library))
    return options


def _run_options(config: dict[str, Any]) -> Any:
    options = onnxruntime.RunOptions()
    key = "memory.enable_memory_arena_shrinkage"
    if key in config.get("parameters", {}):
        options.add_run_config_entry(key, config["parameters"][key]["string_value"])
    return options


def _check_tensors(role: str, configured: list[dict[str, Any]], nodes: list[Any], batched: bool) -> None:
    """Hold the configuration against the graph as the compiled backend does (`onnxruntime_utils.cc`)."""
    graph = {node.name: node for node in nodes}
    if role == "input" and len(configured) != len(graph):
        raise pb_utils.TritonModelException(
            f"the configuration has {len(configured)} inputs, the graph has {len(graph)}: {', '.join(graph)}"
        )
    for tensor in configured:
        name = tensor["name"]
        if name not in graph:
            raise pb_utils.TritonModelException(f"unexpected {role} {name!r}; the graph has {', '.join(graph)}")
        if tensor.get("allow_ragged_batch"):
            raise pb_utils.TritonModelException(f"{role} {name!r}: this onnxruntime backend has no ragged batches")
        expected = _TRITON_TYPES.get(graph[name].type)
        if expected != tensor["data_type"]:
            raise pb_utils.TritonModelException(
                f"{role} {name!r} is {tensor['data_type']} in the configuration, "
                f"{expected or graph[name].type} in the graph"
            )
        shape = [axis if isinstance(axis, int) else -1 for axis in graph[name].shape]
        if batched and (not shape or shape[0] != -1):
            raise pb_utils.TritonModelException(
                f"{role} {name!r}: max_batch_size is above 0, but the graph's shape {shape} has no dynamic first axis"
            )
        dims = [int(axis) for axis in tensor.get("reshape", tensor).get("shape" if "reshape" in tensor else "dims", [])]
        full = [-1, *dims] if batched else dims
        # An input's dynamic axis may be pinned by the configuration; an output's dims must be the graph's own.
        fits = len(full) == len(shape) and all(
            have == want or (role == "input" and want == -1) for have, want in zip(full, shape, strict=True)
        )
        if not fits:
            raise pb_utils.TritonModelException(
                f"{role} {name!r}: the configuration's dims {full} do not fit the graph's {shape}"
            )
