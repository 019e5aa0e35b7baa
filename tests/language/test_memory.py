"""The memory plan: exact where vLLM is, an estimate where only vLLM can know, silent where it is not understood."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.cli.plan_memory import plan_memory
from stages.errors import InputError
from stages.language.checkpoint import Attention
from stages.language.memory.gpus import GPUS, Gpu, find_gpu
from stages.language.memory.kv_cache import blocks_of_sequence, bytes_of_block, kv_bytes_of_sequence
from stages.language.memory.plan import (
    GpuPlan,
    kv_bytes_per_token,
    longest_sequence,
    memory_plan,
    overhead_bytes,
    plan_on,
    weights_on_one_gpu,
)
from stages.language.shape import NotUnderstoodError, Shape, read_attention, read_shape
from stages.language.weights import Tensor, parse_form, planned, read_tensors, why_not

GIB = 1024**3
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B = {**LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
             "num_attention_heads": 64}  # fmt: skip
MISTRAL_7B = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    "sliding_window": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
GEMMA_4B = {  # as the hub has it: what is not there is Gemma's own default
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28, "torch_dtype": "bfloat16",
}  # fmt: skip


def attention_of(*windows: int | None) -> Attention:
    return Attention(layers=len(windows), heads=4, kv_heads=2, head_size=32, windows=windows)


def shape_of(tmp_path: Path, config: dict[str, Any]) -> Shape:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_shape(tmp_path)


def llama_tensors(config: dict[str, Any], dtype: str = "BF16") -> list[Tensor]:
    """The tensors of a llama, as its checkpoint has them."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], 128
    heads, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden), "lm_head": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, shape in {
            "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, heads), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }.items():  # fmt: skip
            shapes[f"{prefix}.{name}"] = shape
    shapes["model.norm"] = (hidden,)
    return [Tensor(f"{name}.weight", dtype, shape) for name, shape in shapes.items()]


def write_header(file: Path, tensors: list[Tensor]) -> None:
    """A safetensors file whose data are a hole."""
    described, end = {}, 0
    for tensor in tensors:
        described[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.size_bytes]
        }  # fmt: skip
        end += tensor.size_bytes
    text = json.dumps(described).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Path:
    """A llama of 16 MB, in two shards."""
    config = {**LLAMA_8B, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "vocab_size": 2048,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128,
              "max_position_embeddings": 2048}  # fmt: skip
    directory = tmp_path / "small"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    tensors = llama_tensors(config)
    halves = {"model-00001-of-00002.safetensors": tensors[:5], "model-00002-of-00002.safetensors": tensors[5:]}
    for name, part in halves.items():
        write_header(directory / name, part)
    names = {tensor.name: name for name, part in halves.items() for tensor in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return directory


# The cache


@pytest.mark.parametrize(
    ("config", "per_token", "windows"),
    [
        pytest.param(LLAMA_8B, 131_072, {None: 32}, id="llama-3.1-8b"),
        pytest.param(LLAMA_70B, 327_680, {None: 80}, id="llama-3.1-70b"),
        pytest.param(MISTRAL_7B, 131_072, {4096: 32}, id="mistral-7b-v0.1"),
        pytest.param({**MISTRAL_7B, "sliding_window": None}, 131_072, {None: 32}, id="mistral-7b-v0.2"),
        pytest.param({**MISTRAL_7B, "sliding_window": 0}, 131_072, {None: 32}, id="no window"),
        pytest.param(GEMMA_4B, 139_264, {1024: 29, None: 5}, id="gemma-3-4b"),
        pytest.param(QWEN_7B, 57_344, {None: 28}, id="qwen2.5-7b"),
        pytest.param(
            {**QWEN_7B, "use_sliding_window": True, "max_window_layers": 20}, 57_344, {None: 20, 131072: 8}, id="qwen2"
        ),
    ],
)
def test_a_token_in_the_cache_of_known_models(
    config: dict[str, Any], per_token: int, windows: dict[int | None, int]
) -> None:
    attention = read_attention(config)
    assert kv_bytes_per_token(attention, 2) == per_token
    assert {window: attention.windows.count(window) for window in set(attention.windows)} == windows


def test_a_window_bounds_what_a_sequence_holds() -> None:
    llama, mistral, gemma = (read_attention(config) for config in (LLAMA_8B, MISTRAL_7B, GEMMA_4B))
    assert kv_bytes_of_sequence(llama, 131072, 2) == 16 * GIB
    assert kv_bytes_of_sequence(llama, 131072, 1) == 8 * GIB
    assert kv_bytes_of_sequence(mistral, 1000, 2) == 131_072 * 1000
    assert kv_bytes_of_sequence(mistral, 32768, 2) == 131_072 * 4096
    assert kv_bytes_of_sequence(gemma, 131072, 2) == 2 * 4 * 256 * 2 * (5 * 131072 + 29 * 1024)


@pytest.mark.parametrize(
    ("windows", "tokens", "in_flight", "reported"),
    [
        pytest.param([None] * 4, 2000, 512, 520.13, id="full"),
        pytest.param([256] * 4, 2048, 512, 1310.72, id="sliding"),
        pytest.param([256] * 5 + [None, 256], 2048, 512, 612.49, id="six to one"),
        pytest.param([512] * 4 + [None] * 4, 1000, 128, 618.26, id="half and half"),
        pytest.param([512] * 5 + [None] * 4, 1500, 256, 364.08, id="five to four"),
    ],
)
def test_as_many_sequences_fit_as_vllm_says(
    windows: list[int | None], tokens: int, in_flight: int, reported: float
) -> None:
    """What vLLM 0.32 said ("maximum concurrency") of random models of these layers, with 1 GiB and blocks of 32."""
    attention = attention_of(*windows)
    blocks = GIB // bytes_of_block(attention, 2, block_tokens=32)
    assert round(blocks / blocks_of_sequence(attention, tokens, in_flight, block_tokens=32), 2) == reported


def test_the_cache_of_a_large_model_has_as_many_tokens_as_vllm_says() -> None:
    """A published log of vLLM: Llama-3.1-8B, 56.21 GiB for the cache, 460,496 tokens."""
    blocks = int(56.21 * GIB) // bytes_of_block(read_attention(LLAMA_8B), 2)
    assert abs(blocks * 16 - 460_496) <= 0.005 * GIB / 131_072 + 16


def test_kv_heads_are_shared_out_and_then_repeated() -> None:
    attention = read_attention(QWEN_7B)  # 4 KV heads
    whole = bytes_of_block(attention, 2)
    assert [whole // bytes_of_block(attention, 2, size) for size in (1, 2, 4, 8)] == [1, 2, 4, 4]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"model_type": "deepseek_v3", "kv_lora_rank": 512}, id="latent attention"),
        pytest.param({"model_type": "mamba"}, id="state space"),
        pytest.param({"model_type": "qwen3_next"}, id="linear attention"),
        pytest.param({**LLAMA_8B, "layer_types": ["chunked_attention"] * 32}, id="chunks"),
        pytest.param({**LLAMA_8B, "per_layer_config": {"3": {"num_key_value_heads": 4}}}, id="layers that differ"),
    ],
)
def test_what_is_not_understood_is_said_to_be_so(config: dict[str, Any]) -> None:
    with pytest.raises(NotUnderstoodError, match="not understood"):
        read_attention(config)


