"""Sensitivity: which groups of quantised layers cost a language model the most, each alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from calibration.windows import Windows
from stages.artifact import Artifact
from stages.errors import StageError
from stages.language.checkpoint import Checkpoint
from stages.language.runtime.transformers import TransformersSession, open_language
from stages.noise import MOST_DB, Noise, decibels
from stages.progress import SILENT, Progress
from stages.stage import Stage

__all__ = ["LAYER_SENSITIVITY", "LayerSensitivityOptions", "layer_sensitivity"]

_MOST_EFFECT = 10 ** (MOST_DB / 10)
_IN_BLOCK = re.compile(r"\.\d+\.")


class LayerSensitivityOptions(BaseModel):
    """On so many `windows` of the data, evenly spaced. `threads`: 0 is every usable core."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    windows: int = Field(default=8, ge=1)
    threads: int = Field(default=0, ge=0)


def layer_sensitivity(
    model: Artifact,
    quantised: Artifact,
    data: Artifact,
    options: LayerSensitivityOptions,
    out: Path,
    progress: Progress = SILENT,
) -> Artifact:
    """What each group of quantised layers alone does to the answers of the checkpoint `model`: an artifact of kind
    `sensitivity`.

    The weights that the checkpoint `quantised` really holds take their place in the original, those of one group at a
    time: the linear layers of one module (a block's attention, its MLP). For a decoder in ONNX, whose layers are fused,
    the original's weights are rounded to nearest in its bits and groups instead: that tells the order as well. Noise
    powers are nearly additive where errors are small and independent, so that the order of the groups says which to
    return to higher precision first.

    Metadata: `groups`, worst first, each with its `name`, its `operators` (the layers), `effect` (noise power over
    signal power of the logits), `sqnr_db` (the same in decibels) and `cosine_error` (null); `unquantised`: the linear
    layers that are not quantised in any case; `samples`, `evidence`.

    Raises `StageError` if nothing in `quantised` differs from `model`.
    """
    windows = Windows.load(data.path)
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(options.windows, len(windows))).round().astype(int))
    tokens = windows.tokens[chosen]
    progress.update("reading what was quantised")
    weights = _stored(quantised, options.threads)
    with open_language(model, options.threads) as session:
        if weights is None:
            weights = _rounded(session, Checkpoint.of(quantised))
        changed = {
            name: weights[name] for name, weight in _linear_weights(session) if not _equal(weight, weights[name])
        }
        if not changed:
            raise StageError(f"no layer of {quantised.path} differs from the original's")
        unquantised = sorted(set(weights) - set(changed))
        groups: dict[str, list[str]] = {}
        for name in changed:
            groups.setdefault(name.rpartition(".")[0], []).append(name)
        wanted = [session.logits(window[None]) for window in tokens]
        effects = {}
        for done, (group, names) in enumerate(groups.items()):
            progress.update(f"trying {group}", done, len(groups))
            noise = Noise()
            with _replaced(session, {name: changed[name] for name in names}):
                for window, answer in zip(tokens, wanted, strict=True):
                    noise.add(session.logits(window[None]), answer)
            effects[group] = min(noise.ratio, _MOST_EFFECT)
    metadata = {
        "groups": [
            {
                "name": group,
                "operators": sorted(groups[group]),
                "effect": effects[group],
                "sqnr_db": decibels(effects[group]),
                "cosine_error": None,
            }
            for group in sorted(effects, key=lambda group: -effects[group])
        ],
        "unquantised": unquantised,
        "samples": len(chosen),
        "evidence": data.metadata["evidence"],
    }
    return Artifact.write(out, "sensitivity", metadata, {"model": model, "quantised": quantised, "data": data})


def _stored(quantised: Artifact, threads: int) -> dict[str, Any] | None:
    """The weights of the linear layers as they are stored; None where they cannot be told apart."""
    if Checkpoint.of(quantised).runtime != "transformers":
        return None
    with open_language(quantised, threads) as session:
        return dict(_linear_weights(session))


def _rounded(session: TransformersSession, described: Checkpoint) -> dict[str, Any]:
    """The weights of the linear layers, those in the blocks rounded to nearest as `described` has them."""
    about = described.quantisation
    weights = dict(_linear_weights(session))
    if about is None:
        return weights
    largest = 2 ** (about.weight_bits - 1) - 1
    for name, weight in weights.items():
        if not _IN_BLOCK.search(name):
            continue
        grouped = weight.reshape(len(weight), -1, about.group_size or weight.shape[1])
        scale = grouped.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / largest
        weights[name] = ((grouped / scale).round() * scale).reshape(weight.shape)
    return weights


def _linear_weights(session: TransformersSession) -> Iterator[tuple[str, Any]]:
    """The names and the weights ([outputs, inputs], dense) of the linear layers, whatever form they are kept in: a
    layer that is given the identity answers its weights."""
    import torch

    for name, module in session.module.named_modules():
        inputs = getattr(module, "in_features", None)
        if inputs is None or any(module.children()):
            continue
        with torch.inference_mode():
            bias = getattr(module, "bias", None)
            kept = next((one.dtype for one in module.parameters() if one.is_floating_point()), None)
            identity = torch.eye(inputs, dtype=kept or session.module.dtype)
            answer = module(identity)
            yield name, (answer if bias is None else answer - bias).T.float().clone()


def _equal(weight: Any, other: Any) -> bool:
    import torch

    return bool(torch.allclose(weight, other, rtol=1e-2, atol=1e-6))


@contextmanager
def _replaced(session: TransformersSession, weights: Mapping[str, Any]) -> Iterator[None]:
    """Other weights in some linear layers for a while."""
    modules = {name: session.module.get_submodule(name) for name in weights}
    before = {name: module.weight.data for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.weight.data = weights[name].to(before[name].dtype)
        yield
    finally:
        for name, module in modules.items():
            module.weight.data = before[name]


LAYER_SENSITIVITY = Stage(
    name="layer sensitivity",
    revision=1,
    function=layer_sensitivity,
    libraries=("torch", "transformers"),
    preload=("stages.language.runtime.preload",),
)
