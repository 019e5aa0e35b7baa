"""A PyTorch model ready to be traced and tried: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_repository.signature import Signature, TensorSpec
from stages.artifact import Artifact
from stages.errors import InputError
from stages.runtime import Arrays
from stages.source.exported import Axes

__all__ = ["Program", "load"]


@dataclass(frozen=True)
class Program:
    """A model and what is needed to trace it and to try it.

    `module(**tensors)` gives `{output name: tensor}`. `examples` is one batch of at least two samples, every dynamic
    axis (`axes`) two or longer, for 0 and 1 would be traced as constants. `trials` are batches of other shapes.
    `missing` names the parameters that no weight was found for. `exported` is the traced form where there is one.
    """

    module: Any
    examples: Arrays
    axes: Axes
    outputs: tuple[str, ...]
    trials: tuple[Arrays, ...]
    origin: str
    missing: frozenset[str] = frozenset()
    labels: tuple[str, ...] = ()
    exported: Any = None

    def signature(self) -> Signature:
        """The signature, with the shapes of the outputs seen in a run of the examples.

        An axis of an output is dynamic where its size is that of a dynamic axis of the inputs.
        """
        import torch

        with torch.inference_mode():
            answers = self.module(**{name: torch.from_numpy(array) for name, array in self.examples.items()})
        sizes: dict[int, str] = {}
        for name, dynamic in self.axes.items():
            for axis, said in dynamic.items():
                sizes.setdefault(self.examples[name].shape[axis], said)
        return Signature(
            inputs=tuple(
                TensorSpec(name=name, dtype=array.dtype.name, shape=_shape(array.shape, self.axes.get(name, {})))
                for name, array in self.examples.items()
            ),
            outputs=tuple(
                TensorSpec(
                    name=name,
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    shape=tuple(sizes.get(size, size) for size in tensor.shape),
                )
                for name, tensor in answers.items()
            ),
        )


def load(source: Artifact, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> Program:
    """The PyTorch model of a source artifact.

    Raises `InputError` if it is damaged, not safe to read, or not a PyTorch model.
    """
    from stages.convert import exported_program, transformers_model

    match source.metadata["type"]:
        case "huggingface":
            return transformers_model.load(source, allow_pickle, trust_remote_code)
        case "exported":
            return exported_program.load(source, allow_pickle)
        case other:
            raise InputError(f"{source.path} is an {other} model; PyTorch runs Hugging Face models and .pt2 programs")


def _shape(shape: tuple[int, ...], dynamic: Mapping[int, str]) -> tuple[int | str, ...]:
    return tuple(dynamic.get(axis, size) for axis, size in enumerate(shape))
