"""lm-evaluation-harness (EleutherAI, `lm-eval`), asked for local tasks, and answered by a session of ours.

Its own tasks are fetched from a hub and are not offered. What it calls a model is a class with three kinds of requests;
here each of them ends in `LanguageSession.logits` or `generate`, so that every form of a checkpoint is asked in the
same way, whatever runs it.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.language import put_before
from stages.errors import InputError, RequirementError
from stages.language.likelihood import losses
from stages.language.runtime.silence import silence
from stages.language.session import LanguageSession

__all__ = ["Answers", "ask"]

_BATCH = 8
_MOST_GENERATED = 256
"""Tokens of an answer, where a task does not say how many (the library's own default)."""

Answers = dict[str, tuple[str, NDArray[np.float64]]]
"""By task: the name of its metric, and what each sample scored in it, 0 to 1."""


def ask(
    session: LanguageSession,
    tokenizer: Any,
    positions: int,
    folder: Path,
    tasks: Sequence[str],
    *,
    samples: int | None,
    few_shot: int | None,
    seed: int,
    told: Callable[[int], None],
) -> Answers:
    """Have `session` do the tasks (all in `folder`, where `tasks` is empty), at most so many `samples` of each.

    A task is judged by the first of its metrics. `few_shot`: examples before a question, None: as the task says. File
    names in a task are relative to `folder`. `told` is called with the number of answered requests.

    Raises `InputError` for a task that is not there, is damaged, needs something from a hub, runs code that it marks as
    unsafe, or whose metric gives no number between 0 and 1 for each sample; `RequirementError` if the library is not
    installed.
    """
    with _library() as library, tempfile.TemporaryDirectory() as cache, contextlib.chdir(folder):
        importlib.import_module("datasets.config").HF_DATASETS_CACHE = Path(cache)  # type: ignore[attr-defined]
        try:
            manager = library.tasks.TaskManager(include_path=str(folder), include_defaults=False)
            there = sorted(manager.all_tasks)
            if unknown := sorted(set(tasks) - set(there)):
                raise InputError(f"there is no task {unknown[0]!r} in {folder}; there are {', '.join(there) or 'none'}")
            if not there:
                raise InputError(f"there is no task in {folder}: a task is a YAML file with the key `task`")
            loaded = manager.load(list(tasks) or there)
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(seed=seed)
                if few_shot is not None:
                    task.set_config(key="num_fewshot", value=few_shot)
            model = _adapter(library, session, tokenizer, positions, told)
            results = library.evaluator.evaluate(model, loaded, limit=samples, bootstrap_iters=0)
        except InputError:
            raise
        except Exception as error:  # what a task's templates, files and code lead to is of no common class
            raise InputError(f"the tasks in {folder} cannot be done ({type(error).__name__}: {error})") from error
    return {name: _scores(name, task, results["samples"][name]) for name, task in sorted(loaded["tasks"].items())}


def _scores(name: str, task: Any, samples: list[dict[str, Any]]) -> tuple[str, NDArray[np.float64]]:
    asked = task.config.metric_list or []
    metric = str(asked[0]["metric"]) if asked else str(samples[0]["metrics"][0])
    kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    try:
        scores = np.array([float(sample[metric]) for sample in sorted(kept, key=lambda one: one["doc_id"])])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the metric {metric} of the task {name} gives no number for each sample") from error
    if not ((scores >= 0) & (scores <= 1)).all():
        raise InputError(f"the metric {metric} of the task {name} goes beyond 0 to 1, and no drop of it can be bounded")
    if not task.higher_is_better()[metric]:
        scores = 1 - scores
        metric = f"1 - {metric}"
    return metric, scores


def _adapter(
    library: Any, session: LanguageSession, tokenizer: Any, positions: int, told: Callable[[int], None]
) -> Any:
    prefix = put_before(tokenizer)
    end = tokenizer.eos_token_id
    begin = prefix[-1] if prefix else end if end is not None else 0

    class Adapter(library.api.model.TemplateLM):  # type: ignore[misc]
        """Answers from the session. Contexts that are too long lose their beginning, as in the library's own models."""

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer
            self.answered = 0

        @property
        def eot_token_id(self) -> int:
            return int(end if end is not None else begin)

        @property
        def prefix_token_id(self) -> int:
            return int(begin)

        @property
        def tokenizer_name(self) -> str:
            return type(tokenizer).__name__

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            special = add_special_tokens is not False
            return list(tokenizer(string, add_special_tokens=special, verbose=False)["input_ids"])

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return str(
                tokenizer.apply_chat_template(chat_history, tokenize=False, add_generation_prompt=add_generation_prompt)
            )

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
            order = sorted(range(len(requests)), key=lambda place: -len(requests[place][1]) - len(requests[place][2]))
            for start in range(0, len(order), _BATCH):
                batch = order[start : start + _BATCH]
                rows = [[*requests[place][1], *requests[place][2]][-positions:] for place in batch]
                # What comes after a token changes nothing for it: rows are filled up behind, to one length.
                longest = max(len(row) for row in rows)
                tokens = np.array([row + [begin] * (longest - len(row)) for row in rows], dtype=np.int64)
                scores = session.logits(tokens)
                for place, row, one in zip(batch, rows, scores, strict=True):
                    targets = np.array(row[len(row) - min(len(requests[place][2]), len(row) - 1) :])
                    own = one[len(row) - 1 - len(targets) : len(row) - 1]
                    greedy = bool((own.argmax(axis=-1) == targets).all())
                    found[place] = (-float(losses(own, targets).sum()), greedy)
                self._told(len(batch))
            return found

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            raise InputError("tasks of perplexity are not offered: perplexity is what the check itself measures")

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            answers = []
            for request in requests:
                context, asked = request.args
                ends = [asked["until"]] if isinstance(asked.get("until"), str) else list(asked.get("until") or [])
                count = min(int(asked.get("max_gen_toks", _MOST_GENERATED)), positions - 1)
                prompt = self.tok_encode(context)[-(positions - count) :]
                answers.append(self._generated(prompt, count, ends))
                self._told(1)
            return answers

        def _generated(self, prompt: list[int], count: int, ends: list[str]) -> str:
            written: list[int] = []
            text = ""
            for step in session.generate(np.array([prompt], dtype=np.int64), count):
                if int(step[0]) == end:
                    break
                written.append(int(step[0]))
                text = tokenizer.decode(written, skip_special_tokens=True)
                if any(stop in text for stop in ends):
                    break
            return min((text.split(stop)[0] for stop in ends), key=len, default=text)

        def _told(self, count: int) -> None:
            self.answered += count
            told(self.answered)

    return Adapter()


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """The module, in silence, while nothing is asked of a hub."""
    try:
        with silence():
            library = importlib.import_module("lm_eval")
            for part in ("api.model", "evaluator", "tasks"):
                importlib.import_module(f"lm_eval.{part}")
            datasets: Any = importlib.import_module("datasets.config")
    except ModuleNotFoundError as error:
        raise RequirementError("lm-eval is not installed: `pip install 'optimize-pipeline[suites]'`") from error
    hub: Any = importlib.import_module("huggingface_hub.constants")
    before = datasets.HF_DATASETS_CACHE, datasets.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    datasets.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    try:
        with silence():
            yield library
    finally:
        datasets.HF_DATASETS_CACHE, datasets.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before
