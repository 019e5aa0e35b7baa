"""Whether a delivery comes from a server that knows the secret, and whether it comes now.

MLflow signs as Standard Webhooks do: `v1,` and the Base64 of HMAC-SHA256 over `id.timestamp.body`, the body byte for
byte as it was sent.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["WINDOW_S", "Envelope", "UnsignedError", "open_envelope", "sign"]

WINDOW_S = 300.0
"""How far a delivery's timestamp may be from now. A retry carries the first attempt's."""


class UnsignedError(Exception):
    """A delivery that is not to be believed. The message says why, and tells nothing that helps to forge one."""


@dataclass(frozen=True)
class Envelope:
    """What the headers say: the delivery's id, its time (Unix seconds, as text) and its signatures."""

    id: str
    timestamp: str
    signatures: tuple[str, ...]

    def check(self, body: bytes, secrets: Sequence[str]) -> None:
        """Raises `UnsignedError` unless one of the signatures is that of the body under one of the secrets."""
        right = False
        for secret in secrets:
            expected = sign(secret, self.id, self.timestamp, body).encode()
            for signature in self.signatures:
                right |= hmac.compare_digest(expected, signature.encode())
        if not right:
            raise UnsignedError("the signature is wrong")


def open_envelope(headers: Mapping[str, str], now: float) -> Envelope:
    """Read the headers (names in lower case), before the body is.

    Raises `UnsignedError` if one is missing or malformed, or if the timestamp is more than `WINDOW_S` from `now`.
    """
    try:
        delivery, timestamp = headers["x-mlflow-delivery-id"], headers["x-mlflow-timestamp"]
        signature = headers["x-mlflow-signature"]
    except KeyError as error:
        raise UnsignedError(f"the header {error.args[0]} is missing") from error
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", delivery):
        raise UnsignedError("the delivery's id is malformed")
    if not re.fullmatch(r"[0-9]{1,15}", timestamp):
        raise UnsignedError("the timestamp is malformed")
    if abs(now - int(timestamp)) > WINDOW_S:
        raise UnsignedError("the delivery is stale, or a clock is wrong")
    return Envelope(delivery, timestamp, tuple(signature.split()))


def sign(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """The signature of a body."""
    content = delivery.encode() + b"." + timestamp.encode() + b"." + body
    return "v1," + base64.b64encode(hmac.new(secret.encode(), content, hashlib.sha256).digest()).decode()
