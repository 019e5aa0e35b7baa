"""Formats that carry Python pickles: reading one can run any code, so it takes an explicit flag."""

from __future__ import annotations

from stages.errors import InputError

__all__ = ["PICKLE_SUFFIXES", "refuse_pickle"]

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def refuse_pickle(what: str, remedy: str = "save the weights as safetensors") -> InputError:
    """The refusal of `what`, with the safe way and the flag."""
    return InputError(
        f"{what} is a pickle, and reading a pickle can run any code. Either {remedy}, "
        "or, if you trust where it comes from, say --allow-pickle"
    )
