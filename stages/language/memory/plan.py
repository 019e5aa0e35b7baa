"""How much memory a language model takes on a GPU, and how many sequences fit beside it, without loading a weight.

vLLM's own accounting (0.32): of a GPU's memory it takes the share `gpu_memory_utilization`, and what weights and
computing leave of that is the key-value cache. What computing takes only vLLM itself can measure; here it is an
estimate (`overhead_bytes`). Everything else is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Literal

from pydantic import BaseModel, ConfigDict

from stages.errors import InputError
from stages.language.checkpoint import Attention
from stages.language.memory.gpus import Gpu
from stages.language.memory.kv_cache import (
    BLOCK_TOKENS,
    blocks_of_sequence,
    bytes_of_block,
    kv_bytes_of_sequence,
    kv_bytes_per_token,
)
from stages.language.shape import Shape
from stages.language.weights import Form, Tensor, planned, why_not

__all__ = [
    "CACHE_DTYPES", "TENSOR_PARALLEL_SIZES", "CacheDtype", "FormPlan", "GpuPlan", "MemoryPlan", "cache_dtype",
    "kv_bytes_per_token", "longest_sequence", "memory_plan", "overhead_bytes", "plan_on", "weights_on_one_gpu",
]  # fmt: skip

CacheDtype = Literal["auto", "fp8", "bf16", "fp16"]
CACHE_DTYPES = {"fp8": ("fp8", 1), "bf16": ("bfloat16", 2), "fp16": ("float16", 2)}
"""What vLLM calls a data type of the cache, and its bytes."""
TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)

_MIB = 1024**2
_BESIDE_TORCH, _CUDA_GRAPHS, _BETWEEN_GPUS = 256 * _MIB, 512 * _MIB, 768 * _MIB
_CONCURRENT_BATCHES = 2
_KV_PROJECTIONS = (".k_proj.", ".v_proj.")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GpuPlan(_Frozen):
    """A form of the weights on GPUs of one kind. All figures but `sequences` and `tokens` are of each of them.

    `tensor_parallel_size`: over how many the model is spread. `budget_bytes`: what vLLM takes. `overhead_bytes` is an
    estimate. `sequences` of the plan's context fit at once in the cache (vLLM's "maximum concurrency", rounded down);
    `tokens` is its size as vLLM reports it. `reason`: why it cannot be served so, None if it can.
    """

    gpu: str
    memory_bytes: int
    budget_bytes: int
    tensor_parallel_size: int
    weights_bytes: int
    overhead_bytes: int
    cache_bytes: int
    sequences: int
    tokens: int
    reason: str | None


class FormPlan(_Frozen):
    """A form of the weights: `stored_bytes` in its files, `loaded_bytes` in a server, which holds FP32 in 16 bits.

    `reason`: why there is no such form of this model; then the figures are None.
    """

    form: str
    stored_bytes: int | None
    loaded_bytes: int | None
    reason: str | None
    gpus: tuple[GpuPlan, ...]


class MemoryPlan(_Frozen):
    """What a model takes, and where it can be served.

    `kv_bytes_per_sequence`: of `context` tokens. `windows`: how many layers look back how far, `all` for the whole
    sequence. Figures of the cache are None where it is not understood, with the reason in `not_understood`.
    """

    model_type: str
    quantised: str | None
    context: int
    sequences: int
    gpu_memory_utilization: float
    kv_dtype: str
    kv_bytes_per_token: int | None
    kv_bytes_per_sequence: int | None
    windows: dict[str, int]
    not_understood: str | None
    forms: tuple[FormPlan, ...]


def cache_dtype(cache: CacheDtype, shape: Shape) -> tuple[str, int]:
    """The data type of the cache and its bytes. `auto`: the 16 bits that vLLM computes in; FP8 if the checkpoint says
    so."""
    if cache == "auto":
        cache = "fp8" if shape.cache_in_fp8 else "fp16" if shape.dtype == "float16" else "bf16"
    return CACHE_DTYPES[cache]


def overhead_bytes(shape: Shape, gpu: Gpu, context: int, tensor_parallel_size: int = 1) -> int:
    """What vLLM needs on a GPU beside weights and cache: an estimate.

    Activations are the larger of the two moments that vLLM measures at its start: the feed-forward layer of a full
    batch (gate, up, their product, and the residual twice, in 16 bits), and sampling for a full set of requests (logits
    in 16 and 32 bits, and probabilities). To that come 0.25 GiB outside PyTorch, 0.5 GiB of CUDA graphs, and 0.75 GiB
    for the exchange between GPUs. vLLM's own log has for Llama-3.1-8B on 80 GB 1.21 GiB of activations, where this says
    1.22, and 1.70 GiB in all, where this says 1.97.
    """
    batched = min(gpu.batched_tokens, gpu.sequences * context)
    feed_forward = batched * (3 * ceil(shape.intermediate_size / tensor_parallel_size) + 2 * shape.hidden_size) * 2
    sampling = min(gpu.sequences, batched) * shape.vocabulary * (2 + 4 + 4)
    exchange = _BETWEEN_GPUS if tensor_parallel_size > 1 else 0
    return max(feed_forward, sampling) + _BESIDE_TORCH + _CUDA_GRAPHS + exchange


def weights_on_one_gpu(tensors: Iterable[Tensor], attention: Attention, tensor_parallel_size: int) -> int:
    """Bytes of the weights on each of so many GPUs: matrices are shared out, vectors every GPU has for itself.

    With fewer KV heads than GPUs, their projections are there more than once.
    """
    total = 0
    for tensor in tensors:
        shares = tensor_parallel_size if len(tensor.shape) > 1 else 1
        if any(name in tensor.name for name in _KV_PROJECTIONS):
            shares = min(shares, attention.kv_heads)
        total += ceil(tensor.loaded_bytes / shares)
    return total


def plan_on(
    gpu: Gpu,
    shape: Shape,
    tensors: Iterable[Tensor],
    *,
    context: int,
    sequences: int = 1,
    cache: CacheDtype = "auto",
    utilization: float = 0.9,
    group_size: int | None = None,
    sizes: Sequence[int] = TENSOR_PARALLEL_SIZES,
) -> GpuPlan:
    """The smallest number of GPUs, out of `sizes`, on which `sequences` of `context` tokens fit, and what each holds.

    `tensors`: as the form stores them; `group_size`: of that form. Where no number is enough, the plan is the one in
    which most tokens fit, and says what is missing. Raises `InputError` if the attention is not understood, or if the
    model cannot be spread over any of these numbers.
    """
    attention = _understood(shape)
    tensors = tuple(tensors)
    budget = ceil(gpu.memory_bytes * utilization)
    each = blocks_of_sequence(attention, context, _in_flight(gpu, context))
    refused: list[str] = []
    best: GpuPlan | None = None
    for size in sizes:
        if reason := _cannot_share(shape, attention, group_size, size):
            refused.append(reason)
            continue
        weights = weights_on_one_gpu(tensors, attention, size)
        overhead = overhead_bytes(shape, gpu, context, size)
        left = budget - weights - overhead
        blocks = max(0, left) // bytes_of_block(attention, cache_dtype(cache, shape)[1], size)
        plan = GpuPlan(
            gpu=gpu.name,
            memory_bytes=gpu.memory_bytes,
            budget_bytes=budget,
            tensor_parallel_size=size,
            weights_bytes=weights,
            overhead_bytes=overhead,
            cache_bytes=max(0, left),
            sequences=blocks // each,
            tokens=blocks * context // each,
            reason=None if blocks // each >= sequences else _missing(left, size, blocks / each, sequences, context),
        )
        if plan.reason is None:
            return plan
        if best is None or plan.tokens >= best.tokens:
            best = plan
    if best is None:
        raise InputError(f"the model cannot be spread over {' or '.join(map(str, sizes))} GPUs: {refused[0]}")
    return best


def longest_sequence(gpu: Gpu, shape: Shape, plan: GpuPlan, cache: CacheDtype = "auto") -> int:
    """The longest sequence of which one fits where the plan spreads the model: at most what the model was made for,
    else a multiple of 16 tokens, 0 if none fits."""
    attention, size = _understood(shape), plan.tensor_parallel_size
    block = bytes_of_block(attention, cache_dtype(cache, shape)[1], size)

    def fits(tokens: int) -> bool:
        left = plan.budget_bytes - plan.weights_bytes - overhead_bytes(shape, gpu, tokens, size)
        return max(0, left) // block >= blocks_of_sequence(attention, tokens, _in_flight(gpu, tokens))

    if fits(shape.positions):
        return shape.positions
    low, high = 0, shape.positions // BLOCK_TOKENS
    while low < high:  # the more tokens, the more memory
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * BLOCK_TOKENS) else (low, middle - 1)
    return low * BLOCK_TOKENS


def memory_plan(
    shape: Shape,
    tensors: Sequence[Tensor],
    *,
    forms: Sequence[Form],
    gpus: Sequence[Gpu],
    context: int,
    sequences: int = 1,
    cache: CacheDtype = "auto",
    utilization: float = 0.9,
) -> MemoryPlan:
    """What every form of a model takes, and on how many of which GPU it can be served.

    `tensors`: those of the checkpoint. `context`: tokens of a sequence, prompt and answer together. Where the attention
    is not understood, there are the weights only. Raises `InputError` if the context is longer than the model can take,
    or if it cannot be spread over GPUs at all.
    """
    if shape.positions and context > shape.positions:
        raise InputError(f"the model takes sequences of at most {shape.positions} tokens, not of {context}")

    def plan_form(form: Form) -> FormPlan:
        if reason := why_not(tensors, form):
            return FormPlan(form=form.name, stored_bytes=None, loaded_bytes=None, reason=reason, gpus=())
        stored = planned(tensors, form)
        placed = [
            plan_on(
                gpu,
                shape,
                stored,
                context=context,
                sequences=sequences,
                cache=cache,
                utilization=utilization,
                group_size=form.group_size or shape.group_size,
            )
            for gpu in gpus
            if shape.attention is not None
        ]
        return FormPlan(
            form=form.name,
            stored_bytes=sum(tensor.size_bytes for tensor in stored),
            loaded_bytes=sum(tensor.loaded_bytes for tensor in stored),
            reason=None,
            gpus=tuple(placed),
        )

    name, size = cache_dtype(cache, shape)
    attention = shape.attention
    windows = Counter("all" if window is None else str(window) for window in (attention.windows if attention else ()))
    return MemoryPlan(
        model_type=shape.model_type,
        quantised=shape.quantised,
        context=context,
        sequences=sequences,
        gpu_memory_utilization=utilization,
        kv_dtype=name,
        kv_bytes_per_token=kv_bytes_per_token(attention, size) if attention else None,
        kv_bytes_per_sequence=kv_bytes_of_sequence(attention, context, size) if attention else None,
        windows=dict(windows),
        not_understood=shape.not_understood,
        forms=tuple(plan_form(form) for form in forms),
    )


def _understood(shape: Shape) -> Attention:
    if shape.attention is None:
        raise InputError(f"no memory plan can be made: {shape.not_understood}")
    return shape.attention


def _in_flight(gpu: Gpu, context: int) -> int:
    """Tokens that are scheduled and not yet settled: vLLM schedules a batch while another is computed."""
    return _CONCURRENT_BATCHES * min(gpu.batched_tokens, gpu.sequences * context)


def _cannot_share(shape: Shape, attention: Attention, group_size: int | None, size: int) -> str | None:
    """Why vLLM cannot spread the model over `size` GPUs; None if it can."""
    if attention.heads % size:
        return f"{attention.heads} heads cannot be shared out among {size}"
    if attention.kv_heads % size and size % attention.kv_heads:
        return f"{attention.kv_heads} KV heads cannot be shared out among {size}"
    for inputs in (attention.heads * attention.head_size, shape.intermediate_size):
        if group_size and inputs % (group_size * size):
            return f"{inputs} inputs in groups of {group_size} cannot be shared out among {size}"
    return None


def _missing(left: int, size: int, fitting: float, sequences: int, context: int) -> str:
    where = f"on {size} GPU{'s' if size > 1 else ''}"
    if left <= 0:
        return f"the weights, and what computing takes beside them, do not fit {where}"
    return f"{fitting:.2f} sequences of {context} tokens fit {where}, not {sequences}"
