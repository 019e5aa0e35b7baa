"""A client for OCI registries: `RegistryRepository` pushes and pulls, `Access` says how registries are reached."""

from __future__ import annotations

from stages.image.registry.repository import RegistryRepository
from stages.image.registry.transport import Access, Retries

__all__ = ["Access", "RegistryRepository", "Retries"]
