"""`optimize inspect`: what is inside a model, and what fits it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

__all__ = ["inspect"]


@click.command(short_help="What is inside a model, and what fits.")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option("--allow-pickle", is_flag=True, help="Read pickle files, which can run any code.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def inspect(model: str, as_json: bool, allow_pickle: bool, debug: bool) -> None:
    """Tell what MODEL (a local file or directory) is, without converting it."""
    from stages.errors import InputError
    from stages.source import locate
    from stages.variants import GRAPH_VARIANTS, LANGUAGE_VARIANTS

    source = locate(model, allow_pickle=allow_pickle)
    if source is None:
        raise InputError(f"{model} must be fetched before it can be looked into; `optimize run {model}` does that")
    about: dict[str, Any] = {
        "model": model,
        **source.metadata,
        "digest": source.digest,
        "size_bytes": source.size_bytes,
        "files": sorted(source.files),
    }
    if source.metadata["type"] == "onnx":
        from stages.runtime.onnxruntime import signature_of

        file = next(Path(source.path, name) for name in source.files if name.endswith(".onnx"))
        about["signature"] = signature_of(file).model_dump(mode="json")
    generates = source.metadata.get("task") == "text-generation"
    about["variants"] = list(LANGUAGE_VARIANTS if generates else GRAPH_VARIANTS)
    if as_json:
        click.echo(json.dumps(about, indent=1))
        return
    for key, value in about.items():
        if key == "signature":
            for side in ("inputs", "outputs"):
                for tensor in value[side]:
                    click.echo(f"{side[:-1]:<12} {tensor['name']}: {tensor['dtype']} {tensor['shape']}")
        elif isinstance(value, list):
            click.echo(f"{key:<12} {', '.join(map(str, value))}")
        elif value is not None:
            click.echo(f"{key:<12} {value}")
