"""A model's signature becomes the configuration that Triton wants, and what Triton would refuse is found here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from model_repository import RepositoryError, Signature, TensorSpec
from model_repository.config import (
    DATA_TYPES,
    ConfigOptions,
    build,
    for_version,
    from_text,
    read,
    served_versions,
    to_text,
    validate,
)
from model_repository.signature import DType

ENCODER = Signature(
    inputs=(
        TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),
        TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "sequence")),
    ),
    outputs=(TensorSpec(name="embedding", dtype="float32", shape=("batch", 384)),),
)
CLASSIFIER = Signature(
    inputs=(TensorSpec(name="pixels", dtype="float16", shape=("batch", 3, "height", "width")),),
    outputs=(
        TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),
        TensorSpec(name="hidden", dtype="float32", shape=("batch", "tokens", 10)),
    ),
)
FIXED = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 2)),),
)


def test_an_encoder_is_described_completely() -> None:
    config = build("minilm", ENCODER, ConfigOptions(max_batch_size=8, max_queue_delay_us=250, threads=2))

    assert (config.name, config.backend, config.max_batch_size) == ("minilm", "onnxruntime", 8)
    types = type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    described = [(t.name, types[t.data_type].name, list(t.dims)) for t in (*config.input, *config.output)]
    assert described == [
        ("input_ids", "TYPE_INT64", [-1]),
        ("attention_mask", "TYPE_INT64", [-1]),
        ("embedding", "TYPE_FP32", [384]),
    ]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert not config.dynamic_batching.preferred_batch_size
    (group,) = config.instance_group
    assert group.count == 1
    assert group.Kind.Name(group.kind) == "KIND_CPU"
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {"intra_op_thread_count": "2", "inter_op_thread_count": "1"}
    assert not config.HasField("version_policy")


def test_the_warm_up_covers_the_smallest_and_the_largest_batch_with_fixed_sizes() -> None:
    config = build("vit", CLASSIFIER, ConfigOptions(max_batch_size=4, axis_lengths={"height": 32}, typical_length=24))

    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 4]
    for warmup in config.model_warmup:
        assert list(warmup.inputs["pixels"].dims) == [3, 32, 24]
        assert warmup.inputs["pixels"].zero_data
        assert warmup.inputs["pixels"].data_type == config.input[0].data_type


def test_a_largest_batch_of_one_is_warmed_up_once() -> None:
    assert [w.batch_size for w in build("m", ENCODER, ConfigOptions(max_batch_size=1)).model_warmup] == [1]


def test_a_scalar_for_each_item_is_reshaped() -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch",)),),
        outputs=(TensorSpec(name="y", dtype="bool", shape=("batch",)),),
    )
    config = build("m", signature)
    for tensor in (*config.input, *config.output):
        assert list(tensor.dims) == [1]
        assert tensor.HasField("reshape")
        assert not tensor.reshape.shape
    assert list(config.model_warmup[0].inputs["x"].dims) == [1]


@pytest.mark.parametrize(
    ("signature", "asked", "dims"), [(FIXED, 8, [[1, 4], [1, 2]]), (ENCODER, 0, [[-1, -1], [-1, -1], [-1, 384]])]
)
def test_without_batching_the_shapes_are_whole(signature: Signature, asked: int, dims: list[list[int]]) -> None:
    config = build("m", signature, ConfigOptions(max_batch_size=asked))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == dims
    assert [warmup.batch_size for warmup in config.model_warmup] == [1]
    assert all(size > 0 for given in config.model_warmup[0].inputs.values() for size in given.dims)


def test_openvino_is_configured_as_its_backend_can_take_it() -> None:
    """It cannot put requests of different sizes together: the batch is an axis that the client fills."""
    options = ConfigOptions(backend="openvino", max_batch_size=4, threads=2, instances=3, typical_length=24)
    config = build("minilm", ENCODER, options)
    assert (config.backend, config.max_batch_size) == ("openvino", 0)
    assert config.WhichOneof("scheduling_choice") is None
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[-1, -1], [-1, -1], [-1, 384]]
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "3", "INFERENCE_NUM_THREADS": "2"}
    warm_ups = [(warmup.batch_size, list(warmup.inputs["input_ids"].dims)) for warmup in config.model_warmup]
    assert warm_ups == [(1, [1, 24]), (1, [4, 24])]
    fixed = build("m", FIXED, options)
    assert [list(warmup.inputs["x"].dims) for warmup in fixed.model_warmup] == [[1, 4]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "string"])
def test_a_dtype_that_openvinos_backend_does_not_take_is_refused(dtype: DType) -> None:
    tensor = TensorSpec(name="x", dtype=dtype, shape=("batch", 2))
    with pytest.raises(RepositoryError, match=f"'x' is {dtype}, which Triton's openvino backend does not take"):
        build("m", Signature(inputs=(tensor,), outputs=ENCODER.outputs), ConfigOptions(backend="openvino"))
    build("m", Signature(inputs=(tensor,), outputs=ENCODER.outputs))


def test_without_batching_the_warm_up_is_of_one_sample() -> None:
    config = build("m", ENCODER, ConfigOptions(max_batch_size=0, typical_length=24))
    assert [list(warmup.inputs["input_ids"].dims) for warmup in config.model_warmup] == [[1, 24]]


def test_every_dtype_has_its_type_in_triton() -> None:
    assert set(DATA_TYPES) == set(get_args(DType))
    for dtype, name in DATA_TYPES.items():
        tensor = TensorSpec(name="x", dtype=dtype, shape=("batch", 2))
        config = build("m", Signature(inputs=(tensor,), outputs=(tensor,)))
        assert f"data_type: {name}\n" in to_text(config)


def test_labels_go_to_the_output_with_one_score_a_class() -> None:
    config = build("vit", CLASSIFIER, ConfigOptions(labels="labels.txt", label_count=10))
    assert {output.name: output.label_filename for output in config.output} == {"logits": "labels.txt", "hidden": ""}


def test_a_version_serves_itself_alone_and_has_its_own_labels() -> None:
    config = build("vit", CLASSIFIER, ConfigOptions(labels="labels.txt", label_count=10))
    released = for_version(config, 3)
    assert list(released.version_policy.specific.versions) == [3]
    assert released.output[0].label_filename == "3/labels.txt"
    assert config.output[0].label_filename == "labels.txt", "the configuration given is not changed"


def test_text_says_all_and_is_always_the_same() -> None:
    config = for_version(build("minilm", ENCODER), 2)
    assert from_text(to_text(config)) == config
    program = (
        "from tests.test_model_config import *; import sys;"
        "sys.stdout.write(to_text(for_version(build('minilm', ENCODER), 2)))"
    )
    again = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert again.stdout == to_text(config)


def test_what_triton_does_not_know_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"3:1 .*max_batch"):
        from_text('backend: "x"\n\nmax_batch: 3')
    (tmp_path / "config.pbtxt").write_text("}")
    with pytest.raises(RepositoryError, match=r"config\.pbtxt: not a model configuration"):
        read(tmp_path / "config.pbtxt")
    with pytest.raises(RepositoryError, match="missing"):
        read(tmp_path / "other.pbtxt")


def test_a_scalar_without_a_batch_axis_cannot_be_served() -> None:
    tensor = TensorSpec(name="total", dtype="float32", shape=())
    with pytest.raises(RepositoryError, match="'total' is a scalar"):
        build("m", Signature(inputs=FIXED.inputs, outputs=(tensor,)))


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "é", "x" * 201])
def test_a_name_that_is_no_directory_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(RepositoryError, match="cannot be the name of a model"):
        build(name, ENCODER)


def _set(path: str, value: Any) -> Any:
    def change(config: Any) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            config = getattr(config, parent)[0] if parent in REPEATED else getattr(config, parent)
        if isinstance(value, list):
            del getattr(config, last)[:]
            getattr(config, last).extend(value)
        else:
            setattr(config, last, value)

    return pytest.param(change, path.split(".")[-1], id=f"{path}={value}")


REPEATED = ("input", "output", "instance_group", "model_warmup")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        _set("backend", ""),
        _set("max_batch_size", -1),
        _set("input.name", ""),
        _set("input.name", "attention_mask"),
        _set("input.data_type", 0),
        _set("input.dims", []),
        _set("input.dims", [0]),
        _set("input.format", 1),
        _set("input.is_shape_tensor", True),
        _set("output.label_filename", "../labels.txt"),
        _set("output.label_filename", "/labels.txt"),
        _set("dynamic_batching.preferred_batch_size", [16]),
        _set("dynamic_batching.preferred_batch_size", [0]),
        _set("instance_group.gpus", [0]),
        _set("instance_group.profile", ["0"]),
        _set("model_warmup.batch_size", 9),
        pytest.param(lambda c: c.output[0].reshape.shape.extend([2, 100]), "reshape", id="reshape of another size"),
        pytest.param(lambda c: c.input[0].reshape.shape.extend([-1, 2]), "reshape", id="reshape beside an axis"),
        pytest.param(lambda c: _unbatched(c).output[0].reshape.SetInParent(), "reshape", id="scalar without batching"),
        pytest.param(lambda c: _priorities(c, 2, 3), "default_priority_level", id="priority out of range"),
        pytest.param(
            lambda c: _priorities(c, 2, 1).dynamic_batching.priority_queue_policy[3].SetInParent(),
            "priority_queue_policy",
            id="policy of no priority",
        ),
        pytest.param(
            lambda c: setattr(_priorities(c, 2, 1).dynamic_batching, "preserve_ordering", True),
            "preserve_ordering",
            id="ordering and priorities",
        ),
        pytest.param(lambda c: c.model_warmup[0].inputs.pop("input_ids"), "inputs", id="warm-up without an input"),
        pytest.param(
            lambda c: c.model_warmup[0].inputs["input_ids"].dims.__setitem__(0, -1), "dims", id="warm-up of open size"
        ),
        pytest.param(
            lambda c: c.model_warmup[0].inputs["input_ids"].dims.append(3), "dims", id="warm-up of another rank"
        ),
        pytest.param(
            lambda c: c.model_warmup[0].inputs["input_ids"].ClearField("zero_data"),
            "zero_data",
            id="warm-up of nothing",
        ),
        pytest.param(
            lambda c: setattr(c.model_warmup[0].inputs["input_ids"], "data_type", 11),
            "data_type",
            id="warm-up of another type",
        ),
        pytest.param(lambda c: c.version_policy.specific.SetInParent(), "versions", id="no version"),
        pytest.param(lambda c: c.version_policy.latest.SetInParent(), "num_versions", id="latest 0"),
        pytest.param(
            lambda c: _cached(c).model_transaction_policy.__setattr__("decoupled", True), "decoupled", id="c+d"
        ),
        pytest.param(lambda c: _cached(c).sequence_batching.SetInParent(), "sequence_batching", id="cache + sequence"),
    ],
)
def test_what_the_core_refuses_is_refused_here_with_the_field(change: Any, field: str) -> None:
    config = build("m", ENCODER)
    validate(config)
    change(config)
    with pytest.raises(RepositoryError, match=rf"config\.pbtxt: .*{field}"):
        validate(config)


def _unbatched(config: Any) -> Any:
    config.max_batch_size = 0
    return config


def _priorities(config: Any, levels: int, default: int) -> Any:
    config.dynamic_batching.priority_levels = levels
    config.dynamic_batching.default_priority_level = default
    return config


def _cached(config: Any) -> Any:
    config.response_cache.enable = True
    return config


def test_a_reshape_that_fits_is_allowed() -> None:
    config = build("m", ENCODER)
    config.output[0].reshape.shape.extend([12, 32])
    config.input[0].reshape.shape.extend([1, -1])
    validate(config)


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("", [4]),
        ("version_policy { latest { num_versions: 2 } }", [2, 4]),
        ("version_policy { all { } }", [1, 2, 4]),
        ("version_policy { specific { versions: [2, 3] } }", [2]),
    ],
)
def test_the_version_policy_tells_which_versions_are_served(text: str, served: list[int]) -> None:
    assert served_versions(from_text(text), [4, 1, 2]) == served


def test_importing_the_room_loads_nothing_heavy() -> None:
    program = (
        "import sys, model_repository, model_repository.config;"
        "print([name for name in ('tritonclient', 'grpc', 'google.protobuf', 'onnx') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True)
    assert found.stdout.strip() == "[]"