def test_of_what_is_not_understood_the_weights_are_told_all_the_same(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, {"model_type": "mamba", "hidden_size": 64, "torch_dtype": "float16"})
    tensors = [Tensor("backbone.layers.0.mixer.in_proj.weight", "F16", (128, 64))]
    plan = memory_plan(shape, tensors, forms=[parse_form("original")], gpus=[GPUS["L4"]], context=1)
    assert plan.not_understood and plan.kv_bytes_per_token is None and plan.kv_bytes_per_sequence is None
    assert plan.forms[0].stored_bytes == 2 * 128 * 64 and plan.forms[0].gpus == ()
    with pytest.raises(InputError, match="not understood"):
        plan_on(GPUS["L4"], shape, tensors, context=1)


# The weights


def test_the_weights_of_a_known_model() -> None:
    tensors = llama_tensors(LLAMA_8B)
    parameters = 8_030_261_248
    in_layers = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
    outputs = 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096)
    inputs = 32 * (6 * 4096 + 14336)  # of seven layers, by which GPTQ indexes its groups

    def size(form: str) -> int:
        return sum(tensor.size_bytes for tensor in planned(tensors, parse_form(form)))

    beside = 2 * (parameters - in_layers)
    assert size("original") == size("bf16") == 2 * parameters
    assert size("fp8") == size("int8-w8a8") == beside + in_layers + 2 * outputs
    assert size("awq-g128") == beside + in_layers // 2 + in_layers // 128 * 2 + in_layers // 128 // 2
    assert size("gptq-g128") == size("awq-g128") + 4 * inputs
    assert size("gptq-g32") == beside + in_layers // 2 + in_layers // 32 * 2 + in_layers // 32 // 2 + 4 * inputs
    assert size("w4a16-g128") == beside + in_layers // 2 + in_layers // 128 * 2 + 7 * 32 * 16


