"""What a memory plan needs to know of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.errors import InputError

__all__ = ["GPUS", "Gpu", "find_gpu"]

_GIB = 1024**3


@dataclass(frozen=True)
class Gpu:
    """A GPU. `memory_bytes`: what CUDA reports as its total, of which vLLM takes its share: less than the name says,
    for the driver and error correction keep some. `batched_tokens` and `sequences`: how many tokens vLLM's server
    computes at once on it, and how many requests it serves at a time, where it is not told.
    """

    name: str
    memory_bytes: int
    batched_tokens: int
    sequences: int


def _gpu(name: str, memory_gib: float, batched_tokens: int = 2048, sequences: int = 256) -> Gpu:
    return Gpu(name, int(memory_gib * _GIB), batched_tokens, sequences)


# Totals (GiB) as `torch.cuda.mem_get_info` gives them: the smallest found in public reports of vLLM and PyTorch ("GPU 0
# has a total capacity of 22.03 GiB"); between drivers and boards they differ by some 0.1 GiB.
# Batches: `EngineArgs.get_batch_defaults` of vLLM 0.32 (vllm/engine/arg_utils.py), for the OpenAI-compatible server.
GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("L4", 22.03),
        _gpu("L40S", 44.39),
        _gpu("A100-40GB", 39.38),
        _gpu("A100-80GB", 79.14),
        _gpu("H100", 79.10, 8192, 1024),
        _gpu("H200", 139.72, 8192, 1024),
    )
}
_ALIASES = {"A100": "A100-80GB", "H100-80GB": "H100", "H200-141GB": "H200"}


def find_gpu(name: str) -> Gpu:
    """A GPU by its name, in any case; A100 is the one with 80 GB. Raises `InputError` for one that is not listed."""
    wanted = name.strip().upper()
    gpu = GPUS.get(_ALIASES.get(wanted, wanted))
    if gpu is None:
        raise InputError(f"no memory plan is known for the GPU {name!r}; there are {', '.join([*GPUS, 'A100'])}")
    return gpu
