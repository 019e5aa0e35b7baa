"""Writes an ONNX graph without a second and a third copy of its weights in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["EXTERNAL", "LIMIT_BYTES", "write"]

EXTERNAL = "model.onnx.data"

LIMIT_BYTES = 1_800_000_000
"""Larger graphs keep their weights in a file beside them: a protobuf message ends at 2 GiB."""

_STREAMED_BYTES = 1024

# Tags of the protobuf fields (number << 3 | 2) in onnx.proto: ModelProto.graph, GraphProto.initializer,
# TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = b"\x3a", b"\x2a", b"\x4a"


def write(model: Any, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Write an `onnx_ir.Model` to `path`; its weights inside, or in `model.onnx.data` if they are beyond the limit.

    The same model gives the same bytes. Weights are streamed from where they lie; `onnx.save` would hold all of them
    twice more, as a message and as its serialised form.
    """
    import onnx_ir as ir

    initializers = model.graph.initializers
    for value in initializers.values():
        # What is not streamed goes through a message, which would point at the file that it came from.
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes < _STREAMED_BYTES:
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    if sum(value.const_value.nbytes for value in initializers.values()) > limit_bytes:
        ir.save(model, path, external_data=EXTERNAL)
        return
    streamed = {
        name: value
        for name, value in initializers.items()
        if value.const_value.nbytes >= _STREAMED_BYTES and value.dtype != ir.DataType.STRING
    }
    whole = dict(initializers)
    for name in streamed:
        initializers.pop(name)
    try:
        document = ir.to_proto(model)
    finally:
        initializers.clear()
        initializers.update(whole)
    graph = document.graph.SerializeToString(deterministic=True)
    document.ClearField("graph")
    # Fields in the order of their numbers, as protobuf writes them: OpenVINO knows an ONNX file by its first ones.
    behind = type(document)()
    for field, value in document.ListFields():
        if field.number > document.GRAPH_FIELD_NUMBER:
            getattr(behind, field.name).MergeFrom(value)
            document.ClearField(field.name)
    weights = [(_header(name, value.const_value), value.const_value) for name, value in streamed.items()]
    length = len(graph) + sum(_field_size(len(header) + _field_size(weight.nbytes)) for header, weight in weights)
    with path.open("wb") as stream:
        stream.write(document.SerializeToString(deterministic=True))
        stream.write(_GRAPH + _varint(length) + graph)
        for header, weight in weights:
            stream.write(_INITIALIZER + _varint(len(header) + _field_size(weight.nbytes)) + header)
            stream.write(_RAW_DATA + _varint(weight.nbytes))
            _write_bytes(weight, stream)
        stream.write(behind.SerializeToString(deterministic=True))


def _header(name: str, weight: Any) -> bytes:
    import onnx

    header: bytes = onnx.TensorProto(
        name=name, dims=weight.shape.numpy(), data_type=int(weight.dtype)
    ).SerializeToString(deterministic=True)
    return header


def _write_bytes(weight: Any, stream: BinaryIO) -> None:
    before = stream.tell()
    if hasattr(weight, "tofile"):
        weight.tofile(stream)
    else:
        stream.write(weight.tobytes())
    assert stream.tell() - before == weight.nbytes, "a weight has other bytes than its type and shape say"


def _field_size(length: int) -> int:
    return 1 + len(_varint(length)) + length


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