@pytest.mark.parametrize(
    ("form", "stored"),
    [
        ("fp8", {"weight": ("F8_E4M3", (128, 256)), "weight_scale": ("BF16", (128, 1))}),
        ("int8-w8a8", {"weight": ("I8", (128, 256)), "weight_scale": ("BF16", (128, 1))}),
        (
            "gptq-g32",
            {
                "qweight": ("I32", (32, 128)), "qzeros": ("I32", (8, 16)), "scales": ("F16", (8, 128)),
                "g_idx": ("I32", (256,)),
            },
        ),
        ("awq-g32", {"qweight": ("I32", (256, 16)), "qzeros": ("I32", (8, 16)), "scales": ("BF16", (8, 128))}),
        (
            "w4a16-g32",
            {
                "weight_packed": ("I32", (128, 32)), "weight_scale": ("BF16", (128, 8)), "weight_shape": ("I64", (2,))
            },
        ),
    ],
)  # fmt: skip
def test_a_form_stores_what_its_quantiser_writes(form: str, stored: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """As GPTQModel 7.6.0 and llm-compressor 0.14.0.1 wrote this layer of a BF16 checkpoint."""
    layer = "model.layers.0.mlp.down_proj"
    others = [Tensor("model.embed_tokens.weight", "BF16", (512, 128)), Tensor("lm_head.weight", "BF16", (512, 128)),
              Tensor("model.layers.0.input_layernorm.weight", "BF16", (128,)),
              Tensor("model.layers.0.mlp.gate.weight", "BF16", (8, 128))]  # fmt: skip
    pieces = planned([Tensor(f"{layer}.weight", "BF16", (128, 256)), *others], parse_form(form))
    assert pieces[len(stored) :] == tuple(others), "the rest stays as it is"
    assert {piece.name: (piece.dtype, piece.shape) for piece in pieces[: len(stored)]} == {
        f"{layer}.{name}": described for name, described in stored.items()
    }


def test_fp32_weights_are_served_in_16_bits() -> None:
    stored = planned(llama_tensors(LLAMA_8B, "F32"), parse_form("original"))
    assert sum(tensor.size_bytes for tensor in stored) == 4 * 8_030_261_248
    assert sum(tensor.loaded_bytes for tensor in stored) == 2 * 8_030_261_248


@pytest.mark.parametrize(
    ("form", "tensor", "reason"),
    [
        ("gptq-g128", Tensor("model.layers.0.mlp.down_proj.weight", "BF16", (64, 96)), "96, is not a multiple"),
        ("awq-g32", Tensor("model.layers.0.mlp.down_proj.weight", "BF16", (60, 96)), "60, is not a multiple of 8"),
        ("fp8", Tensor("model.layers.0.mlp.experts.down_proj", "BF16", (8, 64, 64)), "not understood"),
        ("fp8", Tensor("model.layers.0.mlp.down_proj.qweight", "I32", (8, 64)), "quantised already"),
    ],
)
def test_a_form_that_cannot_be_is_said_why(form: str, tensor: Tensor, reason: str) -> None:
    said = why_not([tensor], parse_form(form))
    assert said is not None and reason in said and tensor.name in said
    assert why_not([tensor], parse_form("original")) is None


@pytest.mark.parametrize("name", ["fp4", "gptq-g16", "fp8-g128", "gptq-", ""])
def test_a_form_that_there_is_none_of_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="there are original, bf16"):
        parse_form(name)


