"""What tests of images share: releases, a registry that can fail, and keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_registry import FaultyRegistry
from image_releases import noise, publish

from stages.image.contents import Release


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A release with 300 kB of weights, a small asset, and a text."""
    files = {"model.onnx": noise(300_000), "assets/vocab.bin": noise(6000, 1), "labels.txt": b"a\nb\n"}
    return publish(tmp_path / "repository", files)


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as running:
        yield running


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private and a public key (P-256, PEM)."""
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Somebody else's."""
    return make_keys(tmp_path_factory.mktemp("other_keys"))


def make_keys(folder: Path) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    secret, public = folder / "key.pem", folder / "key.pub"
    secret.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return secret, public
