"""PyTorch on the CPU: the form that a model was trained in, which every other form is held against."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

from numpy.typing import NDArray

from model_repository.signature import Signature
from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.runtime import Arrays, RuntimeOptions
from stages.runtime.session import Closing

__all__ = ["Runnable", "TorchSession", "open_session"]


class Runnable(Protocol):
    """What a session runs: `module(**tensors)` gives `{output name: tensor}`; `examples` is a batch that it takes."""

    @property
    def module(self) -> Callable[..., dict[str, Any]]: ...

    @property
    def examples(self) -> Arrays: ...

    def signature(self) -> Signature: ...


def open_session(artifact: Artifact, options: RuntimeOptions) -> TorchSession:
    """Open a source artifact (a Hugging Face model or a `torch.export` program).

    Raises `InputError` if it is not one, is damaged, or would run code that has to be trusted first.
    """
    if artifact.kind != "source":
        raise InputError(f"{artifact.path} is a {artifact.kind}; PyTorch opens sources")
    from stages.convert.program import load

    try:
        return TorchSession(load(artifact), options.threads)
    except ImportError as error:
        raise RequirementError(f"{error.name} is not installed: `pip install {error.name}`") from error


class TorchSession(Closing):
    """A model called with named arrays, in inference mode.

    PyTorch has one number of threads for the process: it is the session's from opening to closing.
    """

    def __init__(self, program: Runnable, threads: int = 0) -> None:
        import torch

        self._program: Runnable | None = program
        self._dtypes = {name: array.dtype for name, array in program.examples.items()}
        self._threads_before: int = torch.get_num_threads()
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))

    @cached_property
    def signature(self) -> Signature:
        return self._open().signature()

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        import torch

        program = self._open()
        given = {name: array.dtype for name, array in batch.items()}
        if given != self._dtypes:
            raise InputError(f"the batch has {_said(given)}; the model takes {_said(self._dtypes)}")
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            return {name: tensor.numpy() for name, tensor in program.module(**tensors).items()}

    def close(self) -> None:
        import torch

        if self._program is not None:
            torch.set_num_threads(self._threads_before)
            self._program = None

    def _open(self) -> Runnable:
        if self._program is None:
            raise StageError("the session was closed")
        return self._program


def _said(dtypes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
