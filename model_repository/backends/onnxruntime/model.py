"""Triton's `onnxruntime` backend written in Python, for servers that come without the compiled one.

It serves a model whose configuration says `backend: "onnxruntime"` as it is, and refuses what the compiled backend
(triton-inference-server/onnxruntime_backend, `src/onnxruntime.cc`) would refuse: tensors that the graph does not have,
other data types, dimensions that do not fit, batching of a graph that cannot be batched. What loads here loads there;
what is not covered (ragged batches, bfloat16, execution providers other than the CPU's) is refused with its name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

if TYPE_CHECKING:
    from model_repository.backends.python_based import (
        Arrays,
        GraphTensor,
        check_tensors,
        ensure_cpu,
        response,
        string_parameters,
        version_folder,
    )
else:
    from python_based import GraphTensor, check_tensors, ensure_cpu, response, string_parameters, version_folder

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
        ensure_cpu(args, "onnxruntime")
        folder = version_folder(args)
        self._batched = int(config["max_batch_size"]) > 0
        self._session = onnxruntime.InferenceSession(
            str(_graph_file(folder, config.get("default_model_filename") or "model.onnx")),
            _session_options(config, folder.parent),
            providers=["CPUExecutionProvider"],
        )
        self._run_options = _run_options(config)
        # As in `onnxruntime_utils.cc`: an input's dynamic axis may be pinned by the configuration, an output's may not.
        for role, nodes in (("input", self._session.get_inputs()), ("output", self._session.get_outputs())):
            tensors = [_tensor(node) for node in nodes]
            check_tensors(role, config[role], tensors, "onnxruntime", batched=self._batched, exact=role == "output")
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
                responses[index] = response(requests[index], answer)
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


def _graph_file(folder: Path, name: str) -> Path:
    """The graph, or the graph of that name inside a folder of that name (Triton's layout for external data)."""
    path = folder / name
    return path / name if path.is_dir() else path


def _session_options(config: dict[str, Any], model_folder: Path) -> Any:
    parameters = string_parameters(config)
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


def _tensor(node: Any) -> GraphTensor:
    shape = [axis if isinstance(axis, int) else -1 for axis in node.shape]
    return GraphTensor(node.name, _TRITON_TYPES.get(node.type, node.type), shape)
