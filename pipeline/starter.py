"""The recipe that `optimize init` writes: every choice there is, explained, to be edited."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap

from stages.target import TARGET_RUNTIMES
from stages.variant import Variant
from stages.variants import GRAPH_VARIANTS, LANGUAGE_VARIANTS, parse_variant, runtimes_of

__all__ = ["starter_recipe"]

_GRAPH = """\
# What `optimize run {file}` does. Paths are relative to this file, and everything but `model` has a default.
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
# image: registry.example/{name}   # a container image of what is published
# tracking_uri: http://mlflow.example:5000
"""

_LANGUAGE = """\
# What `optimize run {file}` does. Paths are relative to this file, and everything but `model` has a default.
model: {model}
name: {name}
{task}

# Perplexity is judged on this text, window by window against the checkpoint as it came. A row of `text` each; or of
# `messages` (chat, through the checkpoint's own template); or of `prompt` and `completion`. .jsonl, .csv, .parquet,
# plain .txt, a saved datasets directory, module:function. Without it Python's own documentation is taken.
# evaluation:
#   path: evaluation.jsonl
#   max_length: 1024             # tokens of a window

# Quantisation learns from this: text as the model will meet it, and none that it is judged on.
# calibration:
#   path: calibration.jsonl
#   max_length: 1024
#   samples: 128                 # windows

# Tasks for lm-evaluation-harness, local ones, which must not be lost either.
# suite:
#   path: tasks                  # a folder of YAML files and their data
#   max_drop: 2%

# Beside the checkpoint as it came, which is always measured. A name, or {{type: gptq, group_size: 32, …}}; or `auto`.
{variants}
variants: [gptq, int4-onnx]
fallback: true                   # where a variant fails its gate, return the layers that do it to higher precision

gates:                           # a variant that fails one is never published
  max_drop: 1%                   # how far perplexity may rise, with 95 % confidence
  # max_size: 8GB

objective: size                  # size | latency | throughput; speed is measured in this process, not in a server
profile:
  batch_sizes: [1, 4]
  new_tokens: 32                 # that a request generates
  budget: 60s
serving:
  # vllm: vllm-environment       # the virtual environment whose vLLM verifies the release; default: the one in PATH
  engine:                        # what vLLM's engine is told
    gpu_memory_utilization: 0.9
    # gpu: L4                    # the memory plan for it gives the two below
    # max_model_len: 8192
    # tensor_parallel_size: 1
repository: model_repository_out
# image: registry.example/{name}   # a container image of what is published
# tracking_uri: http://mlflow.example:5000
"""


def starter_recipe(model: str, name: str, task: str | None, file: str) -> str:
    """The text of a recipe for `model`, in YAML. `task` None: it is not known before the model is fetched."""
    generates = task == "text-generation"
    return (_LANGUAGE if generates else _GRAPH).format(
        file=file,
        model=model,
        name=name,
        task=f"task: {task}" if task else "# task: inferred when the model is fetched",
        variants="\n".join(_explained(LANGUAGE_VARIANTS if generates else GRAPH_VARIANTS)),
    )


def _explained(variants: Mapping[str, type[Variant]]) -> list[str]:
    """A comment for every variant: what it is, its runtimes, and whether it learns from calibration data."""
    lines = []
    for name, config in variants.items():
        possible = runtimes_of(config)
        # The recipe is written for the target cpu; what is not made for it says where it is.
        runtimes = " or ".join([name for name in possible if name in TARGET_RUNTIMES["cpu"]] or possible)
        calibrated = "; calibrated" if parse_variant(name).needs_data else ""
        about = " ".join((config.__doc__ or "").partition(".")[0].split())
        lines += wrap(
            f"{about} ({runtimes}{calibrated})",
            120,
            initial_indent=f"#   {name:<17} ",
            subsequent_indent=f"#{21 * ' '}",
        )
    return lines
