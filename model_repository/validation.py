"""What Triton's core refuses in a model configuration, found before a server has to.

After `ValidateModelConfig`, `ValidateIOShape`, `ValidateInstanceGroup` (src/model_config_utils.cc) and
`GenerateWarmupData` (src/backend_model_instance.cc) of triton-inference-server/core. What depends on the server's
machine (which GPUs there are) is left to the server, and so are the schedulers of sequences and ensembles.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from model_repository.errors import RepositoryError

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

__all__ = ["validate"]

_CAPABILITY = re.compile(r"[1-9][0-9]*\.[0-9]")


def validate(config: ModelConfig) -> None:
    """Raise `RepositoryError`, naming the field, if Triton's core would refuse to load this configuration."""
    ensemble = config.platform == "ensemble"
    if not config.backend and not ensemble:
        raise _refusal("backend", "is missing; name one, for instance 'onnxruntime'")
    if ensemble and (config.backend or config.instance_group or config.model_warmup):
        raise _refusal("platform", "'ensemble' goes with neither backend nor instance_group nor model_warmup")
    if config.max_batch_size < 0:
        raise _refusal("max_batch_size", f"{config.max_batch_size} is negative; 0 means no batching")
    for field, tensors in (("input", config.input), ("output", config.output)):
        _tensors(field, tensors, config)
    for output in config.output:
        path = PurePosixPath(output.label_filename)
        if path.is_absolute() or ".." in path.parts:
            raise _refusal("output.label_filename", f"{output.label_filename!r} lies outside the model's directory")
    _dynamic_batching(config)
    _instance_groups(config)
    _engines(config)
    _warm_up(config)
    _version_policy(config)
    if config.response_cache.enable:
        if config.model_transaction_policy.decoupled:
            raise _refusal("response_cache.enable", "cannot go with model_transaction_policy.decoupled")
        if config.HasField("sequence_batching"):
            raise _refusal("response_cache.enable", "cannot go with sequence_batching")


def _refusal(field: str, reason: str) -> RepositoryError:
    return RepositoryError(f"config.pbtxt: {field}: {reason}")


def _tensors(field: str, tensors: Any, config: ModelConfig) -> None:
    names: set[str] = set()
    for tensor in tensors:
        if not tensor.name:
            raise _refusal(f"{field}.name", "is missing")
        if tensor.name in names:
            raise _refusal(f"{field}.name", f"{tensor.name!r} appears twice")
        names.add(tensor.name)
        where = f"{field}[{tensor.name!r}]"
        if tensor.data_type == 0:
            raise _refusal(f"{where}.data_type", "is missing")
        if not tensor.dims:
            raise _refusal(f"{where}.dims", "is empty; a scalar an item is dims [1] with an empty reshape")
        if any(size < 1 and size != -1 for size in tensor.dims):
            raise _refusal(f"{where}.dims", f"{list(tensor.dims)} holds a size that is neither positive nor -1")
        if tensor.HasField("reshape"):
            _reshape(where, list(tensor.dims), list(tensor.reshape.shape), config.max_batch_size)
        if tensor.is_shape_tensor and config.backend != "tensorrt":
            raise _refusal(f"{where}.is_shape_tensor", "is for the TensorRT backend only")
        if field == "input" and tensor.format != 0 and len(tensor.dims) != 3:
            raise _refusal(f"{where}.format", f"NHWC and NCHW need 3 dims, not {len(tensor.dims)}")


def _reshape(where: str, dims: list[int], shape: list[int], max_batch_size: int) -> None:
    if not shape and max_batch_size == 0:
        raise _refusal(f"{where}.reshape", "cannot be empty where max_batch_size is 0: there are no scalars")
    if any(size < 1 and size != -1 for size in shape):
        raise _refusal(f"{where}.reshape", f"{shape} holds a size that is neither positive nor -1")
    # Between the dynamic axes of one and the other there must be as many elements.
    if _fixed_counts(dims) != _fixed_counts(shape):
        raise _refusal(f"{where}.reshape", f"{shape} has another number of elements than dims {dims}")


def _fixed_counts(dims: list[int]) -> list[int]:
    counts, start = [], 0
    for end in (*(index for index, size in enumerate(dims) if size == -1), len(dims)):
        counts.append(prod(dims[start:end]))
        start = end + 1
    return counts


