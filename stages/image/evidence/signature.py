"""A signature over an image's manifest and its evidence, with a key of one's own (OpenSSF Model Signing).

The manifest names every layer by digest, so its signature covers the image. What is signed are the files
`manifest.json`, `provenance.json` and `sbom.json`; the tool `model_signing` verifies them as well.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.errors import InputError, RequirementError, StageError

__all__ = ["SIGNATURE", "SIGNED", "holds", "sign"]

SIGNATURE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNED = ("manifest.json", "provenance.json", "sbom.json")


def sign(files: Mapping[str, bytes], key: Path) -> bytes:
    """The signature (a Sigstore bundle) over these files with a private key (PEM, an elliptic curve, no password).

    Raises `InputError` if the key cannot be used and `RequirementError` if model-signing is not installed.
    """
    signing, _ = _library()
    _ensure_file(key)
    with tempfile.TemporaryDirectory() as name:
        folder, bundle = _lay_out(Path(name), files), Path(name) / "bundle"
        try:
            signing.Config().use_elliptic_key_signer(private_key=key).sign(folder, bundle)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{key} cannot sign: {error}; it takes a PEM key of P-256, P-384 or P-521 without a password"
            ) from error
        return bundle.read_bytes()


def holds(bundle: bytes, known: Mapping[str, bytes], key: Path) -> dict[str, bytes]:
    """The files that a signature covers, if it is right for a public key.

    `known` are the contents that may be meant, by SHA-256 in hexadecimal. Raises `StageError` saying what is wrong
    otherwise: another key, a changed file, a file that is not there.
    """
    _, verifying = _library()
    _ensure_file(key)
    files: dict[str, bytes] = {}
    try:
        payload = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
        for item in payload["predicate"]["resources"]:
            if item["name"] not in SIGNED:
                raise StageError(f"it covers {item['name']!r}, which is no part of an image")
            if item["digest"] not in known:
                raise StageError(f"it covers a {item['name']} with the SHA-256 {item['digest']}, which is not there")
            files[item["name"]] = known[item["digest"]]
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"it is damaged ({error!r})") from error
    with tempfile.TemporaryDirectory() as name:
        folder, signature = _lay_out(Path(name), files), Path(name) / "bundle"
        signature.write_bytes(bundle)
        try:
            verifying.Config().use_elliptic_key_verifier(public_key=key).verify(folder, signature)
        except Exception as error:
            raise StageError(str(error).strip() or type(error).__name__) from error
    return files


def _lay_out(place: Path, files: Mapping[str, bytes]) -> Path:
    folder = place / "image"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _ensure_file(key: Path) -> None:
    if not key.is_file():
        raise InputError(f"there is no key {key}")


def _library() -> tuple[Any, Any]:
    try:
        from model_signing import signing, verifying
    except ImportError as error:
        raise RequirementError(
            f"model-signing is not installed ({error}): `pip install 'optimize-pipeline[signing]'`"
        ) from error
    return signing, verifying
