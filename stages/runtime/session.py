"""What the sessions of several runtimes have in common: the check of a batch, and their end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from model_repository.signature import Signature
from stages.errors import InputError
from stages.runtime import Arrays
from stages.runtime.batch import mismatch, numpy_dtype

__all__ = ["Closing", "SignedSession"]


class Closing(ABC):
    """What is closed at the end of its `with`."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SignedSession(Closing):
    """A session whose signature is known when it is opened."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._dtypes = {tensor.name: numpy_dtype(tensor.dtype) for tensor in signature.inputs}

    @property
    def signature(self) -> Signature:
        return self._signature

    def _check(self, batch: Arrays) -> None:
        """Raises `InputError` where the names or dtypes of a batch are not the signature's."""
        if batch.keys() != self._dtypes.keys() or any(
            batch[name].dtype != dtype for name, dtype in self._dtypes.items()
        ):
            raise InputError(mismatch(batch, self._signature))