def _dynamic_batching(config: ModelConfig) -> None:
    if not config.HasField("dynamic_batching"):
        return
    batching, field = config.dynamic_batching, "dynamic_batching"
    for size in batching.preferred_batch_size:
        if not 0 < size <= config.max_batch_size:
            raise _refusal(
                f"{field}.preferred_batch_size", f"{size} is not between 1 and max_batch_size {config.max_batch_size}"
            )
    levels = batching.priority_levels
    if levels:
        if not 1 <= batching.default_priority_level <= levels:
            raise _refusal(
                f"{field}.default_priority_level", f"{batching.default_priority_level} is not between 1 and {levels}"
            )
        for level in batching.priority_queue_policy:
            if not 1 <= level <= levels:
                raise _refusal(f"{field}.priority_queue_policy", f"level {level} is not between 1 and {levels}")
    if batching.preserve_ordering:
        if levels > 1:
            raise _refusal(f"{field}.preserve_ordering", f"allows one priority level, not {levels}")
        delay = batching.default_queue_policy.DELAY
        for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
            if policy.default_timeout_microseconds and policy.timeout_action == delay:
                raise _refusal(f"{field}.preserve_ordering", "cannot go with the timeout action DELAY")


def _instance_groups(config: ModelConfig) -> None:
    for group in config.instance_group:
        kind = group.Kind.Name(group.kind)
        if group.count < 0:
            raise _refusal("instance_group.count", f"{group.count} is negative")
        if group.gpus and kind in ("KIND_CPU", "KIND_MODEL"):
            raise _refusal("instance_group.gpus", f"{list(group.gpus)} cannot go with {kind}")
        if group.profile and config.backend != "tensorrt":
            raise _refusal("instance_group.profile", "is for the TensorRT backend only")
        if not all(index.isdecimal() for index in group.profile):
            raise _refusal("instance_group.profile", f"{list(group.profile)} are not all numbers of profiles")


def _engines(config: ModelConfig) -> None:
    """Triton looks for the very text of a GPU's compute capability, `9.0`, and loads another file without it."""
    for capability, file in config.cc_model_filenames.items():
        field = f"cc_model_filenames[{capability!r}]"
        if not _CAPABILITY.fullmatch(capability):
            raise _refusal(field, 'is no compute capability; one is written like "8.9"')
        if not file or PurePosixPath(file).name != file:
            raise _refusal(field, f"{file!r} is no name of a file in the version's directory")


def _warm_up(config: ModelConfig) -> None:
    inputs = {tensor.name: tensor for tensor in config.input}
    for warmup in config.model_warmup:
        where = f"model_warmup[{warmup.name!r}]"
        if warmup.batch_size > max(1, config.max_batch_size):
            raise _refusal(
                f"{where}.batch_size", f"{warmup.batch_size} is greater than max_batch_size {config.max_batch_size}"
            )
        if missing := [name for name, tensor in inputs.items() if name not in warmup.inputs and not tensor.optional]:
            raise _refusal(f"{where}.inputs", f"{', '.join(map(repr, missing))} missing; every input is needed")
        for name, given in warmup.inputs.items():
            if given.WhichOneof("input_data_type") is None:
                raise _refusal(f"{where}.inputs[{name!r}]", "needs zero_data, random_data or input_data_file")
            if any(size < 1 for size in given.dims):
                raise _refusal(f"{where}.inputs[{name!r}].dims", f"{list(given.dims)} must be fixed sizes")
            if name not in inputs:
                continue  # a control tensor of the sequence scheduler, or an input that is auto-completed
            if given.data_type != inputs[name].data_type:
                raise _refusal(f"{where}.inputs[{name!r}].data_type", "is not that of the input")
            dims = list(inputs[name].dims)
            if len(dims) != len(given.dims) or any(
                size not in (-1, real) for size, real in zip(dims, given.dims, strict=True)
            ):
                raise _refusal(f"{where}.inputs[{name!r}].dims", f"{list(given.dims)} do not fit dims {dims}")


def _version_policy(config: ModelConfig) -> None:
    choice = config.version_policy.WhichOneof("policy_choice")
    if choice == "specific" and not config.version_policy.specific.versions:
        raise _refusal("version_policy.specific.versions", "is empty; name a version")
    if choice == "latest" and config.version_policy.latest.num_versions < 1:
        raise _refusal("version_policy.latest.num_versions", "must be at least 1")
