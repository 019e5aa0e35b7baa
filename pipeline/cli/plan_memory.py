"""`optimize plan-memory`: what a language model takes on a GPU, and how many sequences fit beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stages.language.memory.plan import CacheDtype, FormPlan, GpuPlan, MemoryPlan
    from stages.language.shape import Shape

__all__ = ["plan_memory"]

_GIB = 1024**3
_USUAL_FORMS = "original,bf16,fp8,int8-w8a8,gptq-g128,gptq-g32,awq-g128,w4a16-g128"


@click.command("plan-memory", short_help="What a language model takes on a GPU, and what fits beside it.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--gpu", "gpus", multiple=True, metavar="NAME",
    help="L4, L40S, A100 (80 GB), A100-40GB, H100 or H200; several times for several.  [default: all]",
)  # fmt: skip
@click.option("--context", type=click.IntRange(1), metavar="TOKENS", help="Of a sequence.  [default: the longest]")
@click.option("--sequences", default=1, show_default=True, type=click.IntRange(1), help="How many must fit at once.")
@click.option(
    "--kv-dtype", default="auto", show_default=True, type=click.Choice(["auto", "fp8", "bf16", "fp16"]),
    help="Of the key-value cache.",
)  # fmt: skip
@click.option(
    "--gpu-memory-utilization", "utilization", default=0.9, show_default=True,
    type=click.FloatRange(0, 1, min_open=True), help="The share of a GPU's memory that vLLM takes.",
)  # fmt: skip
@click.option("--variants", metavar="NAMES", help=f"Forms of the weights.  [default: {_USUAL_FORMS}]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def plan_memory(
    model: Path,
    gpus: tuple[str, ...],
    context: int | None,
    sequences: int,
    kv_dtype: CacheDtype,
    utilization: float,
    variants: str | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Tell what MODEL (the directory of a checkpoint) takes in each form of its weights, how many GPUs it needs and how
    many sequences fit there. It reads config.json and the headers of the weights, and loads nothing.
    """
    from stages.language.memory.gpus import GPUS, find_gpu
    from stages.language.memory.plan import memory_plan
    from stages.language.shape import read_shape
    from stages.language.weights import parse_form, read_tensors

    shape = read_shape(model)
    wanted = variants or ("original" if shape.quantised else _USUAL_FORMS)
    plan = memory_plan(
        shape,
        read_tensors(model),
        forms=[parse_form(name.strip()) for name in wanted.split(",")],
        gpus=[find_gpu(name) for name in gpus] if gpus else list(GPUS.values()),
        context=context or shape.positions or 1,
        sequences=sequences,
        cache=kv_dtype,
        utilization=utilization,
    )
    if as_json:
        click.echo(plan.model_dump_json(indent=1))
        return
    click.echo(_about(shape, plan))
    click.echo(_weights(plan))
    for place in range(len(gpus) or len(GPUS)):
        if table := _on_gpu(plan, place):
            click.echo(table)
    if plan.not_understood is None:
        click.echo("figures of each GPU; ~ is an estimate: what computing takes, only vLLM itself can measure")


def _about(shape: Shape, plan: MemoryPlan) -> str:
    lines = [f"{plan.model_type}, {plan.quantised or shape.dtype}"]
    if plan.not_understood is not None:
        return "\n".join([*lines, f"key-value cache: {plan.not_understood}"])
    assert plan.kv_bytes_per_token is not None and plan.kv_bytes_per_sequence is not None
    lines.append(
        f"key-value cache in {plan.kv_dtype}: {plan.kv_bytes_per_token:,} bytes a token, "
        f"{_gib(plan.kv_bytes_per_sequence)} a sequence of {plan.context:,} tokens"
    )
    if set(plan.windows) != {"all"}:
        shown = [f"{count} look back {'all' if far == 'all' else far} tokens" for far, count in plan.windows.items()]
        lines.append(f"layers: {', '.join(shown)}")
    return "\n".join(lines)


def _weights(plan: MemoryPlan) -> str:
    rows = [("weights", "files", "loaded")]
    rows += [(form.form, _gib(form.stored_bytes), _gib(form.loaded_bytes)) for form in plan.forms if not form.reason]
    lines = ["", *(f"{name:<12} {files:>11} {loaded:>11}" for name, files, loaded in rows)]
    return "\n".join([*lines, *(f"{form.form:<12} {form.reason}" for form in plan.forms if form.reason)])


def _on_gpu(plan: MemoryPlan, place: int) -> str:
    rows = [(form, form.gpus[place]) for form in plan.forms if form.gpus]
    if not rows:
        return ""
    gpu = rows[0][1]
    share = f"{plan.gpu_memory_utilization:.0%} of {_gib(gpu.memory_bytes)}"
    head = f"{'GPUs':>4} {'weights':>11} {'computing':>12} {'cache':>11} {'sequences':>9}"
    return "\n".join(["", f"{gpu.gpu} ({share})", f"{'':<12} {head}", *(_row(form, on_gpu) for form, on_gpu in rows)])


def _row(form: FormPlan, gpu: GpuPlan) -> str:
    if gpu.reason:
        return f"{form.form:<12} {gpu.reason}"
    return (
        f"{form.form:<12} {gpu.tensor_parallel_size:>4} {_gib(gpu.weights_bytes):>11} "
        f"{'~' + _gib(gpu.overhead_bytes):>12} {_gib(gpu.cache_bytes):>11} {gpu.sequences:>9,}"
    )


def _gib(size: int | None) -> str:
    """The unit that vLLM's own messages are in; less than a hundredth of it in MiB."""
    if size is None:
        return ""
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 100 else f"{size / _GIB * 1024:.2f} MiB"
