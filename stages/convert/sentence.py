"""What stands after the transformer in a sentence-transformers model: pooling, dense layers, normalisation.

The layers follow sentence-transformers' own (`sentence_transformers.models.Pooling`, `Dense`, `Normalize`), written as
plain tensor arithmetic so that they are part of the exported graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.source.huggingface import read_json
from stages.source.pickles import refuse_pickle

__all__ = ["Dense", "Normalize", "Pooling", "Transformer", "sentence_modules"]

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The keys of a Pooling configuration, in the order in which several modes are put together."""

_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU", "Softplus")


class Transformer(nn.Module):  # type: ignore[misc]
    """A transformers model with named inputs and outputs, and what stands after it if anything does."""

    def __init__(self, model: nn.Module, outputs: Sequence[str], after: nn.Sequential | None) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)
        self.after = after

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Token ids, mask and types: [batch, sequence] int64; pixels: [batch, channels, height, width] float32."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
        }
        answers = self.model(**{name: value for name, value in given.items() if value is not None}, return_dict=True)
        if self.after is None:
            return {name: answers[name] for name in self.outputs}
        assert attention_mask is not None, "only models of text are pooled"
        pooling, *rest = self.after
        embedding = pooling(answers["last_hidden_state"], attention_mask)
        for layer in rest:
            embedding = layer(embedding)
        return {"sentence_embedding": embedding}


class Pooling(nn.Module):  # type: ignore[misc]
    """One vector a text from one a token: [batch, sequence, hidden] → [batch, hidden · number of modes]."""

    def __init__(self, modes: Sequence[str]) -> None:
        super().__init__()
        self.modes = tuple(modes)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return torch.cat([self._pool(mode, hidden, weight) for mode in self.modes], dim=1)

    def _pool(self, mode: str, hidden: Tensor, weight: Tensor) -> Tensor:
        if mode == "cls":
            # The first token that is not padding: the very first, unless the tokenizer pads on the left.
            return _at(hidden, weight.squeeze(-1).argmax(dim=1))
        if mode == "max":
            return hidden.masked_fill(weight == 0, torch.finfo(hidden.dtype).min).amax(dim=1)
        if mode == "lasttoken":
            positions = torch.arange(hidden.shape[1], device=hidden.device)
            return _at(hidden, (weight.squeeze(-1) * positions).argmax(dim=1))
        if mode == "weightedmean":
            weight = weight * torch.arange(1, hidden.shape[1] + 1, device=hidden.device).to(hidden.dtype)[None, :, None]
        total, count = (hidden * weight).sum(dim=1), weight.sum(dim=1).clamp(min=1e-9)
        return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


class Dense(nn.Module):  # type: ignore[misc]
    """A linear layer with an activation on the pooled vector."""

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation

    def forward(self, embedding: Tensor) -> Tensor:
        answer: Tensor = self.activation(self.linear(embedding))
        return answer


class Normalize(nn.Module):  # type: ignore[misc]
    """To length 1 by the L2 norm."""

    def forward(self, embedding: Tensor) -> Tensor:
        return nn.functional.normalize(embedding, p=2.0, dim=1)


def sentence_modules(
    root: Path, modules: Sequence[dict[str, Any]], allow_pickle: bool
) -> tuple[str, nn.Sequential | None]:
    """The folder of the Transformer module and the layers after it (None if there are none).

    `modules` is the content of `modules.json`. Raises `InputError` naming a module that is not known here.
    """
    place = ""
    layers: list[nn.Module] = []
    for position, module in enumerate(modules):
        kind, folder = module["type"].rsplit(".", 1)[-1], root / module["path"]
        if not module["type"].startswith("sentence_transformers."):
            kind = module["type"]
        if kind == "Transformer" and position == 0:
            place = module["path"]
        elif kind == "Pooling" and not layers:
            layers.append(Pooling(_modes(folder / "config.json")))
        elif kind == "Dense" and layers:
            layers.append(_dense(folder, allow_pickle))
        elif kind == "Normalize" and layers:
            layers.append(Normalize())
        elif kind != "Dropout":
            raise InputError(
                f"{root / 'modules.json'}: the module {module['type']} at place {position} is not one that can be "
                "converted (Transformer, then Pooling, then any of Dense, Normalize, Dropout)"
            )
    return place, nn.Sequential(*layers) if layers else None


def _at(hidden: Tensor, position: Tensor) -> Tensor:
    index = position.to(torch.int64)[:, None, None].expand(-1, 1, hidden.shape[2])
    return hidden.gather(1, index).squeeze(1)


def _modes(path: Path) -> list[str]:
    config = read_json(path)
    said = config.get("pooling_mode")
    if said is not None:
        modes = [said] if isinstance(said, str) else list(said)
    else:
        modes = [mode for key, mode in _MODES.items() if config.get(key)]
    modes = ["mean_sqrt_len_tokens" if mode == "mean_sqrt_len" else mode for mode in modes]
    if not modes or not set(modes) <= set(_MODES.values()):
        raise InputError(f"{path}: the pooling mode {modes or 'none'} is not one of {', '.join(_MODES.values())}")
    return modes


def _dense(folder: Path, allow_pickle: bool) -> Dense:
    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    module, _, name = activation.rpartition(".")
    if not module.startswith("torch.nn") or name not in _ACTIVATIONS:
        raise InputError(
            f"{folder / 'config.json'}: the activation {activation} is not one of {', '.join(_ACTIVATIONS)}"
        )
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    if (folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        state = load_file(folder / "model.safetensors")
    elif not (folder / "pytorch_model.bin").is_file():
        raise InputError(f"{folder} has no model.safetensors: the weights of the Dense module are missing")
    elif allow_pickle:
        state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    else:
        raise refuse_pickle(str(folder / "pytorch_model.bin"))
    try:
        linear.load_state_dict({name.removeprefix("linear."): value.float() for name, value in state.items()})
    except RuntimeError as error:
        raise InputError(f"{folder}: the weights do not fit the Dense module: {error}") from error
    return Dense(linear.requires_grad_(False), getattr(nn, name)())
