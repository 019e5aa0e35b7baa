"""ONNX Runtime GenAI: a decoder in ONNX with its key-value cache, on the CPU.

Its search is made for texts that end and for batches that are padded. Which tokens end and pad a text stands in
`genai_config.json`; without them it takes token 0 for both (`src/config.cpp`, 0.18), and it then

- fills a sequence with the padding token from where the end token came, whatever the model would have said, and
- reads the padding token at the end of a prompt as none: the scores there are of a shorter sequence.

Neither may happen where a model is measured, so that it is opened with an end token of our choice: one that none of
the sequences at hand ends with. Should the model generate it, it is opened again with another, and goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from stages.artifact import Artifact
from stages.errors import InputError, RequirementError, StageError
from stages.language.checkpoint import Checkpoint
from stages.language.session import Floats, Tokens, check_tokens

__all__ = ["CONFIG", "GenAiSession", "open_language"]

CONFIG = "genai_config.json"


def open_language(artifact: Artifact, threads: int = 0) -> GenAiSession:
    """Open a checkpoint artifact and run it once, so that what is prepared at the first call is not waited for later.

    Raises `InputError` if ONNX Runtime GenAI cannot load it, `RequirementError` if that is not installed.
    """
    session = GenAiSession(artifact, threads or len(os.sched_getaffinity(0)))
    session.logits(np.zeros((1, 1), dtype=np.int64))
    return session


class GenAiSession:
    """A decoder on `threads` threads. See `stages.language.session.LanguageSession`.

    Raises `InputError` for tokens that the model does not have and for sequences longer than it was made for, and
    `StageError` where the engine fails, or once it is closed.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._artifact, self._checkpoint, self._threads = artifact, Checkpoint.of(artifact), threads
        self._model: Any | None = None
        self._end = -1
        self._closed = False

    def logits(self, tokens: Tokens) -> Floats:
        check_tokens(self._checkpoint, tokens)
        with _its_failures():
            scores: Floats = self._reader(tokens, tokens.shape[1]).get_output("logits").astype(np.float32, copy=False)
        return scores

    def generate(self, prompts: Tokens, count: int) -> Iterator[Tokens]:
        check_tokens(self._checkpoint, prompts, count)
        return self._decode(prompts, count)

    def _decode(self, prompts: Tokens, count: int) -> Iterator[Tokens]:
        read, longest = prompts, prompts.shape[1] + count
        while read.shape[1] < longest:
            with _its_failures():
                reader = self._reader(read, longest)
            steps: list[Tokens] = []
            while read.shape[1] + len(steps) < longest:
                with _its_failures():
                    reader.generate_next_token()
                    steps.append(reader.get_next_tokens().astype(np.int64))
                yield steps[-1]
                if (steps[-1] == self._end).any():
                    break
            read = np.column_stack([read, *steps])

    def close(self) -> None:
        self._model, self._closed = None, True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reader(self, tokens: Tokens, longest: int) -> Any:
        """A generator of GenAI that has read `tokens` and can go on up to `longest`."""
        if self._closed:
            raise StageError("the session was closed")
        ends = set(tokens[:, -1].tolist())
        if self._model is None or self._end in ends:
            self._end = _end_token(self._checkpoint.vocabulary, ends)
            self._model = _load(self._artifact, self._end, self._threads)
        import onnxruntime_genai

        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(batch_size=len(tokens), max_length=longest)
        reader = onnxruntime_genai.Generator(self._model, parameters)
        reader.append_tokens(tokens.astype(np.int32))
        return reader


def _end_token(vocabulary: int, ends: set[int]) -> int:
    """One that is not in `ends`. The last ones are the rarest."""
    return next(token for token in reversed(range(vocabulary)) if token not in ends)


def _load(artifact: Artifact, end: int, threads: int) -> Any:
    """The model, opened with `end` for the token that ends and pads, and with a search that takes the likeliest token
    and does nothing else, whatever the checkpoint recommends for conversations."""
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise RequirementError("onnxruntime-genai is not installed: `pip install 'optimize-pipeline[llm]'`") from error
    try:
        config = json.loads((artifact.path / CONFIG).read_text())
        model, asked = config["model"], config["search"]
        model["eos_token_id"] = model["pad_token_id"] = end
        model["decoder"]["session_options"] |= {
            "intra_op_num_threads": threads,
            "inter_op_num_threads": 1,
            "log_severity_level": 4,  # what goes wrong is raised
        }
        config["search"] = {name: asked[name] for name in ("max_length", "past_present_share_buffer")}
        with tempfile.TemporaryDirectory() as folder:
            # It takes a directory only, and from a configuration no path that leads out of that.
            for name in artifact.files:
                if name != CONFIG:
                    link = Path(folder) / name
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to((artifact.path / name).resolve())
            (Path(folder) / CONFIG).write_text(json.dumps(config))
            return onnxruntime_genai.Model(onnxruntime_genai.Config(folder))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{artifact.path} cannot be loaded by ONNX Runtime GenAI: {error}") from error


@contextlib.contextmanager
def _its_failures() -> Iterator[None]:
    """It raises `RuntimeError` for everything."""
    try:
        yield
    except RuntimeError as error:
        raise StageError(f"ONNX Runtime GenAI failed: {error}") from error
