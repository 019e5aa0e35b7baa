"""Triton's model repository: signatures and `config.pbtxt` (`config`), releases (`repository`) and a local server.

It knows nothing of the stages that make models; `Repository("path")` is of use alone, from a notebook.
"""

from __future__ import annotations

from model_repository.errors import RepositoryError, ServerError
from model_repository.repository import Published, Repository, VersionInfo
from model_repository.signature import Signature, TensorSpec

__all__ = ["Published", "Repository", "RepositoryError", "ServerError", "Signature", "TensorSpec", "VersionInfo"]
