"""`optimize bench`: the speed of a served language model."""

from __future__ import annotations

import os
from pathlib import Path

import click

__all__ = ["bench"]


def _counts(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}: write numbers with commas between them, as 1,4,16") from None
    if min(counts) < 1:
        raise click.BadParameter(f"{value!r}: at least one request is under way at once")
    return counts


@click.command(short_help="The speed of a served language model.")
@click.argument("url")
@click.option("--model", metavar="NAME", help="Which model of the server's.  [default: the first]")
@click.option("--data", metavar="FILE", type=click.Path(path_type=Path), help="Text to ask with: .jsonl, .txt, ….")
@click.option(
    "--tokenizer",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The model's tokenizer.  [default: that of the served model, if it is on this machine]",
)
@click.option(
    "--concurrency", metavar="N,N", callback=_counts, default="1,4", show_default=True, help="Requests at once."
)
@click.option("--requests", default=32, show_default=True, type=click.IntRange(1, 100_000), help="For each of these.")
@click.option("--new-tokens", default=64, show_default=True, type=click.IntRange(1), help="Generated in each.")
@click.option("--longest-prompt", default=1024, show_default=True, type=click.IntRange(8), help="In tokens.")
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Seconds.")
@click.option("--seed", type=click.IntRange(0), help="For the same prompts again.  [default: others each time]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def bench(
    url: str,
    model: str | None,
    data: Path | None,
    tokenizer: Path | None,
    concurrency: tuple[int, ...],
    requests: int,
    new_tokens: int,
    longest_prompt: int,
    timeout: float,
    seed: int | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Measure the server at URL (http://localhost:8000): time to the first token, time for each token after it, tokens
    and requests a second.

    Any server with OpenAI's completions and streaming will do: vLLM, SGLang, TGI, …. The prompts are as long as the
    texts of the data are, each a different one. If OPENAI_API_KEY is set, it is sent as the key.
    """
    from pipeline.bench_table import print_bench
    from pipeline.screen import TerminalScreen
    from stages.language.bench import BenchOptions
    from stages.language.bench import bench as measure

    options = BenchOptions(
        model=model,
        data=data,
        tokenizer=tokenizer,
        concurrency=concurrency,
        requests=requests,
        new_tokens=new_tokens,
        longest_prompt=longest_prompt,
        timeout_s=timeout,
        seed=seed,
    )
    with TerminalScreen().step("bench") as progress:
        measured = measure(url, options, key=os.environ.get("OPENAI_API_KEY"), progress=progress)
    if as_json:
        click.echo(measured.model_dump_json(indent=1))
    else:
        print_bench(measured)
