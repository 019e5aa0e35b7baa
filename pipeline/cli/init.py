"""`optimize init`: a recipe to edit."""

from __future__ import annotations

import os
from pathlib import Path

import click

__all__ = ["init"]

_TEMPLATE = """\
# What `optimize run {file}` does. Relative paths are relative to this file. Everything but `model` has a default.
model: {model}
name: {name}
{task}

# Accuracy is judged on this, sample by sample against the fp32 baseline. A row a sample:
#   text tasks: `text` (or `text_a`, `text_b`; `question`, `context`; `tokens`); the truth is `label`, `labels`,
#   `answers`, or `query` and `document` for retrieval. Also .csv, .parquet, .npz (an array for every model input,
#   and `labels`), a folder of images (a subfolder a class), a saved datasets directory, module:function.
# evaluation:
#   path: evaluation.jsonl
#   columns: {{text: sentence}}     # our name: its name in the file
#   metric: accuracy              # default: the task's own

variants: [fp16, int8-dynamic]   # beside the fp32 baseline, which is always measured
fuse: measure                    # per variant, the faster graph is taken; or: always, never

gates:                           # a variant that fails one is never published
  max_drop: 1%                   # of the metric, relative to the baseline, with 95 % confidence
  min_cosine: 0.99               # for embeddings without labels
  min_agreement: 99%             # for classifiers without labels
  # max_p99: 50ms
  # max_size: 50MB

objective: latency               # latency | throughput | size
profile:
  batch_sizes: [1, 8, 32]        # the first one decides latency
  budget: 60s
serving:
  max_batch_size: 32
  max_queue_delay: 500us
repository: model_repository_out
# tracking_uri: http://mlflow.example:5000
"""


@click.command(short_help="Write a recipe to edit.")
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=Path("optimize.yaml"))
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def init(model: str, file: Path, debug: bool) -> None:
    """Write a recipe for MODEL to FILE (optimize.yaml), with every choice explained."""
    from stages.errors import InputError
    from stages.source import locate, suggest_name

    source = locate(model)
    task = "# task: inferred when the model is fetched"
    if source is not None:
        task = f"task: {source.metadata['task']}"
        model = os.path.relpath(model, file.parent)
    text = _TEMPLATE.format(file=file.name, model=model, name=suggest_name(model), task=task)
    try:
        with file.open("x") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise InputError(f"{file} is there already; name another file") from error
    click.echo(f"wrote {file}; edit it, then: optimize run {file}", err=True)
