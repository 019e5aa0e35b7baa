"""Outliers in a trained Llama that rounding to the nearest does not survive, though it computes what it did."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["FACTOR", "plant_outliers"]

FACTOR = 16.0


def plant_outliers(checkpoint: Path, target: Path, *, block: int = 0, factor: float = FACTOR, count: int = 1) -> Path:
    """A copy of `checkpoint` that computes the same, in which `count` inputs of every linear layer of one block (but of
    `o_proj`) have weights that are `factor` times as large, and what gives these inputs is as much smaller.

    All weights that share a scale with such a one lose log2(factor) bits when they are rounded to the nearest. GPTQ
    makes up for some of that in other weights; AWQ finds the factor and takes it out. The inputs are the largest: of a
    normalisation by its weight, of `down_proj` by the row of `up_proj`.
    """
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, target)
    tensors = load_file(target / "model.safetensors")
    name = f"model.layers.{block}."
    for gives, takes in (
        ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ("mlp.up_proj", ("mlp.down_proj",)),
    ):
        weight = tensors[f"{name}{gives}.weight"]
        size = weight.abs() if weight.ndim == 1 else torch.linalg.vector_norm(weight, dim=1)
        outliers = size.topk(count).indices
        weight[outliers] /= factor
        for linear in takes:
            tensors[f"{name}{linear}.weight"][:, outliers] *= factor
    (target / "model.safetensors").unlink()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target
