"""A Triton server over the wire, by HTTP or gRPC."""

from __future__ import annotations

import re
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_repository.signature import DType, Signature, TensorSpec
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.runtime import Arrays, RuntimeOptions
from stages.runtime.session import Closing

__all__ = ["TritonSession", "open_session"]

_ADDRESS = re.compile(r"(http|grpc)://([^/\s]+:\d+)(?:/v2/models/([^/\s]+)(?:/versions/(\d+))?)?/?")
_DTYPES: dict[str, DType] = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "string",
}
_WIRE = {dtype: wire for wire, dtype in _DTYPES.items()}


def open_session(artifact: Artifact, options: RuntimeOptions) -> TritonSession:
    """Open what a server at `options.address` serves of `artifact`, an artifact of kind `release`.

    The address is `http://host:port` or `grpc://host:port`; the model's name is the release's, the version the
    server's choice. An address may name both, as the protocol's own URLs do: `…/v2/models/NAME/versions/N`.

    Raises `InputError` for another address, another kind of artifact or a model that the server does not serve,
    `RequirementError` if no server answers there or `tritonclient` is not installed.
    """
    name = artifact.metadata.get("name", "") if artifact.kind == "release" else ""
    return TritonSession(options.address, name)


class TritonSession(Closing):
    """One model of a server.

    With gRPC any number of threads may call one session at a time, and `submit` keeps many requests in flight from
    one thread. With HTTP (`tritonclient.http`, on gevent) a session is for the thread that opened it.
    """

    def __init__(self, address: str, name: str = "", version: str = "", timeout_s: float = 300) -> None:
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise InputError(f"{address!r} is not the address of a Triton server: http://host:port or grpc://host:port")
        self._scheme, host = match[1], match[2]
        self._name, self._version = match[3] or name, match[4] or version
        if not self._name:
            raise InputError(f"no model is named: open a release, or write {address}/v2/models/NAME")
        self._timeout_s = timeout_s
        try:
            from tritonclient import grpc, http
            from tritonclient.utils import InferenceServerException
        except ImportError as error:
            raise RequirementError(
                "a server is asked through tritonclient: `pip install tritonclient grpcio geventhttpclient`"
            ) from error
        self._error: type[Exception] = InferenceServerException
        if self._scheme == "grpc":
            self._module: Any = grpc
            self._client: Any = grpc.InferenceServerClient(host)
            self._limits = {"client_timeout": timeout_s}
        else:
            self._module = http
            self._client = http.InferenceServerClient(host, connection_timeout=10, network_timeout=timeout_s)
            self._limits = {}
        try:
            self._signature = self._described(address)
        except BaseException:
            self.close()
            raise

    @property
    def signature(self) -> Signature:
        return self._signature

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Send one batch and wait. Raises `InputError` where it does not fit the signature, `StageError` otherwise."""
        inputs = self._inputs(batch)
        try:
            result = self._client.infer(self._name, inputs, self._version, outputs=self._outputs(), **self._limits)
        except (self._error, OSError) as error:
            raise StageError(self._said(error)) from error
        return self._answers(result)

    def submit(self, batch: Arrays) -> Future[dict[str, NDArray[Any]]]:
        """Send one batch and do not wait (gRPC only). The future raises what the call would raise."""
        if self._scheme != "grpc":
            raise InputError("requests are kept in flight over gRPC only: open grpc://host:port")
        future: Future[dict[str, NDArray[Any]]] = Future()

        def answered(result: Any, error: Exception | None) -> None:
            if error is not None:
                future.set_exception(StageError(self._said(error)))
            else:
                future.set_result(self._answers(result))

        inputs = self._inputs(batch)
        self._client.async_infer(self._name, inputs, answered, self._version, outputs=self._outputs(), **self._limits)
        return future

    def config(self) -> Any:
        """The configuration as the server has it, a `ModelConfig` message (gRPC only)."""
        if self._scheme != "grpc":
            raise InputError("the configuration is read over gRPC: open grpc://host:port")
        return self._client.get_model_config(self._name, self._version).config

    def close(self) -> None:
        self._client.close()

    def _described(self, address: str) -> Signature:
        try:
            if self._scheme == "grpc":
                about = self._client.get_model_metadata(
                    self._name, self._version, as_json=True, client_timeout=self._timeout_s
                )
            else:
                about = self._client.get_model_metadata(self._name, self._version)
        except self._error as error:
            status = str(getattr(error, "status", lambda: "")())
            if "UNAVAILABLE" in status or "DEADLINE" in status:
                raise RequirementError(f"no Triton server answers at {address}: {error}") from error
            raise InputError(f"{address} does not serve {self._name!r}: {error}") from error
        except OSError as error:
            raise RequirementError(f"no Triton server answers at {address}: {error}") from error
        return Signature(
            inputs=tuple(_spec(tensor) for tensor in about["inputs"]),
            outputs=tuple(_spec(tensor) for tensor in about["outputs"]),
        )

    def _inputs(self, batch: Arrays) -> list[Any]:
        wanted = {tensor.name: tensor.dtype for tensor in self._signature.inputs}
        if batch.keys() != wanted.keys():
            raise InputError(f"the batch has {', '.join(batch)}; {self._name} takes {', '.join(wanted)}")
        inputs = []
        for name, array in batch.items():
            given = "string" if array.dtype.kind in "OSU" else array.dtype.name
            if given != wanted[name]:
                raise InputError(f"{name} is {array.dtype}, {self._name} takes {wanted[name]}")
            tensor = self._module.InferInput(name, list(array.shape), _WIRE[wanted[name]])
            tensor.set_data_from_numpy(array.astype(np.object_) if given == "string" else array)
            inputs.append(tensor)
        return inputs

    def _outputs(self) -> list[Any]:
        return [self._module.InferRequestedOutput(tensor.name) for tensor in self._signature.outputs]

    def _answers(self, result: Any) -> dict[str, NDArray[Any]]:
        answers = {}
        for tensor in self._signature.outputs:
            array: NDArray[Any] = result.as_numpy(tensor.name)
            if tensor.dtype == "string":
                array = np.array([value.decode() for value in array.ravel()], dtype=object).reshape(array.shape)
            answers[tensor.name] = array
        return answers

    def _said(self, error: Exception) -> str:
        return f"the server did not answer for {self._name!r}: {error}"


def _spec(tensor: Any) -> TensorSpec:
    """A tensor of the server's metadata, whose shape has the batch axis in it and -1 for a dynamic axis."""
    if tensor["datatype"] not in _DTYPES:
        raise InputError(f"{tensor['name']} is {tensor['datatype']}, which NumPy does not have")
    sizes = [int(size) for size in tensor["shape"]]
    shape = tuple(
        size if size >= 0 else "batch" if axis == 0 else f"{tensor['name']}_{axis}" for axis, size in enumerate(sizes)
    )
    return TensorSpec(name=tensor["name"], dtype=_DTYPES[tensor["datatype"]], shape=shape)
