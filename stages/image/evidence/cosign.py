"""Signing and verifying with the program `cosign`, where it is on the PATH; keys and trust are its own affair."""

from __future__ import annotations

import shutil
import subprocess

from stages.errors import InputError, RequirementError, StageError
from stages.image.reference import Reference, RegistryReference

__all__ = ["cosign_sign", "cosign_verify"]


def cosign_sign(reference: Reference, key: str) -> None:
    """Sign an image in a registry, by digest. Nothing goes to a public transparency log.

    Raises `RequirementError` if cosign is not there, `InputError` for a layout, `StageError` if it fails.
    """
    _run(["sign", "--key", key, "--tlog-upload=false", "--yes"], reference)


def cosign_verify(reference: Reference, key: str) -> None:
    """Verify cosign's signature. Raises as `cosign_sign`."""
    _run(["verify", "--key", key, "--insecure-ignore-tlog=true"], reference)


def _run(arguments: list[str], reference: Reference) -> None:
    program = shutil.which("cosign")
    if program is None:
        raise RequirementError("cosign is not on the PATH: install it, or sign with --sign-key, which does not need it")
    if not isinstance(reference, RegistryReference) or reference.digest is None:
        raise InputError(f"cosign signs images in registries, by digest; {reference} is none")
    said = subprocess.run([program, *arguments, str(reference)], capture_output=True, text=True)
    if said.returncode != 0:
        raise StageError(f"cosign {arguments[0]} of {reference} failed: {said.stderr.strip()}")