def test_shards_are_read_by_their_headers(small_checkpoint: Path) -> None:
    tensors = read_tensors(small_checkpoint)
    assert len(tensors) == 2 + 2 * 9 + 1
    assert sum(tensor.size_bytes for tensor in tensors) == 2 * (
        2 * 2048 * 512 + 2 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1024 + 2 * 512) + 512
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "model-00002-of-00002.safetensors"),
        (lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"x" * 20), "damaged"),
        (
            lambda folder: (folder / "model-00001-of-00002.safetensors").open("r+b").truncate(5000),
            "model-00001-of-00002.safetensors is cut short",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "has no weights"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "../model.safetensors"}}'
            ),
            "not beside it",
        ),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "of-tomorrow"}'), "of-tomorrow"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 3}'),
            "not a multiple of the number of attention heads",
        ),
    ],
)
def test_a_damaged_checkpoint_is_named(small_checkpoint: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(small_checkpoint)
    ended = CliRunner().invoke(plan_memory, [str(small_checkpoint)])
    assert isinstance(ended.exception, InputError)
    assert says in str(ended.exception)


# The plan


def test_overhead_is_near_what_vllm_reported(tmp_path: Path) -> None:
    """Activations in its logs: 1.21 GiB of Llama-3.1-8B; 1.97 GiB of Qwen2-7B in batches of 16,384 tokens."""
    fixed = 0.75 * GIB
    llama, qwen = (shape_of(tmp_path, config) for config in (LLAMA_8B, QWEN_7B))
    assert (overhead_bytes(llama, GPUS["H100"], 131072) - fixed) / GIB == pytest.approx(1.21, rel=0.05)
    offline = Gpu("H100", GPUS["H100"].memory_bytes, 16384, 1024)
    assert (overhead_bytes(qwen, offline, 4096) - fixed) / GIB == pytest.approx(1.97, rel=0.05)


@pytest.mark.parametrize(
    ("gpu", "form", "context", "gpus"),
    [
        # Llama-3.1-70B in BF16: 141.1 GB; a token 320 KiB; 71.2 GiB of an H100, 125.7 GiB of an H200.
        ("H100", "bf16", 8192, 2),  # 65.7 + 3.0 GiB of 71.2, and 1.25 GiB for the sequence
        ("H100", "bf16", 131072, 4),  # a sequence takes 20 GiB of each of two
        ("H200", "bf16", 8192, 2),
        ("H100", "fp8", 8192, 2),  # 67.6 GiB and what computing takes: more than one holds
        ("H100", "gptq", 8192, 1),
        ("A100-40GB", "gptq", 8192, 2),
        ("L4", "gptq", 8192, 4),
    ],
)
def test_as_few_gpus_as_hold_it(tmp_path: Path, gpu: str, form: str, context: int, gpus: int) -> None:
    shape, wanted = shape_of(tmp_path, LLAMA_70B), parse_form(form)
    stored = planned(llama_tensors(LLAMA_70B), wanted)
    plan = plan_on(GPUS[gpu], shape, stored, context=context, group_size=wanted.group_size)
    assert (plan.tensor_parallel_size, plan.reason) == (gpus, None)
    assert plan.sequences >= 1
    assert plan.weights_bytes + plan.overhead_bytes + plan.cache_bytes == plan.budget_bytes
    assert plan.tokens >= context


def test_a_window_lets_more_sequences_fit(tmp_path: Path) -> None:
    """Mistral-7B-v0.1 on an L4: of 32768 tokens 4095 are held, and twice the 2048 that are computed at once."""
    config = {**LLAMA_8B, **MISTRAL_7B}
    tensors = llama_tensors(config)
    sliding = plan_on(GPUS["L4"], shape_of(tmp_path, config), tensors, context=32768)
    whole = plan_on(GPUS["L4"], shape_of(tmp_path, {**config, "sliding_window": None}), tensors, context=32768)
    blocks = sliding.cache_bytes // (131_072 * 16)
    assert whole.sequences == blocks // 2048
    assert sliding.sequences == blocks // (-(-(4095 + 2 * 2048) // 16) + 1) == blocks // 513


def plan_70b(tmp_path: Path, **options: Any) -> GpuPlan:
    given: dict[str, Any] = {"context": 8192, **options}
    return plan_on(GPUS["H100"], shape_of(tmp_path, LLAMA_70B), llama_tensors(LLAMA_70B), **given)


def test_what_does_not_fit_is_said_why(tmp_path: Path) -> None:
    assert "do not fit on 1 GPU" in str(plan_70b(tmp_path, sizes=(1,)).reason)
    tight = plan_70b(tmp_path, sizes=(2,), sequences=100)
    assert "not 100" in str(tight.reason)
    assert plan_70b(tmp_path, sequences=100).tensor_parallel_size == 8


def test_a_smaller_cache_holds_more(tmp_path: Path) -> None:
    sixteen, eight = plan_70b(tmp_path, sizes=(4,)), plan_70b(tmp_path, sizes=(4,), cache="fp8")
    assert eight.tokens == pytest.approx(2 * sixteen.tokens, rel=1e-3)


def test_more_of_the_gpu_is_more_for_the_cache(tmp_path: Path) -> None:
    some, most = (plan_70b(tmp_path, sizes=(4,), utilization=share) for share in (0.8, 0.9))
    assert most.cache_bytes - some.cache_bytes == pytest.approx(GPUS["H100"].memory_bytes * 0.1, abs=2)


def test_weights_are_shared_out_but_for_vectors_and_few_kv_heads() -> None:
    attention = read_attention(QWEN_7B)  # 4 KV heads
    tensors = [
        Tensor("model.layers.0.self_attn.q_proj.weight", "BF16", (512, 64)),
        Tensor("model.layers.0.self_attn.k_proj.weight", "BF16", (512, 64)),
        Tensor("model.norm.weight", "BF16", (64,)),
    ]
    whole = 2 * 512 * 64
    assert weights_on_one_gpu(tensors, attention, 1) == 2 * whole + 128
    assert weights_on_one_gpu(tensors, attention, 8) == whole // 8 + whole // 4 + 128


def test_what_cannot_be_shared_out_takes_other_numbers_of_gpus(tmp_path: Path) -> None:
    """Qwen2.5-72B: 29568 = 231 · 128, so that groups of 128 cannot be halved."""
    config = {**LLAMA_70B, "model_type": "qwen2", "intermediate_size": 29568}
    shape, tensors = shape_of(tmp_path, config), llama_tensors(config)
    stored = planned(tensors, parse_form("gptq"))
    plan = plan_on(GPUS["L4"], shape, stored, context=1024, group_size=128)
    assert plan.tensor_parallel_size == 1 and plan.reason is not None, "two would halve a group"
    with pytest.raises(InputError, match="29568 inputs in groups of 128"):
        plan_on(GPUS["L4"], shape, stored, context=1024, group_size=128, sizes=(2, 4))
    odd = shape_of(tmp_path, QWEN_7B)  # 28 heads
    assert plan_on(GPUS["H100"], odd, llama_tensors(QWEN_7B), context=1024, sizes=(8, 4)).tensor_parallel_size == 4


def test_the_longest_sequence_fits_and_a_longer_one_does_not(tmp_path: Path) -> None:
    shape, tensors = shape_of(tmp_path, LLAMA_8B), llama_tensors(LLAMA_8B)
    gpu = GPUS["L4"]
    plan = plan_on(gpu, shape, tensors, context=8192)
    longest = longest_sequence(gpu, shape, plan)
    assert plan.tensor_parallel_size == 1 and 8192 <= longest < 131072 and longest % 16 == 0
    assert plan_on(gpu, shape, tensors, context=longest, sizes=(1,)).reason is None
    assert plan_on(gpu, shape, tensors, context=longest + 16, sizes=(1,)).reason is not None
    roomy = plan_on(GPUS["H200"], shape, tensors, context=8192)
    assert longest_sequence(GPUS["H200"], shape, roomy) == 131072


def test_what_the_checkpoint_says_of_its_cache_is_heard(tmp_path: Path) -> None:
    scheme = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"},
              "config_groups": {"group_0": {"weights": {"group_size": 128}}}}  # fmt: skip
    shape = shape_of(tmp_path, {**LLAMA_8B, "quantization_config": scheme})
    assert shape.cache_in_fp8 and shape.quantised == "compressed-tensors" and shape.group_size == 128
    plan = memory_plan(shape, llama_tensors(LLAMA_8B), forms=[parse_form("original")], gpus=[], context=1024)
    assert (plan.kv_dtype, plan.kv_bytes_per_token) == ("fp8", 65_536)


