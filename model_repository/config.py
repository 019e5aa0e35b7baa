"""Triton's `config.pbtxt` as what it is: the protobuf message `ModelConfig`, built, checked, printed and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from model_repository.config_gpu import GpuOptions, describe_gpu
from model_repository.errors import RepositoryError
from model_repository.layout import check_name
from model_repository.signature import DType, Signature, TensorSpec
from model_repository.validation import validate

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

__all__ = [
    "DATA_TYPES", "MODEL_FILES", "ConfigOptions", "build", "for_version", "from_text", "label_files", "read",
    "served_versions", "to_text", "validate",
]  # fmt: skip

DATA_TYPES: Mapping[DType, str] = {
    "bool": "TYPE_BOOL",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}

MODEL_FILES: Mapping[str, str] = {
    "onnxruntime": "model.onnx",
    "openvino": "model.xml",
    "tensorrt": "model.plan",
    "python": "model.py",
    "pytorch": "model.pt",
    "vllm": "model.json",
}
"""The file that a backend loads from the version directory unless the configuration names another."""

_REFUSED_TYPES: Mapping[str, frozenset[DType]] = {"openvino": frozenset({"bfloat16", "float64", "string"})}
"""Data types that a backend does not take, of those that Triton has."""


class ConfigOptions(BaseModel):
    """How Triton is to run a model.

    `max_batch_size`: 0 = requests are never put together. A signature that has no batch axis gives 0 whatever is asked,
    and so does the backend `openvino`, which takes the batches that its clients put together (see `build`).
    `max_queue_delay_us`: how long (µs) a request may wait for others to share its batch.
    `threads`: of the runtime within one operator; 0 = every core that the server has.
    `typical_length`: what a dynamic axis measures in the warm-up, and `axis_lengths` the same by the axis' name.
    `labels`: a file of class names, one a line, for the outputs that hold one score a class.
    `gpu`: run it on NVIDIA GPUs (`model_repository.config_gpu`); None is the processor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str = "onnxruntime"
    max_batch_size: NonNegativeInt = 8
    max_queue_delay_us: NonNegativeInt = 100
    threads: NonNegativeInt = 0
    instances: PositiveInt = 1
    typical_length: PositiveInt = 16
    axis_lengths: dict[str, PositiveInt] = Field(default_factory=dict)
    labels: str = ""
    label_count: NonNegativeInt = 0
    gpu: GpuOptions | None = None


def build(name: str, signature: Signature, options: ConfigOptions | None = None) -> ModelConfig:
    """The configuration of a model, without a version policy (`for_version` adds it).

    Inputs and outputs are explicit, so that Triton's auto-completion changes nothing. With batching the first axis
    is left out of `dims`, as Triton wants it; a tensor that is one scalar an item becomes `dims: [1]`, reshaped to [].
    One instance is explicit too: for ONNX Runtime on the CPU an absent count means two.

    Triton's OpenVINO backend (triton-inference-server/openvino_backend, `src/openvino.cc`, August 2026) cannot put
    requests together as others do. Where `max_batch_size` is above 0 it fixes the graph's batch at that size
    (`ov::set_batch`) and refuses an execution with fewer samples, or pads it (`ENABLE_BATCH_PADDING`), which makes one
    sample cost as much as all of them and needs every other axis to be fixed. With 0 the axes of the graph stay open,
    and a request may hold any number of samples: that is what is configured. Its parameters here ask for the shortest
    answer, with one stream for each instance. None of them can ask for FP32: without `HINT_BF16` the backend leaves the
    precision to OpenVINO, which computes in BF16 on processors that have it. `HINT_BF16` would have it emulated on
    processors with AVX-512 and no BF16.

    Raises `RepositoryError` if the name or the signature cannot be served.
    """
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    options = options or ConfigOptions()
    batching = signature.batched and options.max_batch_size > 0 and options.backend != "openvino"
    _ensure_types(signature, options.backend)
    config = ModelConfig(
        name=check_name(name), backend=options.backend, max_batch_size=options.max_batch_size if batching else 0
    )
    for tensor in signature.inputs:
        _describe(config.input.add(), tensor, batching)
    for tensor in signature.outputs:
        output = config.output.add()
        _describe(output, tensor, batching)
        if options.labels and _holds_scores(output, options.label_count):
            output.label_filename = options.labels
    if batching:
        config.dynamic_batching.max_queue_delay_microseconds = options.max_queue_delay_us
    if options.gpu is not None:
        describe_gpu(config, signature, options.gpu, options.instances)
    else:
        config.instance_group.add(count=options.instances, kind="KIND_CPU")
    if options.backend == "onnxruntime" and options.gpu is None:
        config.parameters["intra_op_thread_count"].string_value = str(options.threads)
        # Operators run one after another in ONNX Runtime's sequential mode; more threads between them would idle.
        config.parameters["inter_op_thread_count"].string_value = "1"
    elif options.backend == "openvino":
        config.parameters["PERFORMANCE_HINT"].string_value = "LATENCY"
        config.parameters["NUM_STREAMS"].string_value = str(options.instances)
        config.parameters["INFERENCE_NUM_THREADS"].string_value = str(options.threads)
    for batch_size in sorted({1, options.max_batch_size or 1}) if signature.batched else [1]:
        _warm_up(config, signature, batch_size, options)
    validate(config)
    return config


