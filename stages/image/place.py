"""Where images are read from and written to: a layout or a registry, which the rest need not tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from stages.image.documents import Descriptor
from stages.image.layout import Layout
from stages.image.reference import LayoutReference, Reference
from stages.image.registry import Access, RegistryRepository

__all__ = ["Place", "open_place"]


class Place(Protocol):
    """What `Layout` and `RegistryRepository` have in common; their documentation says more."""

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there."""

    def put(self, descriptor: Descriptor, source: Path | bytes) -> None:
        """Take in a blob."""

    def put_manifest(self, descriptor: Descriptor, content: bytes) -> None:
        """Take in a manifest, which nothing names yet."""

    def tag(self, descriptor: Descriptor, content: bytes, name: str) -> None:
        """Give a manifest a name."""

    def refer(self, descriptor: Descriptor, content: bytes, subject: Descriptor) -> None:
        """Take in a manifest that refers to another."""

    def resolve(self, name: str | None) -> tuple[Descriptor, bytes]:
        """The manifest or index of a name or digest."""

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest that an index names."""

    def read(self, descriptor: Descriptor) -> bytes:
        """The bytes of a small blob, held against its digest."""

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob in pieces, held against its digest."""

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        """The manifests that refer to one."""


@contextmanager
def open_place(reference: Reference, access: Access) -> Iterator[Place]:
    """The place that a reference names. A registry's connections are closed at the end."""
    if isinstance(reference, LayoutReference):
        yield Layout(reference.path)
    else:
        with RegistryRepository(reference.host, reference.name, access) as repository:
            yield repository