def test_gpus_are_known_by_their_names() -> None:
    assert find_gpu("a100") is GPUS["A100-80GB"] and find_gpu(" h200 ") is GPUS["H200"]
    with pytest.raises(InputError, match="L40S"):
        find_gpu("T4")
    named = {"L4": 24, "L40S": 48, "A100-40GB": 40, "A100-80GB": 80, "H100": 80, "H200": 141}
    for name, gigabytes in named.items():
        assert 0.9 * gigabytes * 1e9 < GPUS[name].memory_bytes < 1.08 * gigabytes * 1e9


# The command


def test_the_command_prints_one_document(small_checkpoint: Path) -> None:
    ended = CliRunner().invoke(
        plan_memory,
        [str(small_checkpoint), "--gpu", "L4", "--gpu", "H100", "--context", "1024", "--sequences", "4",
         "--kv-dtype", "fp8", "--gpu-memory-utilization", "0.5", "--variants", "original, gptq-g64", "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    plan = json.loads(ended.stdout)
    assert (plan["context"], plan["sequences"], plan["kv_dtype"]) == (1024, 4, "fp8")
    assert plan["kv_bytes_per_token"] == 2 * 2 * 2 * 128
    assert [form["form"] for form in plan["forms"]] == ["original", "gptq-g64"]
    assert [gpu["gpu"] for gpu in plan["forms"][0]["gpus"]] == ["L4", "H100"]
    assert plan["forms"][0]["gpus"][0]["budget_bytes"] == -(-GPUS["L4"].memory_bytes // 2)


def test_the_command_prints_a_table_for_each_gpu(small_checkpoint: Path) -> None:
    ended = CliRunner().invoke(plan_memory, [str(small_checkpoint)], catch_exceptions=False)
    for word in (*GPUS, "original", "fp8", "int8-w8a8", "gptq-g32", "awq-g128", "w4a16-g128", "2,048 bytes a token"):
        assert word in ended.stdout
    assert "estimate" in ended.stdout


def test_a_context_longer_than_the_model_is_refused(small_checkpoint: Path) -> None:
    ended = CliRunner().invoke(plan_memory, [str(small_checkpoint), "--context", "4096"])
    assert isinstance(ended.exception, InputError) and "2048" in str(ended.exception)
