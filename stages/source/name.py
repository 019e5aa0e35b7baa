"""A name for a model, from where it comes from."""

from __future__ import annotations

import re
from pathlib import PurePath

__all__ = ["suggest_name"]

_GENERIC = {"model", "models", "onnx", "checkpoint", "pytorch_model", "artifacts", "data", "export", ".", ".."}


def suggest_name(reference: str) -> str:
    """A valid model name (letters, digits, `_`, `-`, `.`, beginning with a letter or digit) for a reference.

    `sentence-transformers/all-MiniLM-L6-v2` → `all-MiniLM-L6-v2`; `models:/minilm@champion` → `minilm`;
    `zoo.vision:resnet` → `resnet`; `digits/model.onnx` → `digits`.
    """
    if reference.startswith("models:/"):
        parts = [re.split("[@/]", reference.removeprefix("models:/").lstrip("/"))[0]]
    elif re.fullmatch(r"[\w.]+:[\w.]+", reference):
        parts = [reference.rsplit(":", 1)[-1].rsplit(".", 1)[-1]]
    else:
        path = PurePath(reference.removeprefix("runs:/"))
        suffixes = (".onnx", ".pt2", ".pt", ".pth", ".pkl", ".bin")
        last = path.stem if path.suffix in suffixes else path.name
        parts = [last, *reversed(path.parts[:-1])]
    chosen = next((part for part in parts if part.lower() not in _GENERIC and part.strip("/")), parts[0])
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", chosen).strip("-._")
    return name or "model"
