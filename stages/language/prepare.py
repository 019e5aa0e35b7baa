"""Text to judge a language model by, or to calibrate it with: read, and cut into windows of this model's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from calibration.builtin import builtin_rows
from calibration.language import (
    TokenStream,
    draw_windows,
    load_language_tokenizer,
    pack,
    slide,
    token_stream,
)
from calibration.rows import Rows
from calibration.windows import Windows
from stages.artifact import Artifact
from stages.data_rows import data_rows
from stages.errors import InputError
from stages.language.checkpoint import Checkpoint
from stages.progress import SILENT, Progress
from stages.stage import Stage

__all__ = ["FEW_WINDOWS", "PREPARE_TEXT", "PrepareTextOptions", "prepare_text"]

FEW_WINDOWS = 128
"""What GPTQ was published with (Frantar et al. 2022, section 4: 128 segments of 2048 tokens)."""

_LENGTH, _MOST_WINDOWS = 512, 512
_SPARE = 4
"""How many times the text that the windows take is read. With no more than they take, the longest documents, which
come one window after the other, would be all that there is in them."""
_ALL = 1_000_000


class PrepareTextOptions(BaseModel):
    """How text becomes windows.

    `columns` maps our name for a column (`text`, `messages`, `prompt`, `completion`) to its name in the data.
    `samples`: at most so many windows (default 512), drawn with `seed`. `length`: tokens in a window (default 512, or
    all positions that the model has). `stride`: for evaluation, how many tokens a window moves on (default: half of
    them).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["evaluation", "calibration"] = "evaluation"
    columns: dict[str, str] = {}
    samples: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    length: int | None = Field(None, ge=2)
    stride: int | None = Field(None, ge=1)


def prepare_text(
    model: Artifact,
    options: PrepareTextOptions,
    out: Path,
    progress: Progress = SILENT,
    data: Artifact | None = None,
) -> Artifact:
    """Windows of `data` for the checkpoint `model`, as an artifact of kind `dataset` that `Windows.load` reads.

    For evaluation they slide over the text (`calibration.language.slide`), for calibration they lie side by side
    (`pack`). Without data the text is that which Python brings along, one part of it for each of the two.

    The metadata say what it is: `evidence` in words, `evidence_kind` (`data` or `builtin`), how many `rows` the data
    have and which `columns`, the number of windows (`samples`), their `length` and `stride`, how many predictions are
    `counted`, the `tokens` of the documents (longest and mean), and `warnings`.

    Raises `InputError` for a length or a stride that does not suit the model, and for a tokenizer that is not the
    model's; `DataError` for data that are broken or too short, or that the model has no chat template for;
    `RequirementError` for a missing library.
    """
    checkpoint = Checkpoint.of(model)
    length = _length(options, checkpoint)
    progress.update("loading the tokenizer")
    tokenizer = load_language_tokenizer(model.path, trust_remote_code=checkpoint.trust_remote_code)
    most = options.samples or _MOST_WINDOWS
    if data is not None:
        progress.update(f"reading {data.metadata.get('name', data.path.name)}")
        # A row gives at least one token.
        rows = data_rows(data, columns=options.columns, limit=most * length, seed=options.seed)
    else:
        progress.update("reading docstrings of the Python standard library")
        rows = builtin_rows("text-generation", _ALL, options.seed, options.role)
    progress.update(f"tokenizing {rows.source}")
    stream = token_stream(rows, tokenizer, seed=options.seed, enough=_SPARE * most * length)
    _check_vocabulary(stream, checkpoint, tokenizer)
    stride = None if options.role == "calibration" else options.stride or max(1, length // 2)
    every = pack(stream, length) if stride is None else slide(stream, length, stride)
    windows = draw_windows(every, options.samples or _MOST_WINDOWS, options.seed)
    windows.save(out)
    evidence = _evidence(windows, every, stream, rows, None if data is not None else options.role)
    progress.update(evidence)
    metadata: dict[str, Any] = {
        "role": options.role,
        "evidence": evidence,
        "evidence_kind": "builtin" if data is None else "data",
        "rows": None if data is None else rows.total,
        "columns": None if data is None else rows.names,
        "samples": len(windows),
        "length": length,
        "stride": stride,
        "counted": windows.counted,
        "truth": "text",
        "classes": None,
        "tokens": {"longest": int(stream.lengths.max()), "mean": round(float(stream.lengths.mean()), 1)},
        "cut": 0,
        "warnings": [
            *(data.metadata.get("warnings", []) if data is not None else []),
            *(_few_windows(windows) if options.role == "calibration" else []),
        ],
    }
    made_from = {"model": model} if data is None else {"model": model, "data": data}
    return Artifact.write(out, "dataset", metadata, made_from)


PREPARE_TEXT = Stage(
    name="prepare text",
    revision=1,
    function=prepare_text,
    libraries=("numpy", "tokenizers", "transformers", "jinja2"),
    preload=("numpy", "calibration"),
)


def _length(options: PrepareTextOptions, checkpoint: Checkpoint) -> int:
    if options.role == "calibration" and options.stride is not None:
        raise InputError("a stride is for evaluation: windows to calibrate with share no text")
    length = min(_LENGTH, checkpoint.positions) if options.length is None else options.length
    if length > checkpoint.positions:
        raise InputError(
            f"windows of {length} tokens are longer than what the model was made for, {checkpoint.positions} tokens: "
            f"set max_length to {checkpoint.positions} or less"
        )
    return length


def _check_vocabulary(stream: TokenStream, checkpoint: Checkpoint, tokenizer: Any) -> None:
    highest = max(int(stream.tokens.max(initial=0)), *stream.prefix, 0)
    if highest >= checkpoint.vocabulary:
        raise InputError(
            f"the tokenizer gives the token {highest} ({tokenizer.convert_ids_to_tokens(highest)!r}), the model "
            f"knows only {checkpoint.vocabulary} tokens: the tokenizer beside the model is another model's"
        )


def _evidence(windows: Windows, every: Windows, stream: TokenStream, rows: Rows, missing: str | None) -> str:
    drawn = f"{len(windows)} of {len(every)}" if len(windows) < len(every) else f"{len(windows)}"
    cut = f"{drawn} window{'s' * (len(every) != 1)} of {windows.length} tokens from"
    if missing is not None:
        return f"{cut} {stream.rows} {rows.source} (no --{missing} was given)"
    read = f"{stream.rows} of {rows.total}" if stream.rows < rows.total else f"{stream.rows}"
    return f"{cut} {read} {stream.kind if rows.total != 1 else stream.kind[:-1]} of {rows.source}"


def _few_windows(windows: Windows) -> list[str]:
    if len(windows) >= FEW_WINDOWS:
        return []
    return [
        f"{len(windows)} window{'s' * (len(windows) > 1)} of {windows.length} tokens for calibration: what is learnt "
        f"from so few may not hold for other text; give text for {FEW_WINDOWS} or more"
    ]
