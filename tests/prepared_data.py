"""Models as far as data are concerned, and data prepared for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.artifact import Artifact, link
from stages.model import ASSETS, Model
from stages.prepare import PrepareOptions, locate_data, prepare
from stages.progress import SILENT

TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def model_of(folder: Path, task: str, inputs: list[dict[str, Any]], labels: tuple[str, ...] = ()) -> Artifact:
    """A model artifact without a graph: what it takes, and the assets that lie in `folder`."""
    description = Model(task=task, signature={"inputs": inputs, "outputs": []}, opset=20, labels=labels)  # type: ignore[arg-type]
    return Artifact.write(folder, "model", description.model_dump(mode="json"))


def text_model(folder: Path, checkpoint: Path, task: str = "text-classification") -> Artifact:
    """A model for text with a checkpoint's tokenizer and the classes `neg` and `pos`."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        link(checkpoint / name, folder / ASSETS / name)
    inputs = [{"name": name, "dtype": "int64", "shape": ("batch", "sequence")} for name in TOKENS]
    return model_of(folder, task, inputs, ("neg", "pos"))


def prepared(model: Artifact, folder: Path, data: Path | Artifact | None = None, **options: Any) -> Artifact:
    """`data` as samples for `model`, written somewhere in `folder`."""
    out = folder / f"out-{len(list(folder.glob('out-*')))}"
    out.mkdir()
    located = locate_data(str(data)) if isinstance(data, Path) else data
    return prepare(model=model, data=located, options=PrepareOptions(**options), out=out, progress=SILENT)
