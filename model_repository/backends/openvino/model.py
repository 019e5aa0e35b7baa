"""Triton's `openvino` backend written in Python, for servers that come without the compiled one.

It serves a model whose configuration says `backend: "openvino"` as it is, and refuses what the compiled backend
(triton-inference-server/openvino_backend, `src/openvino.cc`) would refuse: tensors that the graph does not have,
dimensions that do not fit, values that a parameter cannot have. What loads here loads there. What is not covered is
refused with its name: other devices than the CPU, custom layers, reshaping, data types other than the graph's, and
batching in the server, for which the compiled backend fixes the graph's batch.

As there, nothing but `HINT_BF16` says in what precision to compute. Without it OpenVINO takes BF16 on processors that
have it, also for a graph in FP32.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

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

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would report the import to its makers
import openvino  # noqa: E402

_TRITON_TYPES = {
    "boolean": "TYPE_BOOL",
    "i8": "TYPE_INT8",
    "i16": "TYPE_INT16",
    "i32": "TYPE_INT32",
    "i64": "TYPE_INT64",
    "u8": "TYPE_UINT8",
    "u16": "TYPE_UINT16",
    "u32": "TYPE_UINT32",
    "u64": "TYPE_UINT64",
    "f16": "TYPE_FP16",
    "f32": "TYPE_FP32",
}
"""What the compiled backend takes (`ModelConfigDataTypeToOpenVINOElement`): neither BF16 nor FP64 nor text."""

_HINTS = ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")


class TritonPythonModel:
    """One instance of one model version: a graph compiled for the CPU, and one inference request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open `<model>/<version>/model.xml` and check the configuration against it."""
        config = json.loads(args["model_config"])
        ensure_cpu(args, "openvino")
        if int(config["max_batch_size"]) > 0:
            raise pb_utils.TritonModelException(
                f"max_batch_size is {config['max_batch_size']}: this openvino backend has no batching in the server "
                "(the compiled one would fix the graph's batch at that size); set it to 0 and give the batch in `dims`"
            )
        properties = _properties(string_parameters(config))
        path = version_folder(args) / (config.get("default_model_filename") or "model.xml")
        try:
            core = openvino.Core()
            core.set_property("CPU", properties)
            graph = core.read_model(path)
            check_tensors("input", config["input"], [_tensor(port) for port in graph.inputs], "openvino")
            check_tensors("output", config["output"], [_tensor(port) for port in graph.outputs], "openvino")
            self._request = core.compile_model(graph, "CPU", {"ALLOW_AUTO_BATCHING": False}).create_infer_request()
        except RuntimeError as error:
            raise pb_utils.TritonModelException(_said(error)) from error
        self._outputs = [output["name"] for output in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: it holds a batch that its client has put together."""
        return [response(request, self._answer(request)) for request in requests]

    def finalize(self) -> None:
        """Free the graph."""
        del self._request

    def _answer(self, request: Any) -> Arrays | str:
        try:
            self._request.start_async({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
            self._request.wait()
            # The request's memory is used again for the next answer.
            return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}
        except RuntimeError as error:
            return _said(error)


def _tensor(port: Any) -> GraphTensor:
    kind = port.get_element_type().get_type_name()
    shape = [-1 if axis.is_dynamic else axis.get_length() for axis in port.get_partial_shape()]
    return GraphTensor(port.get_any_name(), _TRITON_TYPES.get(kind, kind), shape)


def _properties(parameters: dict[str, str]) -> dict[str, Any]:
    """The properties of OpenVINO that `parameters` name, read as the compiled backend reads them.

    That one passes over names that it does not know; here they are refused, for they do nothing.
    """
    properties: dict[str, Any] = {}
    for key, value in parameters.items():
        said = value.upper()
        if key in ("INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS"):
            properties[key] = _value(key, said, said.isdecimal(), "a non-negative number")
        elif key == "NUM_STREAMS":
            properties[key] = _value(key, said, said in ("AUTO", "NUMA") or said.isdecimal(), "AUTO, NUMA or a number")
        elif key == "PERFORMANCE_HINT":
            properties[key] = _value(key, said, said in _HINTS, f"one of {', '.join(_HINTS)}")
        elif key == "HINT_BF16":
            _value(key, said, said == "YES", "YES")
            properties["INFERENCE_PRECISION_HINT"] = "bf16"
        elif key == "TARGET_DEVICE":
            _value(key, said, said == "CPU", "CPU: this openvino backend has no other device")
        elif key in ("CPU_EXTENSION_PATH", "RESHAPE_IO_LAYERS"):
            raise pb_utils.TritonModelException(f"this openvino backend does not cover the parameter {key}")
        elif key not in ("SKIP_OV_DYNAMIC_BATCHSIZE", "ENABLE_BATCH_PADDING"):  # these are about batching alone
            raise pb_utils.TritonModelException(f"the openvino backend has no parameter {key}")
    return properties


def _said(error: RuntimeError) -> str:
    """OpenVINO's message without the places in its sources."""
    lines = (line.strip() for line in str(error).splitlines())
    return f"openvino: {' '.join(line for line in lines if line and not line.startswith('Exception from'))}"


def _value(key: str, said: str, right: bool, wanted: str) -> str:
    if not right:
        raise pb_utils.TritonModelException(f"{key} is {said!r}; it must be {wanted}")
    return said
