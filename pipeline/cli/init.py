"""`optimize init`: a recipe to edit."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import wrap

import click

__all__ = ["init"]

_TEMPLATE = """\
# What `optimize run {file}` does. Paths are relative to this file, and everything but `model` has a default.
model: {model}
name: {name}
{task}

# Accuracy is judged on this, sample by sample against the fp32 baseline. A row a sample:
#   text tasks: `text` (or `text_a`, `text_b`; `question`, `context`; `tokens`); the truth is `label`, `labels`,
#   `answers`, or `query` and `document` for retrieval. Also .csv, .parquet, .npz (an array for every model input,
#   and `labels`), a folder of images (a subfolder a class), a saved datasets directory, module:function.
#   Language models read `text` or `messages`, also plain .txt, in windows of `max_length` tokens.
# evaluation:
#   path: evaluation.jsonl
#   columns: {{text: sentence}}     # our name: its name in the file
#   metric: accuracy              # default: the task's own

# Quantisation learns from this what values occur inside the model: a few hundred typical samples, without truth, and
# none that accuracy is judged on. Models of text take Python's own documentation where nothing is given; others cannot
# be calibrated without.
# calibration:
#   path: calibration.jsonl
#   samples: 256                  # drawn at random

# Beside the fp32 baseline, which is always measured. A name, with `-openvino` behind it where OpenVINO shall run it, or
# {{type: int8-static, runtime: openvino, …}} with parameters; or `auto`, which tries all that make sense here.
{variants}
variants: [fp16, int8-dynamic]
# search_budget: 10m             # for `auto`: all its trying and measuring
fallback: true                   # where a variant fails its gate, return the operators that do it to higher precision
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
    text = _TEMPLATE.format(
        file=file.name, model=model, name=suggest_name(model), task=task, variants="\n".join(_variants())
    )
    try:
        with file.open("x") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise InputError(f"{file} is there already; name another file") from error
    click.echo(f"wrote {file}; edit it, then: optimize run {file}", err=True)


def _variants() -> list[str]:
    """A comment for every variant: what it is, its runtimes, and whether it learns from calibration data."""
    from stages.variants import VARIANTS, parse_variant, runtimes_of

    lines = []
    for name, config in VARIANTS.items():
        runtimes = " or ".join(runtimes_of(config))
        calibrated = "; calibrated" if parse_variant(name).needs_data else ""
        about = (config.__doc__ or "").partition(".")[0]
        lines += wrap(
            f"{about} ({runtimes}{calibrated})",
            120,
            initial_indent=f"#   {name:<17} ",
            subsequent_indent=f"#{21 * ' '}",
        )
    return lines
