"""The linear layers of a checkpoint, found without reading its weights: which there are and which go together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stages.artifact import Artifact
from stages.errors import InputError
from stages.language.checkpoint import Checkpoint

__all__ = ["LinearLayers", "linear_layers"]

_HELD_AS_ONE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Siblings whose matrices vLLM, SGLang and TGI put together. They refuse a checkpoint in which such differ in form."""


@dataclass(frozen=True)
class LinearLayers:
    """`shapes`: (outputs, inputs) of each linear layer by its module's name, in the model's order, without `head`.

    `head` is the layer whose outputs are the scores of the next token, None for a model that has none. `stacks` are
    parameters of three dimensions: the matrices of a mixture of experts, which are no layers of their own.
    """

    shapes: Mapping[str, tuple[int, int]]
    head: str | None
    stacks: tuple[str, ...] = ()

    def __len__(self) -> int:
        """How many there are, the head among them."""
        return len(self.shapes) + (self.head is not None)

    def chosen(self, names: Iterable[str], what: str) -> tuple[str, ...]:
        """The layers of `names` and those that servers hold together with one of them, in the model's order.

        `what` says where the names stand. Raises `InputError` for a name that no layer has; the head's is let pass.
        """
        named = set(names) - {self.head}
        for name in sorted(named - self.shapes.keys()):
            close = difflib.get_close_matches(name, self.shapes, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"they are called like {next(iter(self.shapes), '')!r}"
            raise InputError(f"{what} names {name!r}, and the model has no such linear layer; {hint}")
        whole = {other for name in named for other in _held_with(name)}
        return tuple(name for name in self.shapes if name in whole)

    def ensure_divisible(self, group_size: int, names: Iterable[str], remedy: str) -> None:
        """Raises `InputError` if the inputs of one of the layers `names` cannot be cut into groups of `group_size`."""
        odd = [name for name in names if self.shapes[name][1] % group_size]
        if odd:
            more = f", and neither can those of {len(odd) - 1} other layers" if odd[1:] else ""
            inputs = self.shapes[odd[0]][1]
            raise InputError(
                f"the {inputs} inputs of {odd[0]} cannot be cut into groups of {group_size}{more}; {remedy}"
            )


def linear_layers(model: Artifact) -> LinearLayers:
    """The linear layers of a checkpoint. The network is built without memory for its weights.

    Raises `InputError` if transformers does not know the architecture.
    """
    from stages.language.runtime.preload import torch, transformers

    trust = Checkpoint.of(model).trust_remote_code
    try:
        config = transformers.AutoConfig.from_pretrained(model.path, trust_remote_code=trust, local_files_only=True)
        with torch.device("meta"):
            network = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"{model.path} cannot be built by transformers as a model that generates text: {error}"
        ) from error
    head = network.get_output_embeddings()
    layers = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    return LinearLayers(
        shapes={name: (layer.out_features, layer.in_features) for name, layer in layers.items() if layer is not head},
        head=next((name for name, layer in layers.items() if layer is head), None),
        stacks=tuple(name for name, weight in network.named_parameters() if weight.ndim == 3 and "conv" not in name),
    )


def _held_with(name: str) -> list[str]:
    parent, _, last = name.rpartition(".")
    siblings = next((group for group in _HELD_AS_ONE if last in group), (last,))
    return [f"{parent}.{sibling}" if parent else sibling for sibling in siblings]
