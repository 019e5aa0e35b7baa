"""What a language model takes of a GPU's memory, from its headers and its configuration alone.

`gpus` knows the GPUs, `kv_cache` what a token takes and how vLLM cuts the cache into blocks, `plan` puts both together.
"""

from stages.language.memory.gpus import GPUS, Gpu, find_gpu
from stages.language.memory.plan import memory_plan

__all__ = ["GPUS", "Gpu", "find_gpu", "memory_plan"]