def _ensure_types(signature: Signature, backend: str) -> None:
    refused = _REFUSED_TYPES.get(backend, frozenset())
    for tensor in (*signature.inputs, *signature.outputs):
        if tensor.dtype in refused:
            raise RepositoryError(
                f"tensor {tensor.name!r} is {tensor.dtype}, which Triton's {backend} backend does not take; "
                "serve the model with another one"
            )


def _describe(message: Any, tensor: TensorSpec, batching: bool) -> None:
    message.name = tensor.name
    message.data_type = DATA_TYPES[tensor.dtype]
    dims = [-1 if isinstance(size, str) else size for size in tensor.shape[1 if batching else 0 :]]
    if not dims and not batching:
        raise RepositoryError(
            f"tensor {tensor.name!r} is a scalar without a batch axis, which Triton cannot serve; give it an axis"
        )
    message.dims.extend(dims or [1])
    if not dims:
        message.reshape.SetInParent()


def _holds_scores(output: Any, count: int) -> bool:
    # Triton numbers the classes through all elements of an item, so only [classes] can be labelled.
    return len(output.dims) == 1 and output.dims[0] in (count, -1) and output.data_type not in _NOT_SCORES


_NOT_SCORES = (1, 13)  # TYPE_BOOL and TYPE_STRING


def _warm_up(config: Any, signature: Signature, batch_size: int, options: ConfigOptions) -> None:
    warmup = config.model_warmup.add(name=f"batch of {batch_size}", batch_size=batch_size)
    if not config.max_batch_size:
        warmup.batch_size = 1  # one request, whose first axis holds the batch
    for tensor, described in zip(signature.inputs, config.input, strict=True):
        sizes = tensor.shape[1:] if signature.batched else tensor.shape
        dims = [
            options.axis_lengths.get(size, options.typical_length) if isinstance(size, str) else size for size in sizes
        ]
        # Zeros are valid token ids and pixels; random bytes read as integers are not.
        given = warmup.inputs[tensor.name]
        given.data_type = described.data_type
        given.zero_data = True
        if config.max_batch_size:
            given.dims.extend(dims or [1])
        else:
            given.dims.extend([batch_size, *dims] if signature.batched else dims)


def for_version(config: ModelConfig, version: int) -> ModelConfig:
    """The same configuration for one version of the model, which alone is served.

    Triton looks for labels in the model's directory. Here they lie in the version's own, so that going back to
    another version brings its labels back too.
    """
    released = type(config)()
    released.CopyFrom(config)
    released.ClearField("version_policy")
    released.version_policy.specific.versions.append(version)
    for output in released.output:
        if output.label_filename:
            output.label_filename = f"{version}/{output.label_filename}"
    return released


def label_files(config: ModelConfig) -> Iterator[str]:
    """The files of class names that the outputs refer to."""
    return (output.label_filename for output in config.output if output.label_filename)


def served_versions(config: ModelConfig, existing: list[int]) -> list[int]:
    """Which of the `existing` versions Triton serves by the configuration's version policy, in order."""
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "specific":
        return sorted(set(existing) & set(policy.specific.versions))
    if choice == "all":
        return sorted(existing)
    count = policy.latest.num_versions if choice == "latest" else 1
    return sorted(existing)[-count:] if count else []


def to_text(config: ModelConfig) -> str:
    """The text of `config.pbtxt`: the same for equal configurations."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    return text


def from_text(text: str) -> ModelConfig:
    """Read `config.pbtxt`. Raises `RepositoryError` with line and column, also for an unknown field."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"not a model configuration: {error}") from error


def read(path: Path) -> ModelConfig:
    """Read a file. Raises `RepositoryError` naming it if it is missing or not a configuration."""
    try:
        return from_text(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RepositoryError(f"{path} is missing") from error
    except (RepositoryError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path}: {error}") from error
