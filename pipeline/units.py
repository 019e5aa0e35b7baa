"""Quantities as people write them: `1%`, `50ms`, `10m`, `20MB`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

__all__ = ["Bytes", "Fraction", "Milliseconds", "Seconds"]

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _split(value: str) -> tuple[float, str]:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%µ]*)\s*", value)
    if match is None:
        raise ValueError(f"{value!r} is not a number with a unit")
    return float(match[1]), match[2].replace("µ", "u")


def _fraction(value: object) -> object:
    if not isinstance(value, str):
        return value
    number, unit = _split(value)
    if unit not in ("", "%"):
        raise ValueError(f"{value!r}: write a percentage (1%) or a fraction (0.01)")
    return number / 100 if unit == "%" else number


def _duration(value: object, scale: float) -> object:
    if not isinstance(value, str):
        return value
    number, unit = _split(value)
    if unit not in _SECONDS:
        raise ValueError(f"{value!r}: write a duration with its unit, one of {', '.join(_SECONDS)}")
    return number * _SECONDS[unit] / scale


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    number, unit = _split(value)
    if unit not in _BYTES:
        raise ValueError(f"{value!r}: write a size with its unit, one of {', '.join(_BYTES)}")
    return round(number * _BYTES[unit])


Fraction = Annotated[float, BeforeValidator(_fraction)]
"""A share of one: `0.01` or `1%`."""

Seconds = Annotated[float, BeforeValidator(lambda value: _duration(value, 1.0))]
"""A duration: seconds as a number, or text such as `10m`."""

Milliseconds = Annotated[float, BeforeValidator(lambda value: _duration(value, 1e-3))]
"""A duration: milliseconds as a number, or text such as `50ms`."""

Bytes = Annotated[int, BeforeValidator(_bytes)]
"""A size: bytes as a number, or text such as `20MB`."""
